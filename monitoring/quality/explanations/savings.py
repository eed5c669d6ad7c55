"""A version's saving in plain words: the present one, the total, and its limits. Pure.

It is the saving of requests less the cost of their shadows, both known from one version's signals. The task's net
saving also subtracts reviews and tuning (docs/guides/alerts-and-dashboards.md). Only Prometheus has that.
"""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.quality.phrases import format_count, format_dollars, format_percent, format_span, is_short
from monitoring.quality.verdicts.quality import Judgement, SavingReport, TaskQuality

REQUESTS_MIN = 200.0
"""The number of recent requests from which a caveat says that they cost more than they save."""
KNOWN_MIN = 0.95
"""If the saving of a smaller share of requests is known, the sentence says so."""


def describe_net_saving(name: str, task: str, judged: Judgement) -> Iterator[str]:
    """The version's saving; nothing if no prices are known, or all of them are 0."""
    saving = judged.saving
    if saving is None or not any((judged.saving_usd, judged.shadow_usd)):
        return
    of = f" (the {format_percent(saving.known)} of them of which that is known)" if saving.known < KNOWN_MIN else ""
    parts = _parts(saving.saved_usd_per_day, saving.shadow_usd_per_day)
    if saving.since is not None and is_short(saving.since, judged.at):
        span = format_span(max(0.0, judged.at - saving.since))
        yield f"What {name} saves a day is not known yet: it has answered for {span}, and a day is needed."
    else:
        yield f"{name} {_net(saving.net_usd_per_day)} a day at present, net of shadows: {parts}, {_over(saving)}{of}."
    net = judged.saving_usd - judged.shadow_usd
    sums = _parts(judged.saving_usd, judged.shadow_usd)
    yield f"Since the monitor saw it first, {name} {_net(net, past=True)} net of shadows: {sums}."
    yield (
        f"Neither reviews nor tuning are taken off what {name} saves here, and requests that were pinned or that a "
        "rule sent are not in it: the dashboard Routing and `task:apprentice_net_saving_usd:increase7d` show the net "
        f"saving of {task}, with all of that."
    )


def list_saving_caveats(name: str, task: str, judged: Judgement, quality: TaskQuality) -> Iterator[str]:
    """The caveat if a version now costs more than it saves, over enough requests and time."""
    saving = judged.saving
    if saving is None or saving.requests < REQUESTS_MIN or saving.net_usd_per_day >= 0.0:
        return
    if is_short(saving.since, judged.at):
        return
    if saving.saved_usd_per_day <= 0.0:
        yield (
            f"{name} and its shadows cost about {format_dollars(-saving.net_usd_per_day)} US dollars a day more than "
            f"general alone would have, {_over(saving)}. Are the prices right (`pools.POOL.price`), and is there "
            "enough traffic for an adapter?"
        )
        return
    ticket = quality.ticket
    raised = ""
    if ticket is not None and ticket.closed_at is None:
        raised = f"They are raised while ticket {ticket.id} is open. "
    cost, saved = format_dollars(saving.shadow_usd_per_day), format_dollars(saving.saved_usd_per_day)
    yield (
        f"Shadows and their judges cost more than {name} saves: {cost} US dollars a day against {saved}, "
        f"{_over(saving)}. {raised}Lower tasks.{task}.monitor.shadow_share if it stays so."
    )


def _net(usd: float, past: bool = False) -> str:
    """The net saving, or the loss."""
    verb = ("has saved" if past else "saves") if usd >= 0.0 else ("has lost" if past else "loses")
    return f"{verb} about {format_dollars(abs(usd))} US dollars"


def _over(saving: SavingReport) -> str:
    return f"over about {format_count(round(saving.requests), 'request', 'requests')} of the last days"


def _parts(saved: float, shadows: float) -> str:
    against = f"{format_dollars(abs(saved))} {'less' if saved >= 0.0 else 'more'} than general would have cost"
    return f"{against}, {format_dollars(shadows)} for shadows and their judges"
