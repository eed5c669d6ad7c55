"""Outboxes in Redis: actions that are decided and not yet done.

An entry is written in the same step as its decision, carried out later, and then removed. If a gateway is killed,
another one carries out the entries that it left. An entry that this release can't read stays for a gateway of another
release. It is logged once, and delays no other entry.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import msgspec
from redis.asyncio import Redis

from serving.object_store import UNREADABLE, Change, ObjectStore

log = logging.getLogger(__name__)
T = TypeVar("T")
CLAIM_SECONDS = 30

SETTLE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
for i, key in ipairs(KEYS) do
  local command, field, value = ARGV[3 * i], ARGV[3 * i + 1], ARGV[3 * i + 2]
  if command == 'DEL' then
    redis.call('DEL', key)
  elseif command == 'HDEL' then
    redis.call('HDEL', key, field)
  elseif command == 'HSETNX' or redis.call('HEXISTS', key, field) == 1 then
    redis.call(command, key, field, value)
  end
end
return 1
"""
"""KEYS: the hash of the entry, then others. ARGV: the entry's name, the entry as it was read, and for each key a
command with its field and value. HSET only replaces what is there."""


class Write(NamedTuple):
    """A write to another key in the step that settles an entry: DEL, HDEL, HSETNX, or HSET of an existing field."""

    command: str
    key: str
    field: str | bytes = b""
    value: bytes = b""


class WaitingEntry(msgspec.Struct, Generic[T], frozen=True):
    """A waiting entry. `field` is its name in Redis, `written` its value as read."""

    field: bytes
    written: bytes
    value: T

    @property
    def name(self) -> str:
        """The entry's name as text. Damaged bytes are replaced."""
        return self.field.decode(errors="replace")


class Outbox(ObjectStore, Generic[T]):
    """One kind of waiting entries. Every method except `change` raises RedisError."""

    def __init__(
        self, redis: Redis, kind: str, read: Callable[[bytes], T], encode: Callable[[T], bytes] = msgspec.json.encode
    ) -> None:
        """`read` decodes an entry's value, and raises the errors in UNREADABLE; `encode` does the reverse."""
        super().__init__(redis, kind)
        self._read = read
        self._encode = encode
        self._settle = redis.register_script(SETTLE)
        self._logged: set[bytes] = set()
        """The names of unreadable entries that were logged."""

    def change(self, value: T, name: str | None = None) -> Change:
        """The change that adds an entry in its decision's step, with this name or a random one."""
        return Change(self, name or secrets.token_hex(12), msgspec.to_builtins(value))

    async def read(self) -> tuple[list[WaitingEntry[T]], dict[bytes, Exception]]:
        """The waiting entries, in no order, and the faults of unreadable entries by their names."""
        entries: list[WaitingEntry[T]] = []
        faults: dict[bytes, Exception] = {}
        async for part in self.in_parts(self.values):
            for field, written in part.items():
                try:
                    entries.append(WaitingEntry(field, written, self._read(written)))
                except UNREADABLE as error:
                    faults[field] = error
        return entries, faults

    async def waiting(self) -> list[WaitingEntry[T]]:
        """The waiting entries that can be read, in no order."""
        entries, faults = await self.read()
        for field in faults.keys() - self._logged:
            name, fault = field.decode(errors="replace"), faults[field]
            log.error("%s of the %s can't be understood, and is left for another release: %s", name, self.kind, fault)
        self._logged = set(faults)
        return entries

    async def claim(self, name: str, by: str) -> bool:
        """Claim an entry for CLAIM_SECONDS. Returns False while another gateway has the claim."""
        return bool(await self._redis.set(self.claim_key(name), by, nx=True, ex=CLAIM_SECONDS))

    async def release(self, name: str) -> None:
        """Give a claim back, so that the next gateway can carry out the entry."""
        await self._redis.delete(self.claim_key(name))

    def claim_key(self, name: str) -> str:
        """The key of an entry's claim."""
        return f"apprentice:{self.kind}:claim:{name}"

    async def replace(self, entry: WaitingEntry[T], value: T, *beside: Write) -> WaitingEntry[T] | None:
        """Replace an entry, with the writes `beside` in the same step. None if another gateway was first."""
        written = self._encode(value)
        done = await self._settled(entry, Write("HSET", self.values, entry.field, written), *beside)
        return WaitingEntry(entry.field, written, value) if done else None

    async def finish(self, entry: WaitingEntry[T], *beside: Write) -> bool:
        """Remove a completed entry, with the writes `beside` in the same step.

        Returns False if another gateway was first. Names are never used again, so the generation is removed too.
        """
        gone = [Write("HDEL", key, entry.field) for key in (self.values, self.generation_names)]
        return await self._settled(entry, *gone, *beside)

    async def _settled(self, entry: WaitingEntry[T], *writes: Write) -> bool:
        args = [part for write in writes for part in (write.command, write.field, write.value)]
        return bool(await self._settle(keys=[write.key for write in writes], args=[entry.field, entry.written, *args]))
