"""The caveats of a report on a task, in plain words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import MappingProxyType

from monitoring.quality.explanations import savings
from monitoring.quality.phrases import (
    NOBODY_WOKEN,
    format_count,
    format_moment,
    format_percent,
    format_span,
    join_words,
)
from monitoring.quality.signals.arms import LABELS_MIN
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Judgement, TaskQuality
from monitoring.quality.verdicts.shares import Roles
from monitoring.quality.verdicts.verdict import find_degraded, shows_recovery

STOPPED_SECONDS = 60.0
"""A monitor without a judgement for longer than this has stopped."""
BEHIND_SECONDS = 60.0
"""The age from which unread records are reported."""
PAIRS_EXPECTED_MIN = 20.0
"""The number of expected shadow pairs from which their lack of judgements is reported."""
JUDGE_ASKED_MIN = 20.0
SILENT_SHARE_MIN = 0.2
"""The share of the latest pairs without the judge's opinion that is reported, for JUDGE_ASKED_MIN pairs or more."""
ANSWERED_MIN = 20
"""A judge with an opinion on this number of pairs in a row works again."""
BESIDE_LABELS: Mapping[str, str] = MappingProxyType({"shadow": "judged pairs", "complaints": "complaints"})
"""The labelled signals that need no label of the feedback metric."""


def list_caveats(
    quality: TaskQuality,
    plan: MonitorPlan,
    roles: Roles,
    judgements: Mapping[str, Judgement],
    judged_at: float | None,
    behind_seconds: float,
    review_by: Mapping[str, float],
    now: float,
) -> list[str]:
    """The caveats as sentences, the gravest first; none if all is well. Times are in Unix seconds."""
    active = judgements.get(roles.active or "")
    caveats = [*_of_monitor(judged_at, behind_seconds, now), *_of_pins(quality, judgements, now)]
    if not plan.has_webhook and any(each.verdict != "healthy" for each in quality.versions.values()):
        caveats.append(NOBODY_WOKEN)
    caveats += [*_of_recovery(quality, judgements), *_of_undone(quality), *_of_change(quality, review_by, now)]
    if roles.active is not None:
        caveats += _of_labels(roles.active, active, plan)
        silent = list(_of_silent_judge(roles.active, active, plan))
        caveats += [*silent, *_of_judge(active, plan, bool(silent))]
        if active is not None:
            caveats += savings.list_saving_caveats(roles.active, active.task, active, quality)
        if not plan.enforced and "shift" in plan.responses:
            caveats.append(
                "The task's check degraded is not enforced: the monitor reports, and shifts no share by itself."
            )
    return caveats


def list_unjudged(names: Iterable[str], judgements: Mapping[str, Judgement]) -> Iterator[str]:
    """A sentence on each version that can't be judged."""
    for name in names:
        last = (
            f"its last judgement is of {format_moment(judgements[name].at)}" if name in judgements else "it never was"
        )
        yield f"{name} can't be judged: {last}. The gateways' logs say why at `the state of {name}`."


def has_stopped(judged_at: float | None, now: float) -> bool:
    """Return whether the monitor has never judged, or not for a while."""
    return judged_at is None or now - judged_at > STOPPED_SECONDS


def _of_monitor(judged_at: float | None, behind_seconds: float, now: float) -> Iterator[str]:
    if judged_at is None:
        yield "The monitor has judged nothing yet: is a gateway running, and does it have the monitor's job?"
    elif now - judged_at > STOPPED_SECONDS:
        yield (
            f"The monitor has stopped judging: its last verdict is {format_span(now - judged_at)} old "
            f"({format_moment(judged_at)}). "
            "All that is shown here is as it was then. Look at the gateways' logs for `monitor`."
        )
    elif behind_seconds > BEHIND_SECONDS:
        yield f"The monitor is {format_span(behind_seconds)} behind: newer requests and feedback are not in this yet."


def _of_pins(task_quality: TaskQuality, judgements: Mapping[str, Judgement], now: float) -> Iterator[str]:
    for name, quality in sorted(task_quality.versions.items()):
        pin = quality.pin
        if pin is None or (pin.until is not None and pin.until <= now):
            continue
        until = "until it is released" if pin.until is None else f"until {format_moment(pin.until)}"
        what = "is held: nothing is done about its verdict" if pin.verdict is None else f"is pinned as {pin.verdict}"
        yield f"{name} {what} {until}, by {pin.by} since {format_moment(pin.at)}: {pin.reason.rstrip('.')}."
        if pin.verdict in ("healthy", "suspect") and name in judgements and find_degraded(judgements[name]):
            yield f"The monitor would say that {name} is degraded: labels speak against it."


def _of_recovery(task_quality: TaskQuality, judgements: Mapping[str, Judgement]) -> Iterator[str]:
    for name, quality in sorted(task_quality.versions.items()):
        judged = judgements.get(name)
        if quality.verdict == "degraded" and judged is not None and not shows_recovery(quality, judged):
            yield (
                f"No signal can show that {name} has recovered: none of labels is compared with anything from before "
                "it was degraded."
            )


def _of_undone(task_quality: TaskQuality) -> Iterator[str]:
    if task_quality.undone:
        what = join_words([kind.replace("_", " ") for kind in task_quality.undone])
        yield f"An admin has undone: {what}. It is not done again until the task's leader and canary are healthy."
    for name, quality in sorted(task_quality.versions.items()):
        if quality.undone:
            what = join_words([kind.replace("_", " ") for kind in quality.undone])
            yield f"An admin has undone of {name}: {what}. It is not done again before {name} is healthy."


def _of_change(task_quality: TaskQuality, review_by: Mapping[str, float], now: float) -> Iterator[str]:
    for name, quality in sorted(task_quality.versions.items()):
        if quality.stale_from is not None:
            tense = "is stale since" if quality.stale_from <= now else "gets stale on"
            since = format_moment(quality.stale_from)
            yield f"{name} {tense} {since}: it was trained on rules that no longer hold then."
    for name, due in sorted(review_by.items()):
        if due <= now:
            yield f"The review of {name} by its owner is overdue since {format_moment(due)}."


def _of_labels(name: str, active: Judgement | None, plan: MonitorPlan) -> Iterator[str]:
    reports = [] if active is None else active.reports
    others = join_words([BESIDE_LABELS[report.signal] for report in reports if report.signal in BESIDE_LABELS])
    if active is None or active.labels < plan.labels_min:
        has = (
            "no labels"
            if active is None or not active.labels
            else format_count(active.labels, "label", "labels") + " only"
        )
        but = f"; its {others} may" if others else ""
        yield f"{name} has {has}: fewer than {plan.labels_min} never make it degraded, however bad they are{but}."
    if active is not None and not active.labels_per_day:
        at_most = f"only {others} can make it degraded" if others else "the monitor can at most become suspicious"
        yield f"No label comes at present: without labels {at_most}."


def _of_silent_judge(name: str, active: Judgement | None, plan: MonitorPlan) -> Iterator[str]:
    """The caveat if the model that judges pairs is asked and does not answer, with the place to look at."""
    judge = active.judge if active is not None else None
    if judge is None or active is None or plan.judge_pool is None:
        return
    if judge.asked < JUDGE_ASKED_MIN or judge.silent < SILENT_SHARE_MIN or judge.answered_since >= ANSWERED_MIN:
        return
    pairs = format_count(round(judge.asked), "pair", "pairs")
    yield (
        f"Of about the latest {pairs} of {name} that the model in the pool {plan.judge_pool} was to judge, "
        f"{format_percent(judge.silent)} got no word from it, so that they compare no arms. Is that pool up "
        f"(`apprentice_replica_up`)? The gateways' logs say why at `the judge of {active.task} rests`; "
        "`apprentice_pairs_total` counts such pairs as unjudged."
    )


def _of_judge(active: Judgement | None, plan: MonitorPlan, silent: bool) -> Iterator[str]:
    """The caveats if the judge judges its own answers, or if expected pairs are missing.

    `silent`: another caveat already names the silent judge as the cause.
    """
    if plan.judges_itself and (plan.shadow_share or plan.shadow_share_suspect):
        yield (
            "The general model judges its own answers beside the version's, and may think too well of them: name "
            "another model's pool as monitor.judge.pool, or have people review some of the requests."
        )
    if active is None or not active.led_per_day or plan.shadow_share * active.requests < PAIRS_EXPECTED_MIN:
        return
    if not active.shadows:
        yield "Both arms should answer a share of the requests, and no shadow was asked: is the fallback up?"
        return
    judges_alone = plan.reviews_per_week > 0 or bool(plan.trusted_callers)
    if judges_alone and all(arm.labels < LABELS_MIN for arm in active.arms):
        yield (
            "Which arm is right is for reviewers and trusted callers alone to say here, and they have judged fewer "
            f"than {LABELS_MIN} of the pairs: what other callers say, demonstrations too, does not compare the arms."
        )
    elif not silent and not any(report.signal == "shadow" and report.observed > 0 for report in active.reports):
        yield (
            "Both arms answer a share of the requests, and of no pair is it known which answer is right: that takes a "
            "demonstration, a broken contract, or a model as judge."
        )
