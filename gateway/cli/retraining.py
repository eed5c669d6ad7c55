"""`apprentice retraining`: requests to train an adapter anew, and what it got wrong as a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import AdminClient, Unusable, asks_gateway
from gateway.cli.tables import Printer, Row, moment, since

retraining = typer.Typer(help="List, show, export and close requests to train an adapter anew.", no_args_is_help=True)
Id = Annotated[str, typer.Argument(metavar="ID", help="A request's id, as `list` and `apprentice why` tell it.")]


@retraining.command("list")
@asks_gateway
def list_requests(
    client: AdminClient,
    out: Printer,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Of this task alone.")] = None,
    state: Annotated[Literal["open", "closed"] | None, typer.Option(help="Only these.")] = None,
) -> None:
    """List the requests to train, the newest first."""
    told = client.get("/retraining", task=task, state=state)
    if not out.answer(told):
        columns = ("id", "task", "version", "state", "opened", "examples", "because")
        out.table(columns, (_row(one) for one in told["retraining"]))


@retraining.command()
@asks_gateway
def show(client: AdminClient, out: Printer, name: Id) -> None:
    """Show a request to train with its evidence."""
    told = client.get(f"/retraining/{quote(name, safe='')}")
    if out.answer(told):
        return
    closed = f"{moment(told['closed_at'])} by {told['closed_by']}" if told["closed_at"] else None
    out.pairs(
        [
            ("id", told["id"]),
            ("task", told["task"]),
            ("version", told["version"]),
            ("state", told["state"]),
            ("opened", f"{moment(told['opened_at'])} by {told['by']}"),
            ("closed", closed),
            ("because", told["because"]),
            ("examples", f"{told['kept']} of {told['examples']} are kept; {told['complete']} can be evaluated"),
        ]
    )


@retraining.command()
@asks_gateway
def export(
    client: AdminClient,
    out: Printer,
    name: Id,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to. Unset: ID.jsonl, here.")
    ] = None,
    complete: Annotated[bool, typer.Option("--complete", help="Only what `apprentice evaluate --data` reads.")] = False,
) -> None:
    """Write the examples of a request to train as JSON lines."""
    path = target or Path(f"{name}.jsonl")
    if path.name in ("", "..") or (target is None and not name.isalnum()):
        raise Unusable(f"{name[:80]!r} is no request's id: `apprentice retraining list` has them.")
    try:
        asked = f"?complete={str(complete).lower()}"
        client.download(f"/retraining/{quote(name, safe='')}/examples{asked}", path)
    except OSError as error:
        raise Unusable(f"{path} can't be written: {error.strerror}.") from error
    lines = path.read_bytes().count(b"\n")
    if not out.answer({"file": str(path), "examples": lines}):
        out.say(f"Wrote {path}: {lines} {'example' if lines == 1 else 'examples'}.")
    if not lines:
        _tell_why_none(out, client.get(f"/retraining/{quote(name, safe='')}"))


@retraining.command()
@asks_gateway
def close(client: AdminClient, out: Printer, name: Id) -> None:
    """Close a request to train."""
    told = client.post(f"/retraining/{quote(name, safe='')}/close")
    if not out.answer(told):
        out.say(f"{told['id']} is closed.")


def _tell_why_none(out: Printer, told: dict[str, Any]) -> None:
    """Why nothing was written, and what would change that: on stderr."""
    kept = told["kept"]
    if not kept:
        out.note("Nothing is kept of what was judged bad, or nothing was judged bad.")
        return
    out.note(
        f"Of {kept} {'example' if kept == 1 else 'examples'}, {told['without_text']} have no text: it is kept of what "
        f"was reviewed (tasks.{told['task']}.monitor.reviews). {told['without_demonstration']} have no demonstration: "
        "feedback gives one, or `apprentice reviews answer` with --right."
    )


def _row(told: dict[str, Any]) -> Row:
    opened = since(told["opened_at"])
    return told["id"], told["task"], told["version"], told["state"], opened, told["examples"], told["because"]
