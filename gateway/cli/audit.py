"""`apprentice audit`: who changed what, and when."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.audit_check import verify_entries
from gateway.cli.command import Api, with_api
from gateway.cli.key_names import KeyNames
from gateway.cli.records import moments_of
from gateway.cli.tables import Row, format_time, share, shorten_digest
from gateway.cli.watch import list_evidence


@with_api
def audit(
    api: Api,
    action: Annotated[str | None, typer.Option(metavar="ACTION", help="Only this, such as alias.rollback.")] = None,
    of: Annotated[
        str | None, typer.Option("--object", metavar="NAME", help="Only of this: a task, a version, a rule, a key.")
    ] = None,
    actor: Annotated[
        str | None, typer.Option(metavar="KEY", help="Only by this key (its public part), or `system`.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From when on: 2026-03-01, or so long ago: 36h, 7d.")
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="At most the newest N.")] = 50,
    verify: Annotated[bool, typer.Option("--verify", help="Check the whole chain instead of showing entries.")] = False,
    heads: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --verify: heads that audit.head_file has kept.")
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="With --heads: the public key of audit.head_key_file, in base64.")
    ] = None,
) -> None:
    """Show who changed what and when, the newest last. With --json: the evidence too, the newest first.

    With --verify: whether the chain is whole, and whether it continues the heads; else the exit code is 1.
    """
    if verify or heads is not None or public_key is not None:
        chain = verify_entries(api, heads, public_key)
        whole = f"{chain['entries']} entries: the chain is whole." + (f" {chain['heads']} heads fit." if heads else "")
        api.out.tell(chain, chain["fault"] or whole)
        raise typer.Exit(1 if chain["fault"] else 0)
    (begin,) = moments_of(since)
    query = {"action": action, "object": of, "actor": actor, "since": None if begin is None else str(begin)}
    answer = api.get("/audit", newest="true", limit=str(limit), **query)
    if api.out.print_json(answer):
        return
    if not answer["entries"]:
        api.out.say("There is no such entry.")
        return
    columns = ("number", "when", "who", "action", "object", "became")
    names = KeyNames(api)
    api.out.table(columns, (_row(entry, names) for entry in reversed(answer["entries"])), cuts=True)


def _row(entry: dict[str, Any], names: KeyNames) -> Row:
    when, who, what, then = make_entry_row(entry, names)
    return entry["number"], when, who, what, entry["object"], then


def make_entry_row(entry: dict[str, Any], names: KeyNames) -> Row:
    """An entry's time, actor and action, and what its object is since then; of what was deleted, what that was."""
    before = entry.get("before")
    if not entry["after"] and before and str(entry["action"]).endswith(".delete"):
        gone = {name: value for name, value in before.items() if value != entry["object"]}
        then = f"deleted: {_summarize(gone)}"
    else:
        then = _summarize(entry["after"])
    if isinstance(evidence := entry.get("evidence"), dict) and evidence.get("reason"):
        then += f": {evidence['reason']}"
    return format_time(entry["at"]), names.within(entry["actor"]), entry["action"], then[:120]


def _summarize(after: Any) -> str:
    if isinstance(after, dict) and "weights" in after:
        copied = [f"copied to {name} {share(part)}" for name, part in (after.get("shadow") or {}).items()]
        return ", ".join([*(f"{name} {share(part)}" for name, part in after["weights"].items()), *copied])
    return ", ".join(f"{name} {shorten_digest(value)}".strip() for name, value in list_evidence(after) if value != "-")
