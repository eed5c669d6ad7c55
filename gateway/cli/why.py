"""`apprentice why`: the monitor's report on a task, in plain words, and its outlook."""

from __future__ import annotations

import math
from typing import Annotated, Any
from urllib.parse import quote

import typer

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Api, with_api
from gateway.cli.key_names import KeyNames
from gateway.cli.pictures import draw_bar
from gateway.cli.tables import Printer

PARTS = (
    ("known", "What is known"),
    ("sure", "How sure"),
    ("done", "What was done"),
    ("next", "What to do next"),
    ("caveats", "To bear in mind"),
)
TICKS = (("1 h", 1 / 24), ("1 day", 1.0), ("1 week", 7.0), ("1 month", 30.0), ("1 year", 365.0))
BAR_WIDTH = 50


@with_api
def why(
    api: Api,
    task: Annotated[str, typer.Argument(metavar="TASK", help="A task, such as returns.")],
    plan: Annotated[
        bool, typer.Option("--plan", help="Show what wakes you, how often for nothing, and how soon a slip is found.")
    ] = False,
    labels_per_day: Annotated[
        float | None,
        typer.Option(min=0.01, max=1e9, help="The plan, at so many labels a day. Unset: as now."),
    ] = None,
) -> None:
    """Explain the state of a task's versions, and what to do next."""
    answer = api.get(f"/tasks/{quote(task, safe='')}/quality")
    if plan or labels_per_day is not None:
        tell_plan(api.out, answer, labels_per_day)
    elif not api.out.answer(answer):
        tell_why(api.out, answer, KeyNames(api))


def tell_why(out: Printer, answer: dict[str, Any], names: KeyNames) -> None:
    """A task's health in words, a part after the other."""
    out.say(answer["told"]["line"])
    for name, title in PARTS:
        if answer["told"][name]:
            out.say("")
            out.say(f"{title}:")
            for sentence in answer["told"][name]:
                out.say(f"  {names.within(sentence)}")


def tell_plan(out: Printer, answer: dict[str, Any], labels_per_day: float | None) -> None:
    """The outlook of the version that leads, as a table and a plot. Raises Unusable without a judgement of it."""
    import msgspec

    from monitoring.quality.explanations.outlook import make_outlook
    from monitoring.quality.verdicts.plan import Plan
    from monitoring.quality.verdicts.quality import Judgement

    judged = answer["judgements"].get(answer["roles"]["active"] or "")
    if judged is None:
        raise Unusable(f"{answer['task']} has no version that was judged yet: its first requests come first.")
    outlook = make_outlook(msgspec.convert(judged, Judgement), msgspec.convert(answer["plan"], Plan), labels_per_day)
    if out.answer(msgspec.to_builtins(outlook)):
        return
    out.say(f"{outlook.version} at about {outlook.labels_per_day:.3g} labels a day:")
    for sentence in outlook.sentences:
        out.say(f"  {sentence}")
    out.say("")
    head = (
        "signal",
        "labels a day",
        "held against",
        "labels as one",
        *(f"+{points} points" for points in outlook.days),
    )
    out.table(
        head,
        (
            (
                row.signal,
                row.labels_per_day,
                f"{row.baseline:.1%}",
                row.dispersion,
                *(
                    "never" if row.labels[points] is None else f"{row.labels[points]:.0f} labels, {_format_days(days)}"
                    for points, days in row.days.items()
                ),
            )
            for row in outlook.signals
        ),
    )
    out.say("")
    out.say("Time until a slip is found, on average:")
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


def _format_days(days: float | None) -> str:
    if days is None:
        return "no labels come"
    return f"{days:.1f} d" if days >= 2 else f"{24 * days:.1f} h"
