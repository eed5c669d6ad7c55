"""`apprentice tasks`: what the monitor says of tasks, and the word of people against it."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Unusable, asks_gateway
from gateway.cli.tables import Printer, Row, moment, share, since, tell_warnings
from monitoring.quality.phases import Verdict

tasks = typer.Typer(
    help="List tasks as the monitor sees them; say that one changes; overrule, hold, undo.", no_args_is_help=True
)
Task = Annotated[str, typer.Argument(metavar="TASK", help="A task, such as returns.")]
Version = Annotated[str, typer.Argument(metavar="VERSION", help="One of its versions, such as returns@v3.")]
Reason = Annotated[
    str, typer.Option(metavar="TEXT", help="Why: it stands in the audit, and where the task is told of.")
]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="DATE", help="A date or a time, UTC without a zone. Unset: until it is released."),
]


@tasks.command("list")
@asks_gateway
def list_tasks(client: AdminClient, out: Printer) -> None:
    """List the tasks with the verdict on the version that leads."""
    told = client.get("/quality")
    if out.answer(told):
        return
    rows = [_row(one, _pin(client, one)) for one in told["tasks"]]
    out.table(("task", "version", "verdict", "since", "keeps", "note"), rows)
    if told["judged_at"] is None:
        out.note("The monitor has judged nothing yet.")


@tasks.command()
@asks_gateway
def changed(
    client: AdminClient,
    out: Printer,
    task: Task,
    effective: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="From when on: a date or a time, UTC without a zone. Past or to come."),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="What changes.")] = "",
    override: Annotated[
        Literal["general", "refuse", "none"] | None,
        typer.Option(help="Where its requests go meanwhile. Unset: general, where the task has a fallback."),
    ] = None,
    message: Annotated[str | None, typer.Option(metavar="TEXT", help="With refuse: what callers are told.")] = None,
    until: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="When the rule ends. Unset: 14 days after it begins to be in force."),
    ] = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back: rule, mark and request to train.")] = False,
) -> None:
    """Announce a change of a task's rules. Its versions are stale, a rule is set, and training is requested."""
    path = f"/tasks/{quote(task, safe='')}/changed"
    if undo:
        if effective is not None:
            raise Unusable("Give either --effective or --undo.")
        told = client.delete(path)
        if not out.answer(told):
            out.say(f"{task} does not change: its versions are not stale, its rule is gone.")
        return
    if effective is None:
        raise Unusable("From when on? Give --effective with a date, such as 2026-12-01.")
    body: dict[str, Any] = {"effective_at": _when(effective), "note": note}
    if override is not None:
        body["override"] = None if override == "none" else override
    body |= {"expires_at": _when(until)} if until is not None else {}
    body |= {"message": message} if message is not None else {}
    told = client.post(path, body)
    if not out.answer(told):
        _tell_change(out, task, told)


@tasks.command()
@asks_gateway
def pin(
    client: AdminClient,
    out: Printer,
    task: Task,
    version: Version,
    reason: Reason,
    verdict: Annotated[
        Verdict | None, typer.Option(help="What holds instead of the monitor's. Unset: hold, nothing is done.")
    ] = None,
    until: Until = None,
) -> None:
    """Overrule the verdict on a version, or hold the monitor's actions.

    Where a degraded version is pinned as healthy, the evidence so far is put aside: its detectors begin anew.
    """
    body: dict[str, Any] = {"reason": reason}
    body |= {"verdict": verdict} if verdict is not None else {}
    body |= {"until": _when(until)} if until is not None else {}
    told = client.post(_path(task, version, "pin"), body)
    if not out.answer(told):
        end = told["quality"]["versions"][version]["pin"]["until"]
        what = f"is pinned as {verdict}" if verdict is not None else "is held: nothing is done about its verdict"
        out.say(f"{version} {what}; {f'until {moment(end)}' if end else 'until it is released'}.")


@tasks.command()
@asks_gateway
def release(client: AdminClient, out: Printer, task: Task, version: Version) -> None:
    """Let the monitor judge a version again."""
    told = client.delete(_path(task, version, "pin"))
    if not out.answer(told):
        out.say(f"{version} is the monitor's to judge again; it is {told['quality']['versions'][version]['verdict']}.")


@tasks.command()
@asks_gateway
def undo(
    client: AdminClient,
    out: Printer,
    task: Task,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="Its id, as `apprentice why TASK` tells it.")],
) -> None:
    """Undo an action of the monitor. It does not do the same again until the task's versions are healthy."""
    told = client.post(f"/tasks/{quote(task, safe='')}/quality/actions/{quote(action, safe='')}/undo")
    if not out.answer(told):
        out.say(f"Undone: {told['action']['because']}")


@tasks.command()
@asks_gateway
def baseline(
    client: AdminClient,
    out: Printer,
    task: Task,
    version: Version,
    stream: Annotated[str, typer.Argument(metavar="STREAM", help="Such as feedback, or length.")],
    reason: Reason,
    accept: Annotated[bool, typer.Option("--accept", help="Take what was seen lately.")] = False,
    wrong: Annotated[float | None, typer.Option(metavar="N", help="So many were wrong, with --of.")] = None,
    of: Annotated[int | None, typer.Option("--of", metavar="M", help="Of so many that were judged.")] = None,
    evaluation: Annotated[
        str | None, typer.Option(metavar="ID", help="Take what this evaluation of the version counted.")
    ] = None,
    of_class: Annotated[str | None, typer.Option("--class", metavar="CLASS", help="Of this class alone.")] = None,
) -> None:
    """Compare a signal of a version with another baseline from now on."""
    body: dict[str, Any] = {"stream": stream, "reason": reason, "accept": accept}
    given = (("wrong", wrong), ("of", of), ("evaluation", evaluation), ("of_class", of_class))
    body |= {name: value for name, value in given if value is not None}
    told = client.post(_path(task, version, "baseline"), body)
    if out.answer(told):
        return
    held = told["set"][stream if of_class is None else f"{stream}:{of_class}"]
    against = f"at most {100 * held['upper']:.1f}% from now on" if held["upper"] < 1 else "what it learns from now on"
    whole = stream if of_class is None else f"{stream}, class {of_class},"
    out.say(f"{whole} of {version} is held against {against}.")
    tell_warnings(out, told)


def _path(task: str, version: str, last: str) -> str:
    return f"/tasks/{quote(task, safe='')}/quality/{quote(version, safe='')}/{last}"


def _when(text: str) -> float | str:
    """Unix seconds where it is a number, else the text, which the gateway reads."""
    return float(text) if text.replace(".", "", 1).isdecimal() else text


def _pin(client: AdminClient, told: dict[str, Any]) -> str | None:
    """What stands of an admin's word on the version that leads: pinned, or held, which leaves the monitor's verdict."""
    if not told["pinned"]:
        return None
    versions = client.get(f"/tasks/{quote(told['task'], safe='')}/quality")["quality"]["versions"]
    pin = versions.get(told["version"], {}).get("pin")
    return "held" if pin is not None and pin["verdict"] is None else "pinned"


def _row(told: dict[str, Any], pin: str | None) -> Row:
    notes = [pin] if pin is not None else []
    notes += [f"stale from {moment(told['stale_from'])}"] if told["stale_from"] else []
    notes += [f"review by {moment(told['review_due'])}"] if told["review_due"] else []
    notes += [f"{told['retraining_open']} to train"] if told["retraining_open"] else []
    to = f", else {told['to']}" if told["to"] else ""
    kept = f"{share(told['kept'])}{to}" if told["verdict"] else "-"
    return told["task"], told["version"], told["verdict"], since(told["since"]), kept, ", ".join(notes)


def _tell_change(out: Printer, task: str, told: dict[str, Any]) -> None:
    word, rule = told["changed"], told["rule"]
    stale = ", ".join(told["stale"]) or "no version"
    when = moment(word["effective_at"])
    if word["effective_at"] <= word["at"]:
        out.say(f"{task} has changed, on {when}: {stale} stale since then.")
    else:
        out.say(f"{task} changes from {when} on: {stale} stale then.")
    if rule is not None:
        does = "refuses its requests" if rule["action"] == "refuse" else "sends its requests to general"
        out.say(f"The rule {word['override']} {does} until {moment(rule['expires_at'])}.")
    if word["retraining"] is not None:
        out.say(f"Training is asked for: {word['retraining']}.")
