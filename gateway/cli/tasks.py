"""`apprentice tasks`: the monitor's verdicts on tasks, and ways to overrule them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Unusable
from gateway.cli.command import Api, Because, TaskName, add_command, as_body
from gateway.cli.tables import Row, format_age, format_time, share, tell_warnings
from monitoring.quality.phases import Verdict

tasks = typer.Typer(
    help="List tasks as the monitor sees them; say that one changes; overrule, hold, undo.", no_args_is_help=True
)
Version = Annotated[str, typer.Argument(metavar="VERSION", help="One of its versions, such as returns@v3.")]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why: it goes into the audit, and into reports on the task.")]
Until = Annotated[
    str | None,
    typer.Option("--until", metavar="DATE", help="A date or a time, UTC without a zone. Unset: until it is released."),
]


@add_command(tasks, "list")
def list_tasks(api: Api) -> None:
    """List the tasks with the verdict on what leads."""
    answer = api.get("/quality")
    if api.out.print_json(answer):
        return
    rows = [_row(item, _pin(api, item)) for item in answer["tasks"]]
    api.out.table(("task", "version", "verdict", "since", "keeps", "note"), rows)
    if answer["judged_at"] is None:
        api.out.note("The monitor has judged nothing yet.")
    for caveat in answer["caveats"]:
        api.out.note(caveat)


@add_command(tasks)
def changed(
    api: Api,
    task: TaskName,
    effective: Annotated[
        str | None,
        typer.Option(metavar="DATE", help="From when on: a date or a time, UTC without a zone. Past or to come."),
    ] = None,
    note: Annotated[str, typer.Option(metavar="TEXT", help="What changes.")] = "",
    override: Annotated[
        Literal["general", "refuse", "none"] | None,
        typer.Option(help="Where its requests go meanwhile. Unset: general, where the task has a fallback."),
    ] = None,
    message: Annotated[
        str | None, typer.Option(metavar="TEXT", help="With refuse: the message that callers get.")
    ] = None,
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
        api.out.tell(api.delete(path), f"{task} does not change: its versions are not stale, its rule is gone.")
        return
    if effective is None:
        raise Unusable("From when on? Give --effective with a date, such as 2026-12-01.")
    body = as_body(effective_at=_when(effective), note=note, expires_at=_when(until), message=message)
    if override is not None:
        body["override"] = None if override == "none" else override
    answer = api.post(path, body)
    api.out.tell(answer, *_change(task, answer))
    tell_warnings(api.out, answer)


@add_command(tasks)
def pin(
    api: Api,
    task: TaskName,
    version: Version,
    reason: Reason,
    verdict: Annotated[
        Verdict | None, typer.Option(help="What holds instead of the monitor's. Unset: hold, nothing is done.")
    ] = None,
    until: Until = None,
) -> None:
    """Overrule the verdict on a version, or hold the monitor's actions.

    Where a degraded version is pinned as healthy, the evidence so far is put aside: its detectors begin again.
    """
    answer = api.post(_path(task, version, "pin"), as_body(reason=reason, verdict=verdict, until=_when(until)))
    end = answer["quality"]["versions"][version]["pin"]["until"]
    state = f"is pinned as {verdict}" if verdict is not None else "is held: nothing is done about its verdict"
    api.out.tell(answer, f"{version} {state}; {f'until {format_time(end)}' if end else 'until it is released'}.")


@add_command(tasks)
def release(api: Api, task: TaskName, version: Version, reason: Because = None) -> None:
    """Let the monitor judge a version again."""
    answer = api.delete(_path(task, version, "pin"), reason=reason)
    verdict = answer["quality"]["versions"][version]["verdict"]
    api.out.tell(answer, f"The monitor judges {version} again; it is {verdict}.")


@add_command(tasks)
def undo(
    api: Api,
    task: TaskName,
    action: Annotated[str, typer.Argument(metavar="ACTION", help="Its id, as `apprentice why TASK` shows it.")],
    reason: Because = None,
) -> None:
    """Undo an action of the monitor. It does not do the same again until the task's versions are healthy."""
    path = f"/tasks/{quote(task, safe='')}/quality/actions/{quote(action, safe='')}/undo"
    answer = api.post(path, reason=reason)
    api.out.tell(answer, f"Undone: {answer['action']['because']}")


@add_command(tasks)
def baseline(
    api: Api,
    task: TaskName,
    version: Version,
    signal: Annotated[str, typer.Argument(metavar="SIGNAL", help="Such as feedback, or length.")],
    reason: Reason,
    accept: Annotated[bool, typer.Option("--accept", help="Take what was seen lately.")] = False,
    wrong: Annotated[float | None, typer.Option(metavar="N", help="Number of wrong ones, with --of.")] = None,
    of: Annotated[int | None, typer.Option("--of", metavar="M", help="Number of judged ones.")] = None,
    evaluation: Annotated[
        str | None, typer.Option(metavar="ID", help="Take what this evaluation of the version counted.")
    ] = None,
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove what was set: the signal learns its own again.")
    ] = False,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Add the difference of labellers. CSV or JSON lines: rows of the evaluation, with `gate` and "
            "`reviewer`, each right or wrong.",
        ),
    ] = None,
    of_class: Annotated[str | None, typer.Option("--class", metavar="CLASS", help="Of this class alone.")] = None,
) -> None:
    """Set the baseline of a version's signal, or remove it."""
    calibration = None
    if calibrate is not None:
        from gateway.cli.calibration import count_differences

        calibration = count_differences(calibrate)
    body = as_body(signal=signal, reason=reason, accept=accept, remove=remove or None, wrong=wrong, of=of)
    body |= as_body(evaluation=evaluation, calibration=calibration, of_class=of_class)
    answer = api.post(_path(task, version, "baseline"), body)
    if api.out.print_json(answer):
        return
    baseline = answer["set"].get(signal if of_class is None else f"{signal}:{of_class}")
    learns = baseline is None or baseline["upper"] >= 1
    against = "what it learns from now on" if learns else f"at most {100 * baseline['upper']:.1f}% from now on"
    whole = signal if of_class is None else f"{signal}, class {of_class},"
    api.out.say(f"{whole} of {version} is compared with {against}.")
    tell_warnings(api.out, answer)


def _path(task: str, version: str, last: str) -> str:
    return f"/tasks/{quote(task, safe='')}/quality/{quote(version, safe='')}/{last}"


def _when(text: str | None) -> float | str | None:
    """Unix seconds of a number that is not a date, as 20261201 is; other text is left for the gateway to parse."""
    is_number = text is not None and text.replace(".", "", 1).isdecimal() and len(text) != len("20261201")
    return float(text) if text is not None and is_number else text


def _pin(client: AdminClient, answer: dict[str, Any]) -> str | None:
    """The pin on the leading version: pinned, or held, which keeps the monitor's verdict."""
    if not answer["pinned"]:
        return None
    versions = client.get(f"/tasks/{quote(answer['task'], safe='')}/quality")["quality"]["versions"]
    pin = versions.get(answer["version"], {}).get("pin")
    return "held" if pin is not None and pin["verdict"] is None else "pinned"


def _row(answer: dict[str, Any], pin: str | None) -> Row:
    notes = [pin] if pin is not None else []
    notes += [f"stale from {format_time(answer['stale_from'])}"] if answer["stale_from"] else []
    notes += [f"review by {format_time(answer['review_due'])}"] if answer["review_due"] else []
    notes += [f"{answer['retraining_open']} to train"] if answer["retraining_open"] else []
    to = f", else {answer['to']}" if answer["to"] else ""
    traffic = f"{share(answer['kept'])}{to}" if answer["verdict"] else "-"
    return answer["task"], answer["version"], answer["verdict"], format_age(answer["since"]), traffic, ", ".join(notes)


def _change(task: str, answer: dict[str, Any]) -> Iterator[str]:
    """The sentences about an announced change."""
    change, rule = answer["changed"], answer["rule"]
    stale = ", ".join(answer["stale"]) or "no version"
    when = format_time(change["effective_at"])
    if change["effective_at"] <= change["at"]:
        yield f"{task} has changed, on {when}: {stale} stale since then."
    else:
        yield f"{task} changes from {when} on: {stale} stale then."
    if rule is not None:
        does = "refuses its requests" if rule["action"] == "refuse" else "sends its requests to general"
        yield f"The rule {change['override']} {does} until {format_time(rule['expires_at'])}."
    if change["retraining"] is not None:
        yield f"Training is asked for: {change['retraining']}."
