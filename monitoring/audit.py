"""Audit of actions on objects: an append-only chain of entries in a Redis stream. Each entry is sealed by a SHA-256
digest over itself and the digest before it.

The ids in the stream are the entries' numbers (`1-0`, `2-0`, …). XADD refuses an id that is not above the last one, so
an append is one read and one write. If two gateways append at once, one is refused and tries again at the new end. A
Lua script would need no second try but has only SHA-1, which has known collisions. WATCH and MULTI would need a
connection of their own. A gap in the numbers shows a removed entry.

A chain shows changed, removed and inserted entries. It does not show that its end was cut off, or that all of it was
replaced. To detect this, keep a digest elsewhere from time to time and compare it later.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

STREAM = "apprentice:audit"
BEFORE_THE_FIRST = "0" * 64
VALUE_BYTES_MAX = 64 * 1024
MEMBER_BYTES_MAX = 1024
"""In an object that is too long, members up to this length stay unchanged."""
READ_LIMIT_MAX = 1_000
SEARCHED_MAX = 50_000
"""The most entries that one search reads."""
SEARCHED_AT_ONCE_MAX = 50
"""Entries that a search reads at once: parsing a reply blocks the event loop."""
APPEND_TRIES_MAX = 50
REFUSED_ID = "equal or smaller than the target stream top item"

ENTER = """
if redis.call('HGET', KEYS[2], ARGV[2]) ~= ARGV[3] then return 0 end
redis.call('XADD', KEYS[1], ARGV[1], unpack(ARGV, 4))
redis.call('HDEL', KEYS[2], ARGV[2])
return 1
"""


class AuditConflict(Exception):
    """The entry could not be appended: the end of the chain moved at each try, or was cut off."""


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action. `number` counts from 1; `at` is in Unix seconds; `actor` is a caller's public id or `system`;
    `before`, `after` and `evidence` are JSON values; `generation` is the object's generation after the action;
    `previous` and `digest` are SHA-256 in hexadecimal digits."""

    number: int
    at: float
    actor: str
    action: str
    object: str
    before: Any
    after: Any
    evidence: Any
    generation: int | None
    previous: str
    digest: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A search for entries: by action, object and actor (None: any), from `since` on (Unix seconds)."""

    action: str | None = None
    object: str | None = None
    actor: str | None = None
    since: float = 0.0

    def has(self, entry: AuditEntry) -> bool:
        """True if the entry matches."""
        pairs = ((self.action, entry.action), (self.object, entry.object), (self.actor, entry.actor))
        return entry.at >= self.since and all(wanted in (None, actual) for wanted, actual in pairs)


@dataclass(frozen=True, slots=True)
class AuditPage:
    """The result of a search. The next page begins after the number `next_after`, or before `next_before` in a search
    of the newest first; None at the end."""

    entries: list[AuditEntry]
    next_after: int | None
    next_before: int | None = None


class Audit:
    """The audit of all gateways on one Redis. Redis's errors are passed on: an action that is not audited must not be
    done."""

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock
        self._turn = asyncio.Lock()

    def draft(
        self,
        actor: str,
        action: str,
        object: str,  # noqa: A002
        *,
        before: Any = None,
        after: Any = None,
        evidence: Any = None,
        generation: int | None = None,
    ) -> AuditEntry:
        """A new entry that has no place in the chain yet. A value over VALUE_BYTES_MAX is replaced by its digest and
        its `reason`. Raises ValueError for a value that is not JSON."""
        return AuditEntry(
            number=0,
            at=float(self._clock()),
            actor=actor,
            action=action,
            object=object,
            before=_as_read("before", before),
            after=_as_read("after", after),
            evidence=_as_read("evidence", evidence),
            generation=generation,
            previous="",
        )

    async def append(self, actor: str, action: str, object: str, **more: Any) -> AuditEntry:  # noqa: A002
        """Append one entry, and return it once Redis has stored it. `more` are keyword arguments of `draft`.

        Raises ValueError as `draft` does, AuditConflict if the end of the chain moved at each try or was cut off, and
        the errors of Redis.
        """
        draft = self.draft(actor, action, object, **more)
        async with self._turn:
            for _ in range(APPEND_TRIES_MAX):
                entry = _sealed(draft, await self._last())
                if await self._add(entry):
                    return entry
        raise _conflict(entry)

    async def enter(self, key: str, name: str) -> AuditEntry | None:
        """Append the draft that a Redis hash holds as JSON under `name`, and remove it there, in one atomic step. It
        becomes one entry, even if several processes try or are killed.

        None if the hash does not hold the draft (any more). Raises AuditConflict and the errors of Redis as `append`
        does.
        """
        async with self._turn:
            for _ in range(APPEND_TRIES_MAX):
                written: Any = await self._redis.hget(key, name)
                if written is None:
                    return None
                entry = _sealed(AuditEntry(**json.loads(written)), await self._last())
                if await self._add_and_remove(entry, key, name, written):
                    return entry
        raise _conflict(entry)

    async def read(self, after: int = 0, limit: int = 100) -> list[AuditEntry]:
        """At most `limit` entries, from 1 to READ_LIMIT_MAX, whose number is above `after`; oldest first."""
        if not 1 <= limit <= READ_LIMIT_MAX:
            raise ValueError(f"limit is {limit}: give 1 to {READ_LIMIT_MAX}.")
        rows: Any = await self._redis.xrange(STREAM, min=f"{max(after, 0) + 1}-0", count=limit)
        return [_entry(number, fields) for number, fields in rows]

    async def find(
        self, wanted: Wanted, after: int, limit: int, newest: bool = False, before: int | None = None
    ) -> AuditPage:
        """At most `limit` wanted entries above the number `after`, oldest or newest first. With the newest first, only
        those below `before`.

        A search reads at most SEARCHED_MAX entries.
        """
        entries: list[AuditEntry] = []
        looked_at, last = 0, after
        at_once = limit if wanted == Wanted() else READ_LIMIT_MAX
        async for entry in self.newest(SEARCHED_MAX, after, before) if newest else self._oldest(after, at_once):
            looked_at, last = looked_at + 1, entry.number
            if wanted.has(entry):
                entries.append(entry)
            if len(entries) == limit:
                break
        else:
            if looked_at < SEARCHED_MAX:
                return AuditPage(entries, None)
        return AuditPage(entries, None, last) if newest else AuditPage(entries, last)

    async def _oldest(self, after: int, at_once: int) -> AsyncIterator[AuditEntry]:
        """The entries above the number `after`, at most SEARCHED_MAX, oldest first."""
        for _ in range(0, SEARCHED_MAX, at_once):
            entries = await self.read(after, at_once)
            for entry in entries:
                yield entry
            if len(entries) < at_once:
                return
            after = entries[-1].number

    async def newest(self, count: int, after: int = 0, before: int | None = None) -> AsyncIterator[AuditEntry]:
        """The newest entries above the number `after` and below `before`, at most `count`, newest first."""
        async for number, fields in self._backwards(count, READ_LIMIT_MAX, after, before):
            yield _entry(number, fields)

    async def naming(self, name: str, searched_max: int) -> AsyncIterator[AuditEntry]:
        """Entries on the object `name`, or with it as a key or a text in `before` or `after`, newest first. Only the
        newest `searched_max` entries are searched, and only matches are decoded."""
        async for number, fields in self._backwards(searched_max, SEARCHED_AT_ONCE_MAX):
            if _names(fields, name):
                yield _entry(number, fields)

    async def _backwards(
        self, count: int, at_once: int, after: int = 0, below: int | None = None
    ) -> AsyncIterator[tuple[Any, Any]]:
        """The stored entries above the number `after`, newest first, at most `count`, `at_once` with one command."""
        remaining, before, least = count, "+" if below is None else f"({below}-0", f"{after + 1}-0"
        while remaining > 0:
            batch_size = min(remaining, at_once)
            rows: Any = await self._redis.xrevrange(STREAM, max=before, min=least, count=batch_size)
            for row in rows:
                yield row
            if len(rows) < batch_size:
                return
            remaining -= len(rows)
            before = f"({_text(rows[-1][0])}"

    async def _last(self) -> AuditEntry | None:
        rows: Any = await self._redis.xrevrange(STREAM, count=1)
        return _entry(*rows[0]) if rows else None

    async def _add(self, entry: AuditEntry) -> bool:
        """Write the entry at its number. False if the stream is already past it with another entry."""
        fields: dict[Any, Any] = {**_fields(entry)}
        try:
            await self._redis.xadd(STREAM, fields, id=f"{entry.number}-0")
        except ResponseError as error:
            if REFUSED_ID not in str(error):
                raise
            # The client sends a command again after a broken connection: the entry there may be this one.
            there = await self.read(entry.number - 1, 1)
            return bool(there) and there[0].digest == entry.digest
        return True

    async def _add_and_remove(self, entry: AuditEntry, key: str, name: str, written: bytes | str) -> bool:
        """Write the entry of a draft at its number. False if the stream is already past it, or the draft is gone."""
        fields = [text for field in _fields(entry).items() for text in field]
        script = self._redis.register_script(ENTER)
        try:
            return bool(await script(keys=[STREAM, key], args=[f"{entry.number}-0", name, written, *fields]))
        except ResponseError as error:
            if REFUSED_ID not in str(error):
                raise
            return False


def verify(entries: Sequence[AuditEntry]) -> int | None:
    """The index of the first entry that was altered or does not continue the chain; None if all are right.

    If the first entry's number is above 1, its `previous` is taken as given.
    """
    number, previous = 0, BEFORE_THE_FIRST
    for index, entry in enumerate(entries):
        if index == 0 and entry.number > 1:
            number, previous = entry.number - 1, entry.previous
        if entry.number != number + 1 or entry.previous != previous or entry.digest != _digest(entry):
            return index
        number, previous = entry.number, entry.digest
    return None


def _conflict(entry: AuditEntry) -> AuditConflict:
    return AuditConflict(
        f"{STREAM} does not take entry {entry.number}. Try again; if that changes nothing, entries were "
        "removed from its end: export it and compare it with an earlier export."
    )


def _sealed(entry: AuditEntry, last: AuditEntry | None) -> AuditEntry:
    number, previous = (last.number, last.digest) if last else (0, BEFORE_THE_FIRST)
    placed = replace(entry, number=number + 1, previous=previous)
    return replace(placed, digest=_digest(placed))


def _digest(entry: AuditEntry) -> str:
    sealed = [str(entry.number), *(value for name, value in _fields(entry).items() if name != "digest")]
    return hashlib.sha256(_json(sealed).encode()).hexdigest()


def _fields(entry: AuditEntry) -> dict[str, str]:
    return {
        "at": repr(entry.at),
        "actor": entry.actor,
        "action": entry.action,
        "object": entry.object,
        "before": _json(entry.before),
        "after": _json(entry.after),
        "evidence": _json(entry.evidence),
        "generation": _json(entry.generation),
        "previous": entry.previous,
        "digest": entry.digest,
    }


def _entry(stream_id: bytes | str, stored: Mapping[bytes | str, bytes | str]) -> AuditEntry:
    """The entry as stored. A value that someone altered into unreadable JSON stays a text, so the digest does not
    match."""
    fields = {_text(name): _text(value) for name, value in stored.items()}
    texts: dict[str, Any] = {name: fields.get(name, "") for name in ("actor", "action", "object", "previous", "digest")}
    values = {name: _parsed(fields.get(name, "")) for name in ("at", "before", "after", "evidence", "generation")}
    if not isinstance(values["at"], float):
        values["at"] = float("nan")
    return AuditEntry(number=int(_text(stream_id).partition("-")[0]), **texts, **values)


def _names(stored: Mapping[bytes | str, bytes | str], name: str) -> bool:
    """True if a stored entry is on the object `name`, or has it as a key or a text in `before` or `after`."""
    fields = {_text(field): value for field, value in stored.items()}
    if _text(fields.get("object", "")) == name:
        return True
    quoted = _json(name)
    return any(quoted in _text(fields.get(field, "")) for field in ("before", "after"))


def _as_read(name: str, value: Any) -> Any:
    """The value as it will be read back, so that an entry is the same before and after Redis."""
    try:
        text = _json(value, nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name} can't be audited, since it is not JSON: {error}.") from error
    return json.loads(text) if len(text) <= VALUE_BYTES_MAX else _shortened(json.loads(text), text)


def _shortened(value: Any, text: str) -> Any:
    """The digest of a value that is too long; for an object, only the digests of its long members if that suffices. A
    `reason`, which a person gave, stays whole if it fits."""
    if not isinstance(value, dict):
        return digest_of(text)
    reason = {name: value[name] for name in ("reason",) if name in value}
    members = {name: _json(member) for name, member in value.items()}
    short = {
        name: value[name] if len(member) <= MEMBER_BYTES_MAX else digest_of(member) for name, member in members.items()
    } | reason
    choices = (short, digest_of(text) | reason)
    return next((each for each in choices if len(_json(each)) <= VALUE_BYTES_MAX), digest_of(text))


def digest_of(text: str) -> dict[str, Any]:
    """The audited form of a value that is too long. `text` is its JSON, with sorted keys and without spaces."""
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "bytes": len(text)}


def _json(value: Any, nan: bool = True) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=nan)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _text(value: bytes | str) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
