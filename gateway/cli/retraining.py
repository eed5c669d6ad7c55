"""`apprentice retraining`: requests to retrain an adapter, and its wrong answers as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Api, Force, OfTask, add_command, see_that_it_can_be_written
from gateway.cli.tables import Row, format_age, format_time

retraining = typer.Typer(help="List, show, export and close requests to train an adapter again.", no_args_is_help=True)
EMPTY = "No request to train is listed. The monitor opens one for a version that is degraded."
Id = Annotated[str, typer.Argument(metavar="ID", help="A request's id, as `list` and `apprentice why` show it.")]


@add_command(retraining, "list")
def list_requests(
    api: Api,
    task: OfTask = None,
    state: Annotated[Literal["open", "closed"] | None, typer.Option(help="Only these.")] = None,
) -> None:
    """List the requests to train, the newest first."""
    columns = ("id", "task", "version", "state", "opened", "examples", "because")
    api.out.tell_list(api.get("/retraining", task=task, state=state), "retraining", columns, _row, EMPTY)


@add_command(retraining)
def show(api: Api, name: Id) -> None:
    """Show a request to train with its evidence."""
    answer = api.get(f"/retraining/{quote(name, safe='')}")
    closed = f"{format_time(answer['closed_at'])} by {answer['closed_by']}" if answer["closed_at"] else None
    examples = f"{answer['kept']} of {answer['examples']} are kept; {answer['complete']} can be evaluated"
    if not api.out.print_json(answer):
        first = [(name, answer[name]) for name in ("id", "task", "version", "state")]
        opened = f"{format_time(answer['opened_at'])} by {answer['by']}"
        last = [("opened", opened), ("closed", closed), ("because", answer["because"]), ("examples", examples)]
        last += [(name, answer[name]) for name in ("dataset", "command", "training", "evaluation", "note")]
        api.out.pairs([*first, *last])


@add_command(retraining)
def export(
    api: Api,
    name: Id,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to. Unset: ID.jsonl, here.")
    ] = None,
    complete: Annotated[bool, typer.Option("--complete", help="Only what `apprentice evaluate --data` reads.")] = False,
    force: Force = False,
) -> None:
    """Write the examples of a request to train as JSON lines."""
    path = target or Path(f"{name}.jsonl")
    if path.name in ("", "..") or (target is None and not name.isalnum()):
        raise Unusable(f"{name[:80]!r} is not a request's id: `apprentice retraining list` has them.")
    see_that_it_can_be_written(force, path)
    address = f"/retraining/{quote(name, safe='')}"
    answer = api.get(address)
    if not answer["complete" if complete else "kept"]:
        raise Unusable(f"Nothing is written: {_explain_lack(answer)}")
    lines = api.save(f"{address}/examples?complete={str(complete).lower()}", path)
    text = f"Wrote {path}: {lines} {'example' if lines == 1 else 'examples'}."
    api.out.tell({"file": str(path), "examples": lines}, text)
    if not answer["complete"]:
        api.out.note(f"None can be trained on: {_explain_lack(answer)}")


@add_command(retraining)
def close(api: Api, name: Id) -> None:
    """Close a request to train."""
    answer = api.post(f"/retraining/{quote(name, safe='')}/close")
    api.out.tell(answer, f"{answer['id']} is closed.")


def _explain_lack(answer: dict[str, Any]) -> str:
    """The reason why no example can be used for training, and advice."""
    number, task = answer["kept"], answer["task"]
    if not number:
        return f"{'none of its examples is kept any more' if answer['examples'] else 'no request was judged bad'}."
    return (
        f"of {number} {'example' if number == 1 else 'examples'}, {answer['without_text']} have no text, and "
        f"{answer['without_demonstration']} no demonstration. Texts are kept of later requests with "
        f"tasks.{task}.texts.keep, or of reviews (tasks.{task}.monitor.reviews). Feedback gives a demonstration, or "
        "`apprentice reviews answer` with --right."
    )


def _row(request: dict[str, Any]) -> Row:
    fields = [request[name] for name in ("id", "task", "version", "state", "examples", "because")]
    return *fields[:4], format_age(request["opened_at"]), *fields[4:]
