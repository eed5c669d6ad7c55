"""The settings of admins at runtime: named objects in Redis, each with its own generation.

Gateways of several releases may share them. This gateway skips an object that a newer release wrote and that it can't
read. It still reads the others, and never overwrites the unreadable one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import msgspec
from redis.asyncio import Redis

log = logging.getLogger(__name__)
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""Errors of reading JSON that is damaged, or was written by another release."""
GENERATION_KEY = "apprentice:generation"
CHANGED_CHANNEL = "apprentice:changed"
CHANGES_KEY = "apprentice:changes"
"""A hash. Under each store's key is a token of its last change; under STEPS, the number of steps that left a token.

A release that does not know the hash only raises the generation, so the difference of both numbers shows its steps.
Under a key with NAMES are the last changes: token, name and a NUL for each object, the latest first, up to some length.
"""
STEPS = "steps"
NAMES = ":names"
TOKEN_BYTES = 8
TOKEN_LENGTH = 2 * TOKEN_BYTES
KEEP = b"keep"
FORGET = b"forget"
CONVERTING_SECONDS_MAX = 0.0005
"""Time that a mirror converts objects before it yields to the event loop; the last one may take longer."""
READ_AT_ONCE = 100
"""Approximate number of objects that are read from Redis in one go."""
T = TypeVar("T")
Mark = tuple[int, bytes | None]
"""The number of steps of releases that leave no tokens, and the token of a store's last change."""
Marks = Mapping[str, Mark]
"""The marks of one moment, by the kind of object."""

_NOTE = """
local function note(changes, key, token, changed)
  key = string.gsub(key, '[{}]', '')  -- as it is named without a Cluster
  local names = redis.call('HGET', changes, key .. ':names') or ''
  if string.sub(names, 1, #token) ~= redis.call('HGET', changes, key) then names = '' end
  redis.call('HSET', changes, key, token, key .. ':names', string.sub(changed .. names, 1, 16384))
end
"""
CHANGE = (
    _NOTE
    + """
local count = #KEYS - 2
local changes = KEYS[count + 1]
local token = ARGV[#ARGV - 1]
for i = 1, count, 2 do  -- sent again, since the answer was lost with its connection
  local n = (i - 1) / 2 * 3
  if ARGV[n + 3] ~= 'keep' then  -- the first change tells it for all
    local names = redis.call('HGET', changes, string.gsub(KEYS[i], '[{}]', '') .. ':names') or ''
    if not string.find(names, token, 1, true) then break end
    return {1, 0, ARGV[n + 2] ~= '' and ARGV[n + 2] + 1 or redis.call('HGET', KEYS[i + 1], ARGV[n + 1]) or 0}
  end
end
for i = 1, count, 2 do
  local n = (i - 1) / 2 * 3
  local have = tonumber(redis.call('HGET', KEYS[i + 1], ARGV[n + 1]) or '0')
  if ARGV[n + 2] ~= '' and tonumber(ARGV[n + 2]) ~= have then return {0, (i + 1) / 2, have} end
end
local first
local changed = {}
for i = 1, count, 2 do
  local n = (i - 1) / 2 * 3
  if ARGV[n + 3] ~= 'keep' then
    local now = 0
    if ARGV[n + 3] == 'forget' then
      redis.call('HDEL', KEYS[i + 1], ARGV[n + 1])
    else
      now = redis.call('HINCRBY', KEYS[i + 1], ARGV[n + 1], 1)
    end
    if ARGV[n + 3] == '' or ARGV[n + 3] == 'forget' then
      redis.call('HDEL', KEYS[i], ARGV[n + 1])
    else
      redis.call('HSET', KEYS[i], ARGV[n + 1], ARGV[n + 3])
    end
    changed[KEYS[i]] = token .. ARGV[n + 1] .. '\0' .. (changed[KEYS[i]] or '')
    first = first or now
  end
end
for i = 1, count, 2 do
  local key = KEYS[i]
  if changed[key] then
    note(changes, key, token, changed[key])
    changed[key] = nil
  end
end
redis.call('HINCRBY', changes, 'steps', 1)
redis.call('PUBLISH', ARGV[#ARGV], redis.call('INCR', KEYS[#KEYS]))
return {1, 0, first}
"""
)
NOTE = _NOTE + "note(KEYS[1], ARGV[1], ARGV[2], ARGV[3])"


class Unreadable(msgspec.ValidationError):
    """The object is damaged, or a newer release wrote it. This release can't read it, and does not change it."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(
            f"{name[:80]} of the {kind} can't be read here: a newer release has written it, or it is damaged. "
            "Ask a gateway of that release."
        )


@contextmanager
def guard_read(kind: str, name: str) -> Iterator[None]:
    """Translate the errors in UNREADABLE into Unreadable."""
    try:
        yield
    except UNREADABLE as error:
        raise Unreadable(kind, name) from error


class Stale(Exception):
    """The object has changed: `generation` is its present one. Read it again, then decide again."""

    def __init__(self, name: str, generation: int, expected: bool = True) -> None:
        """`expected`: the caller expected another generation. If False, the object only changed at this moment."""
        super().__init__(f"{name} is at generation {generation}, not at the one expected: read it and try again.")
        self.name = name
        self.generation = generation
        self.expected = expected


@dataclass(frozen=True, slots=True)
class Change:
    """One object's new value (None: remove it), and the generation that it must have now (None: any).

    `forgets`: the generation of a removed object is deleted, too.
    """

    object_store: ObjectStore
    name: str
    value: dict[str, Any] | None
    expected_generation: int | None = None
    forgets: bool = False


@dataclass(frozen=True, slots=True)
class Unchanged:
    """One object that must be at this generation for a step to be taken. The step does not change it."""

    object_store: ObjectStore
    name: str
    expected_generation: int


async def change_together(redis: Redis, changes: Sequence[Change | Unchanged]) -> int:
    """Make all changes in one atomic step, or none. Returns the new generation of the first object.

    It also raises the generation of the whole state and informs all gateways. Raises Stale for the first object that is
    not at its expected generation, and Unreadable for an existing object that can't be read.
    """
    while True:
        expected = await _seen(redis, changes)
        try:
            return await _changed(redis, changes, expected)
        except Stale as stale:
            if stale.expected:
                raise  # otherwise it changed just after it was read


async def _seen(redis: Redis, changes: Sequence[Change | Unchanged]) -> list[int | None]:
    """The generation that each object must have: the expected one, or else the one at which it can be read now.

    Raises Unreadable.
    """
    looked_at = [(at, change) for at, change in enumerate(changes) if change.object_store.reads is not None]
    async with redis.pipeline(transaction=True) as pipe:
        for _, change in looked_at:
            pipe.hget(change.object_store.values, change.name)
            pipe.hget(change.object_store.generation_names, change.name)
        replies: list[bytes | None] = await pipe.execute() if looked_at else []
    expected = [change.expected_generation for change in changes]
    since = time.monotonic()
    for (at, change), raw, generation in zip(looked_at, replies[::2], replies[1::2], strict=True):
        now = int(generation or 0)
        if expected[at] not in (None, now):
            continue  # it is stale, which the script reports
        expected[at] = now
        if raw is not None:
            change.object_store.see_that_it_can_be_read(change.name, raw)
        if time.monotonic() - since >= CONVERTING_SECONDS_MAX:
            await asyncio.sleep(0)
            since = time.monotonic()
    return expected


async def _changed(redis: Redis, changes: Sequence[Change | Unchanged], generations: Sequence[int | None]) -> int:
    keys: list[str] = []
    args: list[str | bytes | int] = []
    for change, expected in zip(changes, generations, strict=True):
        keys += [change.object_store.values, change.object_store.generation_names]
        args += [change.name, "" if expected is None else expected, _written(change)]
    script = redis.register_script(CHANGE)
    keys += [CHANGES_KEY, GENERATION_KEY]
    args += [secrets.token_hex(TOKEN_BYTES), CHANGED_CHANNEL]
    done, at_fault, generation = await script(keys=keys, args=args)
    if not done:
        wrong = changes[at_fault - 1]
        raise Stale(wrong.name, generation, wrong.expected_generation is not None)
    return int(generation)


def _written(change: Change | Unchanged) -> bytes:
    """The script's argument: a value, empty bytes (remove it), FORGET or KEEP."""
    if isinstance(change, Unchanged):
        return KEEP
    if change.forgets:
        return FORGET
    return b"" if change.value is None else msgspec.json.encode(change.value)


async def read_marks(redis: Any, kinds: Sequence[str]) -> Marks:
    """Read the present marks of several stores with one look. Raises RedisError."""
    pipe = redis.pipeline(transaction=False).get(GENERATION_KEY)
    generation, (steps, *tokens) = await pipe.hmget(CHANGES_KEY, STEPS, *map(_key_of_values, kinds)).execute()
    untold = int(generation or 0) - int(steps or 0)
    return {kind: (untold, token) for kind, token in zip(kinds, tokens, strict=True)}


def _key_of_values(kind: str) -> str:
    return f"apprentice:{kind}"


class ObjectStore:
    """One kind of object (versions, aliases, overrides, callers) by name. Values are JSON objects.

    `values` and `generation_names` are the Redis keys of the objects and of their generations. `reads` makes an object
    of a name and a value, or raises an error in UNREADABLE; then the object is never overwritten. Without `reads`, any
    object may be overwritten.
    """

    def __init__(self, redis: Redis, kind: str, reads: Callable[[str, dict[str, Any]], object] | None = None) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.kind = kind
        self.reads = reads
        self.values = _key_of_values(kind)
        self.generation_names = f"apprentice:{kind}:generations"

    def see_that_it_can_be_read(self, name: str, raw: bytes) -> None:
        """Raise Unreadable if this release can't read the value of a name."""
        if self.reads is not None:
            with guard_read(self.kind, name):
                self.reads(name, msgspec.json.decode(raw, type=dict[str, Any]))

    async def all(self) -> dict[str, dict[str, Any]]:
        """All objects by name, without damaged ones."""
        objects: dict[str, dict[str, Any]] = {}
        for name, value in (await self.written()).items():
            with suppress(*UNREADABLE):
                objects[name] = msgspec.json.decode(value, type=dict[str, Any])
        return objects

    async def written(self, names: Collection[str] | None = None) -> dict[str, bytes]:
        """The JSON of these objects, or of all (None), by name, as Redis has it. A change at the same time may be in it
        or not."""
        return await self._fields(self.values, names)

    async def generations(self, names: Collection[str] | None = None) -> dict[str, int]:
        """The generation of these objects, or of all that ever existed (None), without damaged ones. A change at the
        same time may be in it or not."""
        fields = await self._fields(self.generation_names, names)
        return {name: int(value) for name, value in fields.items() if value.isdigit()}

    async def _fields(self, key: str, names: Collection[str] | None) -> dict[str, bytes]:
        if names is not None:
            values = await self._redis.hmget(key, list(names)) if names else []
            return {name: value for name, value in zip(names, values, strict=True) if value is not None}
        fields: dict[str, bytes] = {}
        async for some in self.in_parts(key):
            fields.update((_name(name), value) for name, value in some.items())
        return fields

    async def changes_since(
        self, mark: Mark | None, present_marks: Marks | None = None
    ) -> tuple[Mark, Collection[str] | None]:
        """A mark of this moment, or of `present_marks`, and the names of objects changed since an earlier mark.

        None instead of the names means that they are unknown. A release that leaves no tokens changed something, Redis
        lost something, or the earlier mark is too old.
        """
        present = (present_marks or await read_marks(self._redis, [self.kind]))[self.kind]
        untold, token = present
        if mark is None or token is None or untold != mark[0]:
            return present, () if present == mark else None
        if present == mark:
            return present, ()
        names = await self._redis.hget(CHANGES_KEY, self.values + NAMES) or b""
        latest = [(entry[:TOKEN_LENGTH], entry[TOKEN_LENGTH:]) for entry in names.split(b"\0")[:-1]]
        tokens = [each for each, _ in latest]
        if token not in tokens or mark[1] not in tokens:
            return present, None
        return (untold, tokens[0]), {_name(name) for _, name in latest[: tokens.index(mark[1])]}

    async def generation(self, name: str) -> int:
        """The generation of one object; 0 if it never existed. Raises Unreadable if it is damaged."""
        value = await self._redis.hget(self.generation_names, name)
        if value is not None and not value.isdigit():
            raise Unreadable(self.kind, name)
        return int(value or 0)

    async def in_parts(self, key: str) -> AsyncIterator[dict[bytes, bytes]]:
        """Read a hash part by part: reading one large answer would block the event loop."""
        cursor = -1
        while cursor:
            cursor, some = await self._redis.hscan(key, max(cursor, 0), count=READ_AT_ONCE)
            yield some

    async def get(self, name: str) -> dict[str, Any] | None:
        """One object, or None. Raises Unreadable if it is damaged."""
        raw = await self._redis.hget(self.values, name)
        with guard_read(self.kind, name):
            return None if raw is None else msgspec.json.decode(raw, type=dict[str, Any])

    async def fetch(self, name: str, make: Callable[[dict[str, Any]], T]) -> tuple[T | None, int]:
        """The result of `make` for one object (None: it does not exist), and its generation, which is never newer.

        Raises Unreadable if it can't be read.
        """
        generation = await self.generation(name)
        with guard_read(self.kind, name):
            raw = await self.get(name)
            return (None if raw is None else make(raw)), generation

    async def put(self, name: str, value: dict[str, Any], expected_generation: int | None = None) -> int:
        """Set an object and return its new generation. An object that never existed has generation 0.

        Raises Stale if `expected_generation` is given and is not the present one, and Unreadable if the present object
        can't be read; nothing has changed then.
        """
        return await change_together(self._redis, [Change(self, name, value, expected_generation)])

    async def delete(self, name: str, expected_generation: int | None = None) -> int:
        """Remove an object; its generation rises and stays. Raises Stale and Unreadable as `put` does."""
        return await change_together(self._redis, [Change(self, name, None, expected_generation)])

    async def note_changes(self, names: Collection[str], pipe: Any) -> None:
        """Have a pipeline record that it changes these objects without their generations. A mirror sees it at its next
        look, but gateways are not informed."""
        token = secrets.token_hex(TOKEN_BYTES)
        changed = "".join(f"{token}{name}\0" for name in names)
        await self._redis.register_script(NOTE)(keys=[CHANGES_KEY], args=[self.values, token, changed], client=pipe)

    async def forget(self, names: Sequence[str]) -> None:
        """Remove objects and their generations, at any generation: a new object of the name begins at 1."""
        if names:
            await change_together(self._redis, [Change(self, name, None, forgets=True) for name in names])


def _name(raw: bytes) -> str:
    """The name of an object; damaged bytes in it do not prevent the reading of others."""
    return raw.decode(errors="replace")


class LenientReader:
    """Reads JSON values. A value that can't be read counts as missing, and is logged once."""

    def __init__(self) -> None:
        self._unreadable: set[str] = set()

    def read(self, subject: str, raw: bytes | None, kind: type[T]) -> T | None:
        """The value; None if it is missing or can't be read. `subject` names it in the log."""
        try:
            value = None if raw is None else msgspec.json.decode(raw, type=kind)
        except UNREADABLE as error:
            if subject not in self._unreadable:
                self._unreadable.add(subject)
                log.error("%s can't be read: %s", subject, error)
            return None
        self._unreadable.discard(subject)
        return value

    async def read_all(self, object_store: ObjectStore, subject: str, kind: type[T]) -> list[T]:
        """All readable objects of a store, in descending order of their names. Raises RedisError."""
        written = sorted((await object_store.written()).items(), reverse=True)
        values = [self.read(f"{subject} {name}", raw, kind) for name, raw in written]
        return [value for value in values if value is not None]


class StructStore(Generic[T]):
    """An object store of structs of one `kind`. Every method raises RedisError."""

    def __init__(self, redis: Redis, name: str, kind: type[T], subject: str) -> None:
        """`name` is the name of the objects in Redis, `subject` the word for one of them in logs."""
        self.object_store = ObjectStore(redis, name)
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._reader = LenientReader()
        self._kind, self._subject = kind, subject

    async def all(self) -> list[T]:
        """All readable objects, in descending order of their names. Unreadable ones are logged once."""
        return await self._reader.read_all(self.object_store, self._subject, self._kind)

    async def get(self, name: str) -> tuple[T | None, int]:
        """One object (None: it does not exist, or no longer), and its generation, which is never newer.

        Raises Unreadable if it can't be read.
        """
        return await self.object_store.fetch(name, lambda raw: msgspec.convert(raw, self._kind))


class Mirror(Generic[T]):
    """The converted objects of an object store. An unchanged object is the same Python object as at the last reading.

    So nobody may change these objects. `made` makes one of its name and JSON value. An unreadable object is logged
    once, and stays as it was last read. It is left out if `keeps` is False, or if it was never readable.

    Only changed objects are read again: in a large fleet, reading all of them would be most of a change's cost.
    """

    def __init__(self, object_store: ObjectStore, made: Callable[[str, dict[str, Any]], T], keeps: bool = True) -> None:
        self._object_store = object_store
        self._made = made
        self._keeps = keeps
        self._reading = asyncio.Lock()
        """Allows one reading at a time: the mark and the objects of two would not match."""
        self._mark: Mark | None = None
        """The mark before the last reading; changes made during it are read again."""
        self._written: dict[str, bytes] = {}
        self._objects: Mapping[str, T] = MappingProxyType({})
        self._generations: tuple[Mark | None, Mapping[str, int]] = (None, MappingProxyType({}))
        self.unreadable: frozenset[str] = frozenset()
        """The names of objects that could not be read the last time."""

    async def generations(self, present_marks: Marks | None = None) -> Mapping[str, int]:
        """The generation of every object, at least as new as `present_marks`; see ObjectStore.generations."""
        async with self._reading:
            earlier_mark, generations = self._generations
            mark, moved = await self._object_store.changes_since(earlier_mark, present_marks)
            if moved is None or moved:
                others = {name: value for name, value in generations.items() if name not in moved} if moved else {}
                generations = MappingProxyType(others | await self._object_store.generations(moved))
            self._generations = mark, generations
            return generations

    async def all_with_generations(self) -> tuple[Mapping[str, T], Mapping[str, int]]:
        """All objects and generations, with one look if nothing was written. Raises as `all` does."""
        objects, (mark, generations) = await self.all(), self._generations
        return objects, generations if mark is not None and mark == self._mark else await self.generations()

    async def all(self, present_marks: Marks | None = None) -> Mapping[str, T]:
        """All objects by name, at least as new as `present_marks`.

        Returns the same mapping as the last time if nothing was written.

        Raises RedisError, and the errors of `made` that are not in UNREADABLE; the earlier objects are then kept.
        """
        async with self._reading:
            mark, moved = await self._object_store.changes_since(self._mark, present_marks)
            if moved is None or moved:
                await self._read(moved)
            self._mark = mark
            return self._objects

    async def _read(self, moved: Collection[str] | None) -> None:
        """Read the objects with these names again; None: all of them."""
        left = set() if moved is None else self._objects.keys() - moved
        objects = {name: self._objects[name] for name in left}
        all_written = {name: self._written[name] for name in left}
        unreadable = set() if moved is None else set(self.unreadable - set(moved))
        since = time.monotonic()
        for name, written in (await self._object_store.written(moved)).items():
            if self._written.get(name) == written:
                objects[name], all_written[name] = self._objects[name], written
                continue
            try:
                objects[name] = self._made(name, msgspec.json.decode(written, type=dict[str, Any]))
                all_written[name] = written
            except UNREADABLE as error:
                unreadable.add(name)
                self._passed_over(name, error)
                if self._keeps and name in self._objects:
                    objects[name], all_written[name] = self._objects[name], self._written[name]
            if time.monotonic() - since >= CONVERTING_SECONDS_MAX:
                await asyncio.sleep(0)
                since = time.monotonic()
        self._objects, self._written = MappingProxyType(objects), all_written
        self.unreadable = frozenset(unreadable)

    def _passed_over(self, name: str, error: Exception) -> None:
        if name not in self.unreadable:
            becomes = "stays as it was last read" if self._keeps else "is left out"
            log.error("%s of the %s can't be read, and %s: %s", name, self._object_store.kind, becomes, error)
