"""What admins set at runtime: named objects in Redis, each with a generation of its own."""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis

GENERATION_KEY = "apprentice:generation"
CHANGED_CHANNEL = "apprentice:changed"

PUT = """
local have = tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or '0')
if ARGV[2] ~= '' and tonumber(ARGV[2]) ~= have then return {0, have} end
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
redis.call('HSET', KEYS[2], ARGV[1], have + 1)
redis.call('PUBLISH', ARGV[4], redis.call('INCR', KEYS[3]))
return {1, have + 1}
"""


class Stale(Exception):
    """The object has moved on: `generation` is where it is now. Read it again, then decide again."""

    def __init__(self, name: str, generation: int) -> None:
        super().__init__(f"{name} is at generation {generation}, not at the one expected: read it and try again")
        self.generation = generation


class Shelf:
    """One kind of object (versions, aliases, overrides, callers) by name. Values are JSON objects.

    Every change is one atomic step that also raises the generation of the whole state and tells all gateways.
    """

    def __init__(self, redis: Redis, kind: str) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._values = f"apprentice:{kind}"
        self._generations = f"apprentice:{kind}:generations"
        self._put = redis.register_script(PUT)

    async def all(self) -> dict[str, dict[str, Any]]:
        """Every object by name."""
        raw = await self._redis.hgetall(self._values)
        return {name.decode(): msgspec.json.decode(value) for name, value in raw.items()}

    async def generations(self) -> dict[str, int]:
        """The generation of every object that ever stood here."""
        raw = await self._redis.hgetall(self._generations)
        return {name.decode(): int(value) for name, value in raw.items()}

    async def get(self, name: str) -> dict[str, Any] | None:
        """One object, or None."""
        raw = await self._redis.hget(self._values, name)
        return None if raw is None else msgspec.json.decode(raw, type=dict[str, Any])

    async def put(self, name: str, value: dict[str, Any], expected_generation: int | None = None) -> int:
        """Set an object and return its new generation. 0 is the generation of one that never was.

        Raises Stale if `expected_generation` is given and is not the present one; nothing has changed then.
        """
        return await self._change(name, msgspec.json.encode(value), expected_generation)

    async def delete(self, name: str, expected_generation: int | None = None) -> int:
        """Remove an object; its generation goes on. Raises Stale as `put` does."""
        return await self._change(name, b"", expected_generation)

    async def _change(self, name: str, value: bytes, expected: int | None) -> int:
        done, generation = await self._put(
            keys=[self._values, self._generations, GENERATION_KEY],
            args=[name, "" if expected is None else expected, value, CHANGED_CHANNEL],
        )
        if not done:
            raise Stale(name, generation)
        return int(generation)
