"""What the monitor has found of each task, as it stands in Redis: one object a task, each with its own generation.

Beside it the judgements that it rests on: one a version, in a hash of their own, since they move at every label.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from redis.asyncio import Redis

from monitoring.quality.verdicts.quality import (
    JUDGEMENTS_KEY,
    SUMMARY_KEY,
    Judgement,
    Summary,
    TaskQuality,
    read_quality,
)
from serving.object_store import CONVERTING_SECONDS_MAX, UNREADABLE, Change, ObjectStore, change_together, reading

log = logging.getLogger(__name__)
Read = TypeVar("Read", Judgement, Summary)


class Monitored:
    """What was judged last, as far as this gateway knows. Its only mover is the job `follow_judgements`."""

    def __init__(self) -> None:
        self.summary = Summary(at=0.0)


class QualityStore:
    """The object store `health`, and what was judged. Every method raises RedisError.

    A health that can't be read is never written over: `of` raises Unreadable then.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.object_store = ObjectStore(redis, "health")
        self._judged = ObjectStore(
            redis, JUDGEMENTS_KEY.removeprefix("apprentice:")
        )  # read in parts, as an object store is
        self._known: dict[str, tuple[bytes, Judgement]] = {}
        self._unreadable: set[str] = set()

    async def of(self, task: str) -> tuple[TaskQuality, int]:
        """A task's health and its generation; 0 where nothing was found yet."""
        generation = await self.object_store.generation(task)
        with reading("health", task):
            raw = await self.object_store.get(task)
            return (TaskQuality() if raw is None else read_quality(raw)), generation

    async def put(self, task: str, health: TaskQuality, expected_generation: int, beside: Sequence[Change] = ()) -> int:
        """Set it, and in the same step what goes with it; its new generation. Raises Stale where it has moved on."""
        change = Change(self.object_store, task, msgspec.to_builtins(health), expected_generation)
        return await change_together(self._redis, [change, *beside])

    async def told(self) -> Summary | None:
        """When the monitor last judged, without the judgements; None where it never did."""
        raw = await self._redis.get(SUMMARY_KEY)
        return None if raw is None else self._read("the summary", raw, Summary)

    async def judgements(self) -> dict[str, Judgement]:
        """The last judgement of each version; without those that can't be read, which is logged once."""
        return (await self._judgements())[0]

    async def summary(self) -> Summary | None:
        """What was judged last, as a whole; None where nothing ever was. What can't be read is left out and counted."""
        told = await self.told()
        if told is None:
            return None
        found, damaged = await self._judgements()
        return msgspec.structs.replace(told, judgements=found, unreadable=told.unreadable + damaged)

    async def _judgements(self) -> tuple[dict[str, Judgement], int]:
        """Each judgement, and how many can't be read. One that has not changed is the same object as the last time."""
        known: dict[str, tuple[bytes, Judgement]] = {}
        damaged = 0
        since = time.monotonic()
        for name, line in (await self._judged.written()).items():
            before = self._known.get(name)
            if before is not None and before[0] == line:
                known[name] = before
                continue
            one = self._read(f"the judgement of {name!r}", line, Judgement)
            if one is None:
                damaged += 1
            else:
                known[name] = line, one
            if time.monotonic() - since >= CONVERTING_SECONDS_MAX:
                await asyncio.sleep(0)
                since = time.monotonic()
        self._known = known
        return {name: one for name, (_, one) in known.items()}, damaged

    def _read(self, what: str, raw: bytes, kind: type[Read]) -> Read | None:
        """What was written as JSON; None where it can't be read: it is written again with the next judgement."""
        try:
            found = msgspec.json.decode(raw, type=kind)
        except UNREADABLE as error:
            if what not in self._unreadable:
                self._unreadable.add(what)
                log.error("%s can't be read, and is passed over: %s", what, error)
            return None
        self._unreadable.discard(what)
        return found

    async def tell(self, summary: Summary, judged: Mapping[str, Judgement], gone: Collection[str]) -> None:
        """Write down that the monitor has judged: what is new, and the versions of which all is forgotten."""
        async with self._redis.pipeline(transaction=True) as pipe:
            if judged:
                pipe.hset(JUDGEMENTS_KEY, mapping={name: msgspec.json.encode(one) for name, one in judged.items()})
            if gone:
                pipe.hdel(JUDGEMENTS_KEY, *gone)
            pipe.set(SUMMARY_KEY, msgspec.json.encode(summary))
            await pipe.execute()
