"""`apprentice audit`: who changed what, and when; with `--verify`: whether the chain is whole, and continues the heads
that were stored elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.admin_client import AdminClient, KeyNames, Unusable
from gateway.cli.command import Api, with_api
from gateway.cli.records import moments_of
from gateway.cli.tables import Row, format_time, share, shorten_digest
from gateway.cli.watch import list_evidence

if TYPE_CHECKING:
    from monitoring.audit import AuditEntry

PAGE = 1000


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
    answer = _find_newest(api, limit, query)
    if api.out.print_json(answer):
        return
    if not answer["entries"]:
        api.out.say("There is no such entry.")
        return
    columns = ("number", "when", "who", "action", "object", "became")
    names = KeyNames(api)
    api.out.table(columns, (_row(entry, names) for entry in reversed(answer["entries"])), cuts=True)


def _find_newest(api: Api, limit: int, query: Mapping[str, str | None]) -> dict[str, Any]:
    """The newest entries of a search. One answer covers a part of the audit; the next one continues where it ended."""
    entries: list[dict[str, Any]] = []
    before: str | None = None
    while True:
        left = limit - len(entries)
        answer: dict[str, Any] = api.get("/audit", newest="true", limit=str(left), before=before, **query)
        entries += answer["entries"]
        if len(entries) == limit or answer["next_before"] is None:
            return {**answer, "entries": entries}
        before = str(answer["next_before"])


def _row(entry: dict[str, Any], names: KeyNames) -> Row:
    when, who, what, then = make_entry_row(entry, names)
    return entry["number"], when, who, what, entry["object"], then


def make_entry_row(entry: dict[str, Any], names: KeyNames) -> Row:
    """An entry's time, actor and action, and its object's new value, or the old one if it was deleted."""
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


def verify_entries(client: AdminClient, heads: Path | None, public_key: str | None) -> dict[str, Any]:
    """The numbers of the audit's entries and of heads held to it, and the first `fault` as a sentence (None:
    there is none). Raises Unusable where the heads can't be read."""
    if (heads is None) != (public_key is None):
        raise Unusable("--heads and --public-key go together: the one is checked with the other.")
    digests = {} if heads is None or public_key is None else _heads(heads, public_key)
    if isinstance(digests, str):
        return {"entries": 0, "heads": 0, "fault": digests}
    count, fault = 0, None
    for count, fault in _walk(client, digests):  # noqa: B007 - the last ones are reported
        if fault is not None:
            break
    newest = max(digests, default=0)
    if fault is None and newest > count:
        fault = f"The audit ends at entry {count}, and a head is of entry {newest}: entries were removed from its end."
    return {"entries": count, "heads": len(digests), "fault": fault}


def _heads(path: Path, public_key: str) -> dict[int, str] | str:
    """The digests of the heads in a file by their numbers, or a sentence if one head is invalid."""
    from gateway.admin.audit_heads import read_heads
    from serving.adapters.signature import SignatureError, read_public_key

    try:
        key = read_public_key(public_key)
    except SignatureError as error:
        raise Unusable(f"--public-key: {error}") from error
    digests: dict[int, str] = {}
    try:
        with path.open("rb") as lines:
            for head in read_heads(lines, key):
                if digests.setdefault(head.number, head.digest) != head.digest:
                    return f"Two heads of entry {head.number} differ: the audit was replaced between them."
    except OSError as error:
        raise Unusable(f"--heads {path} can't be read: {error.strerror}.") from error
    except SignatureError as error:
        return f"{path}: {error}"
    return digests


def _walk(client: AdminClient, digests: Mapping[int, str]) -> Iterator[tuple[int, str | None]]:
    """The number of each page's last entry, and the first fault on the page."""
    from monitoring.audit import AuditEntry, verify

    last: list[AuditEntry] = []
    after: int | None = 0
    while after is not None:
        answer = client.get("/audit", after=str(after), limit=str(PAGE))
        try:
            page, after = [AuditEntry(**entry) for entry in answer["entries"]], answer["next_after"]
        except TypeError as error:
            text = "The gateway is of another release, whose entries have other fields: check them by its `apprentice`."
            raise Unusable(text) from error
        chain = [*last, *page]
        broken = 0 if not last and page and page[0].number != 1 else verify(chain)
        if broken is not None:
            number = chain[broken].number
            yield number, f"Entry {number} was changed, or what stood before it was removed or changed."
            return
        replaced = [item.number for item in page if digests.get(item.number, item.digest) != item.digest]
        if replaced:
            yield replaced[0], f"Entry {replaced[0]} is another than when its head was signed: the audit was replaced."
            return
        last = chain[-1:]
        yield (last[0].number if last else 0), None
