"""Erasures in Redis: the requests whose texts are deleted, and the report. An erasure itself holds no text."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from gateway.state.audited_step import AuditedStep
from monitoring.texts import FORGOTTEN_KEY, NO_END_MS
from serving.object_store import Change, LenientReader, ObjectStore, change_together

WAITING_KEY = "apprentice:erasures:waiting"
ERASURES_MAX = 1_000
MARKED_AT_ONCE = 500
FORGOTTEN_SECONDS = 90 * 86_400
"""Time for which the marks stop a late spool from bringing erased texts back."""


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """One erasure. `of` describes it in words. It covers the ids in `requests`, and the requests of the callers and
    handles in `names` until `at` (Unix seconds). Its figures are set once it is done; until then `error` is the last
    failure. `elsewhere` are gateways whose data sets are in another folder, which was not searched.
    """

    id: str
    at: float
    by: str
    of: str
    requests: list[str] = []
    names: list[str] = []
    state: Literal["waiting", "done"] = "waiting"
    error: str | None = None
    found: int = 0
    texts: int = 0
    reviews: int = 0
    feedback: int = 0
    examples: int = 0
    datasets: list[dict[str, Any]] = []
    suites: list[dict[str, Any]] = []
    evaluated: int = 0
    trained: int = 0
    trainings: list[str] = []
    versions: list[str] = []
    append_only_file: str | None = None
    elsewhere: list[str] = []
    seconds: float = 0.0


class ErasureStore:
    """The object store `erasures`. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._object_store = ObjectStore(redis, "erasures")
        self._reader = LenientReader()

    async def open(self, erasure: Erasure, step: AuditedStep) -> None:
        """Enter a new erasure with its audit entry, and mark the texts that it covers."""
        await self._redis.sadd(WAITING_KEY, erasure.id)
        await step.take([self._change(erasure)])
        await self.mark(erasure)

    async def mark(self, erasure: Erasure) -> None:
        """Mark the names of an erasure, so that none of its texts is stored any more. May be repeated."""
        until_ms = round(erasure.at * 1000)
        marks = [*dict.fromkeys(erasure.requests, NO_END_MS).items(), *dict.fromkeys(erasure.names, until_ms).items()]
        async with self._redis.pipeline(transaction=False) as pipe:
            for at in range(0, len(marks), MARKED_AT_ONCE):
                for name, mark_ms in marks[at : at + MARKED_AT_ONCE]:
                    pipe.set(FORGOTTEN_KEY + name, mark_ms, ex=FORGOTTEN_SECONDS)
                await pipe.execute()

    async def waiting(self) -> list[Erasure]:
        """The erasures to do, the oldest first."""
        ids = sorted(raw.decode() for raw in await self._redis.smembers(WAITING_KEY))
        erasures = [erasure for name in ids if (erasure := await self.get(name)) is not None]
        return [erasure for erasure in erasures if erasure.state == "waiting"]

    async def note(self, erasure: Erasure) -> None:
        """Store the progress of an erasure."""
        await change_together(self._redis, [self._change(erasure)])
        if erasure.state == "done":
            await self._redis.srem(WAITING_KEY, erasure.id)
            over = (await self.all())[ERASURES_MAX:]
            await self._object_store.forget([old.id for old in over if old.state == "done"])

    async def get(self, name: str) -> Erasure | None:
        """One erasure; None if it does not exist, or can't be read."""
        raw = (await self._object_store.written([name])).get(name)
        return self._reader.read(f"the erasure {name[:80]}", raw, Erasure)

    async def all(self) -> list[Erasure]:
        """All readable erasures, the newest first."""
        return await self._reader.read_all(self._object_store, "the erasure", Erasure)

    def _change(self, erasure: Erasure) -> Change:
        return Change(self._object_store, erasure.id, msgspec.to_builtins(erasure))
