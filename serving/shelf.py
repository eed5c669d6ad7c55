"""What admins set at runtime: named objects in Redis, each with a generation of its own."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from redis.asyncio import Redis

log = logging.getLogger(__name__)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What reading JSON raises where it is damaged, or was written by another version of the program."""
GENERATION_KEY = "apprentice:generation"
CHANGED_CHANNEL = "apprentice:changed"
KEEP = b"keep"
CONVERTING_SECONDS_MAX = 0.0005
"""How long a mirror converts objects before it lets others have the event loop; the last one may take longer."""
READ_AT_ONCE = 100
"""Objects that are read from Redis in one go, about."""
T = TypeVar("T")

CHANGE = """
local count = #KEYS - 1
for i = 1, count, 2 do
  local n = (i - 1) / 2 * 3
  local have = tonumber(redis.call('HGET', KEYS[i + 1], ARGV[n + 1]) or '0')
  if ARGV[n + 2] ~= '' and tonumber(ARGV[n + 2]) ~= have then return {0, (i + 1) / 2, have} end
end
local first
for i = 1, count, 2 do
  local n = (i - 1) / 2 * 3
  if ARGV[n + 3] ~= 'keep' then
    if ARGV[n + 3] == '' then
      redis.call('HDEL', KEYS[i], ARGV[n + 1])
    else
      redis.call('HSET', KEYS[i], ARGV[n + 1], ARGV[n + 3])
    end
    local now = redis.call('HINCRBY', KEYS[i + 1], ARGV[n + 1], 1)
    first = first or now
  end
end
redis.call('PUBLISH', ARGV[#ARGV], redis.call('INCR', KEYS[#KEYS]))
return {1, 0, first}
"""


class Stale(Exception):
    """The object has moved on: `generation` is where it is now. Read it again, then decide again."""

    def __init__(self, name: str, generation: int) -> None:
        super().__init__(f"{name} is at generation {generation}, not at the one expected: read it and try again.")
        self.name = name
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Change:
    """One object's new value (None: removed), and the generation that it must have now (None: any)."""

    shelf: Shelf
    name: str
    value: dict[str, Any] | None
    expected_generation: int | None = None


@dataclass(frozen=True, slots=True)
class Unchanged:
    """One object that must be at this generation for a step to be taken; it stays as it is."""

    shelf: Shelf
    name: str
    expected_generation: int


async def change_together(redis: Redis, changes: Sequence[Change | Unchanged]) -> int:
    """Make all changes in one atomic step, or none; the new generation of the first object.

    It also raises the generation of the whole state and tells all gateways. Raises Stale for the first object that is
    not at its expected generation.
    """
    keys: list[str] = []
    args: list[str | bytes | int] = []
    for change in changes:
        keys += [change.shelf.values, change.shelf.generation_names]
        expected = "" if change.expected_generation is None else change.expected_generation
        args += [change.name, expected, _written(change)]
    script = redis.register_script(CHANGE)
    done, at_fault, generation = await script(keys=[*keys, GENERATION_KEY], args=[*args, CHANGED_CHANNEL])
    if not done:
        raise Stale(changes[at_fault - 1].name, generation)
    return int(generation)


def _written(change: Change | Unchanged) -> bytes:
    """What the script writes: a value, nothing (it removes), or KEEP."""
    if isinstance(change, Unchanged):
        return KEEP
    return b"" if change.value is None else msgspec.json.encode(change.value)


class Shelf:
    """One kind of object (versions, aliases, overrides, callers) by name. Values are JSON objects.

    `values` and `generation_names` are the keys under which they and their generations stand in Redis.
    """

    def __init__(self, redis: Redis, kind: str) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.values = f"apprentice:{kind}"
        self.generation_names = f"apprentice:{kind}:generations"

    async def all(self) -> dict[str, dict[str, Any]]:
        """Every object by name."""
        return {name: msgspec.json.decode(value) for name, value in (await self.written()).items()}

    async def written(self) -> dict[str, bytes]:
        """Every object's JSON by name, as it stands in Redis; what changes meanwhile may be in it or not."""
        found: dict[str, bytes] = {}
        async for some in self._in_parts(self.values):
            found.update((name.decode(), value) for name, value in some.items())
        return found

    async def generations(self) -> dict[str, int]:
        """The generation of every object that ever stood here; what changes meanwhile may be in it or not."""
        found: dict[str, int] = {}
        async for some in self._in_parts(self.generation_names):
            found.update((name.decode(), int(value)) for name, value in some.items())
        return found

    async def _in_parts(self, key: str) -> AsyncIterator[dict[bytes, bytes]]:
        """A hash, a part after the other: the reading of a large answer would hold the event loop."""
        cursor = -1
        while cursor:
            cursor, some = await self._redis.hscan(key, max(cursor, 0), count=READ_AT_ONCE)
            yield some

    async def get(self, name: str) -> dict[str, Any] | None:
        """One object, or None."""
        raw = await self._redis.hget(self.values, name)
        return None if raw is None else msgspec.json.decode(raw, type=dict[str, Any])

    async def put(self, name: str, value: dict[str, Any], expected_generation: int | None = None) -> int:
        """Set an object and return its new generation. 0 is the generation of one that never was.

        Raises Stale if `expected_generation` is given and is not the present one; nothing has changed then.
        """
        return await change_together(self._redis, [Change(self, name, value, expected_generation)])

    async def delete(self, name: str, expected_generation: int | None = None) -> int:
        """Remove an object; its generation goes on. Raises Stale as `put` does."""
        return await change_together(self._redis, [Change(self, name, None, expected_generation)])


class Mirror(Generic[T]):
    """A shelf's objects, converted; what has not changed since the last reading is the same object as then.

    So they must be such as nobody changes. `made` makes one of its name and JSON value. Where it is `tolerant`, an
    object that can't be read stays as it was last read (left out where it never was), which is logged once.
    """

    def __init__(self, shelf: Shelf, made: Callable[[str, dict[str, Any]], T], tolerant: bool = False) -> None:
        self._shelf = shelf
        self._made = made
        self._tolerant = tolerant
        self._known: dict[str, tuple[bytes, T]] = {}
        self._unreadable: set[str] = set()

    async def all(self) -> dict[str, T]:
        """Every object by name. Raises RedisError; where it is not tolerant what `made` raises, and what was known is
        then still known."""
        known: dict[str, tuple[bytes, T]] = {}
        since = time.monotonic()
        for name, written in (await self._shelf.written()).items():
            before = self._known.get(name)
            if before is not None and before[0] == written:
                known[name] = before
                continue
            try:
                known[name] = written, self._made(name, msgspec.json.decode(written))
                self._unreadable.discard(name)
            except UNREADABLE as error:
                if not self._tolerant:
                    raise
                self._passed_over(name, error)
                if before is not None:
                    known[name] = before
            if time.monotonic() - since >= CONVERTING_SECONDS_MAX:
                await asyncio.sleep(0)
                since = time.monotonic()
        self._known = known
        return {name: value for name, (_, value) in known.items()}

    def _passed_over(self, name: str, error: Exception) -> None:
        if name not in self._unreadable:
            self._unreadable.add(name)
            log.error("%s of %s can't be read, and stays as it was: %s", name, self._shelf.values, error)
