"""`apprentice why`: the monitor's report on a task, in plain words, and its outlook."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import KeyNames, Unusable
from gateway.cli.command import Api, TaskName, with_api
from gateway.cli.pictures import draw_bar
from gateway.cli.tables import Printer, Row
from monitoring.quality.phrases import format_digits

if TYPE_CHECKING:
    from monitoring.quality.explanations.outlook import Outlook, SignalOutlook

PARTS = (
    ("known", "What is known"),
    ("sure", "How sure"),
    ("done", "What was done"),
    ("next", "What to do next"),
    ("caveats", "Note"),
)
TICKS = (("1 h", 1 / 24), ("1 day", 1.0), ("1 week", 7.0), ("1 month", 30.0), ("1 year", 365.0))
BAR_WIDTH = 50


@with_api
def why(
    api: Api,
    task: TaskName,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Show what wakes you, how often for nothing, and how soon a degradation is found."),
    ] = False,
    labels_per_day: Annotated[
        float | None, typer.Option(min=0.01, max=1e9, help="The plan, at this number of labels a day. Unset: as now.")
    ] = None,
) -> None:
    """Explain the state of a task's versions, and what to do next."""
    answer = api.get(f"/tasks/{quote(task, safe='')}/quality")
    if plan or labels_per_day is not None:
        tell_plan(api.out, answer, labels_per_day)
    elif not api.out.print_json(answer):
        tell_why(api.out, answer, KeyNames(api))


def tell_why(out: Printer, answer: dict[str, Any], names: KeyNames) -> None:
    """Print a task's quality in words, section by section."""
    out.say(answer["report"]["line"])
    for name, title in PARTS:
        if answer["report"][name]:
            out.say("", f"{title}:", *(f"  {names.within(sentence)}" for sentence in answer["report"][name]))


def tell_plan(out: Printer, answer: dict[str, Any], labels_per_day: float | None) -> None:
    """Print the leading version's outlook as a table and a plot. Raises Unusable if it is not judged yet."""
    import msgspec

    from monitoring.quality.explanations.outlook import make_outlook
    from monitoring.quality.verdicts.monitor_plan import MonitorPlan
    from monitoring.quality.verdicts.quality import Judgement

    judged = answer["judgements"].get(answer["roles"]["active"] or "")
    if judged is None:
        raise Unusable(f"{answer['task']} has no version that was judged yet: its first requests come first.")
    outlook = make_outlook(
        msgspec.convert(judged, Judgement), msgspec.convert(answer["plan"], MonitorPlan), labels_per_day
    )
    if out.print_json(msgspec.to_builtins(outlook)):
        return
    rate = outlook.labels_per_day
    if rate is None:
        out.say(f"{outlook.version}, {outlook.pace}, too short for a rate (--labels-per-day N plans with one):")
    else:
        out.say(f"{outlook.version} at about {format_digits(rate)} labels a day:")
    out.say(*(f"  {sentence}" for sentence in outlook.sentences))
    if outlook.signals:
        out.say("", "Labels until a degradation is found, on average, and their time:")
        head = ("signal", "a day", "baseline", *(f"+{points} points" for points in outlook.days))
        out.table(head, (_row(signal) for signal in outlook.signals))
    if rate is not None:
        _draw_days(out, outlook)


def _row(signal: SignalOutlook) -> Row:
    per_day = signal.labels_per_day
    cells = [_format_labels(count, signal.days[points]) for points, count in signal.labels.items()]
    return signal.signal, None if per_day is None else format_digits(per_day), f"{signal.baseline:.1%}", *cells


def _draw_days(out: Printer, outlook: Outlook) -> None:
    """A plot of the time until a degradation is found."""
    out.say("", "Time until a degradation is found, on average:")
    never = "never" if outlook.labels_per_day else "no labels come"
    for points, days in outlook.days.items():
        bar = "" if days is None else draw_bar(_place(days))
        out.say(f"  {f'+{points} points':>10}  {bar} {never if days is None else _format_days(days)}")
    scale = [" "] * (BAR_WIDTH + 10)
    for name, days in TICKS:
        place = round(_place(days))
        scale[place : place + len(name) + 1] = f"|{name}"
    out.say(f"{'':14}{''.join(scale).rstrip()}")


def _place(days: float) -> float:
    """The place of a time on a scale of logarithms from 15 minutes to a year."""
    first, last = 1 / 96, 365.0
    return BAR_WIDTH * math.log(min(last, max(first, days)) / first) / math.log(last / first)


def _format_labels(count: float | None, days: float | None) -> str:
    """The labels until a degradation is found, and their time."""
    if count is None:
        return "never"
    return f"{count:.0f}" if days is None else f"{count:.0f}, {_format_days(days)}"


def _format_days(days: float) -> str:
    return f"{days:.1f} d" if days >= 2 else f"{24 * days:.1f} h"
