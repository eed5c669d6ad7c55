"""`apprentice audit --verify`: whether the audit's chain is whole, and continues the heads that were kept outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.cli.admin_client import AdminClient, Unusable

if TYPE_CHECKING:
    from monitoring.audit import AuditEntry

PAGE = 1000


def verify_entries(client: AdminClient, heads: Path | None, public_key: str | None) -> dict[str, Any]:
    """The numbers of the audit's entries and of heads held to it, and the first `fault` as a sentence (None:
    there is none). Raises Unusable where the heads can't be read."""
    if (heads is None) != (public_key is None):
        raise Unusable("--heads and --public-key go together: the one is checked with the other.")
    digests = {} if heads is None or public_key is None else _heads(heads, public_key)
    if isinstance(digests, str):
        return {"entries": 0, "heads": 0, "fault": digests}
    count, fault = 0, None
    for count, fault in _walk(client, digests):  # noqa: B007 - the last ones are told
        if fault is not None:
            break
    newest = max(digests, default=0)
    if fault is None and newest > count:
        fault = f"The audit ends at entry {count}, and a head is of entry {newest}: entries were removed from its end."
    return {"entries": count, "heads": len(digests), "fault": fault}


def _heads(path: Path, public_key: str) -> dict[int, str] | str:
    """The digests of the heads in a file by their numbers; a sentence where one of them does not hold."""
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
        page, after = [AuditEntry(**entry) for entry in answer["entries"]], answer["next_after"]
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
