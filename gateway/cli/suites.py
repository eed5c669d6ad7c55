"""`apprentice suites`: data sets on which each version of a task is evaluated."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer
from rich.progress import SpinnerColumn, TextColumn

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Api, TaskName, Yes, add_command, make_sure
from gateway.cli.evaluations import COLUMNS, send_data
from gateway.cli.prompts import OwnColumns, as_lines, read_columns
from gateway.cli.records import moments_of
from gateway.cli.tables import Row, format_time

PATH = "/suites"
EMPTY = "No suite is listed. Add one: apprentice suites add TASK --data FILE"
SHOWN = ("task", "digest", "kind", "rows", "erased", "groups", "metric", "class_field")
suites = typer.Typer(help="Add, list, show and remove the suites that versions are evaluated on.", no_args_is_help=True)
Suite = Annotated[
    str, typer.Argument(metavar="SUITE", help="Its kind, or the beginning of its digest, as `list` shows it.")
]


@add_command(suites)
def add(
    api: Api,
    task: TaskName,
    data: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON lines with requests and expected answers; or .csv, .json.")
    ] = None,
    from_production: Annotated[
        bool,
        typer.Option(
            "--from-production",
            help="In place of --data: kept texts whose label is wrong and whose right answer is agreed.",
        ),
    ] = False,
    since_time: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="With --from-production: from then on, as in 2026-11-01 or 7d."),
    ] = None,
    kind: Annotated[
        Literal["newest", "general", "hard"] | None,
        typer.Option(
            help="newest: the task as it is now; the one before is then older. general: other skills to be kept. "
            "hard: cases that production found. Unset: hard with --from-production, else newest."
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="When an answer is right, as for `evaluate`. Unset: by the version's contract.")
    ] = None,
    class_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="The field of the expected answers that is the class.")
    ] = None,
    column: OwnColumns = None,
) -> None:
    """Add a suite to a task. It is kept with its texts until it is removed."""
    if from_production is not (since_time is not None) or from_production is (data is not None):
        raise Unusable("Give --data FILE, or --from-production with --since TIME.")
    (since,) = moments_of(since_time)
    query = {"task": task, "kind": kind, "metric": metric, "class_field": class_field}
    with ExitStack() as stack, api.out.progress(SpinnerColumn(), TextColumn("{task.description}")) as progress:
        if data is None:
            progress.add_task("Reading kept texts")
            answer = api.send(PATH, iter(()), "application/json", 0, **query, since=str(since))
        else:
            answer = send_data(api, PATH, as_lines(stack, data, COLUMNS, read_columns(column)), query)
    added = f"{answer['task']} has the suite {answer['digest'][:12]} ({_words(answer)})."
    api.out.tell(answer, added, *answer["notes"])


@add_command(suites, "list")
def list_them(
    api: Api, task: Annotated[str | None, typer.Argument(metavar="TASK", help="Of this task alone.")] = None
) -> None:
    """List the suites, the newest first."""
    columns = ("task", "digest", "kind", "rows", "metric", "added")
    api.out.tell_list(api.get(PATH, task=task), "suites", columns, _row, EMPTY)


@add_command(suites)
def show(api: Api, task: TaskName, suite: Suite) -> None:
    """Show a suite, with its rows by class, source, language and length."""
    answer = api.get(_path(task, suite))
    if api.out.print_json(answer):
        return
    added = f"{format_time(answer['created_at'])} by {answer['by']}"
    api.out.pairs([*((name, answer[name]) for name in SHOWN), ("added", added)])
    api.out.say(*answer["notes"])
    rows = [(name, value, count) for name, counts in answer["counts"].items() for value, count in counts.items()]
    api.out.say("")
    api.out.table(("slice", "value", "rows"), rows)


@add_command(suites)
def remove(api: Api, task: TaskName, suite: Suite, yes: Yes = False) -> None:
    """Remove a suite with its rows. Reports of evaluations on it stay."""
    suite_row = api.get(_path(task, suite))
    make_sure(f"Remove the suite {suite_row['digest'][:12]} of {task} ({_words(suite_row)})?", yes)
    answer = api.delete(_path(task, suite_row["digest"]))
    api.out.tell(answer, f"The suite {answer['digest'][:12]} of {task} is removed.")


def _path(task: str, suite: str) -> str:
    return f"{PATH}/{quote(task, safe='')}/{quote(suite, safe='')}"


def _row(suite: dict[str, Any]) -> Row:
    added = format_time(suite["created_at"])
    return suite["task"], suite["digest"][:12], suite["kind"], suite["rows"], suite["metric"] or "by contract", added


def _words(suite: dict[str, Any]) -> str:
    return f"{suite['kind']}, {suite['rows']} rows"
