"""The quality of each task in Redis: one object a task, each with its own generation.

The judgements behind it are stored in a separate hash, one for each version, since they change at every label.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from monitoring.quality.verdicts.quality import (
    JUDGEMENTS_KEY,
    SUMMARY_KEY,
    Judgement,
    Summary,
    TaskQuality,
    read_quality,
)
from serving.object_store import Change, LenientReader, Mirror, ObjectStore, change_together

QUALITY_KIND = "health"
"""The former name of quality, which stays in Redis."""


class Monitored:
    """The latest judgements that this gateway has read. Only the job `follow_judgements` changes them."""

    def __init__(self) -> None:
        self.summary = Summary(at=0.0)


class QualityStore:
    """The objects of QUALITY_KIND, and the judgements. Every method raises RedisError.

    A quality that can't be read is never overwritten: `of` raises Unreadable then.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.object_store = ObjectStore(redis, QUALITY_KIND)
        self._judged = ObjectStore(redis, JUDGEMENTS_KEY.removeprefix("apprentice:"))
        self._judgements = Mirror(self._judged, lambda _, raw: msgspec.convert(raw, Judgement), keeps=False)
        self._reader = LenientReader()

    async def of(self, task: str) -> tuple[TaskQuality, int]:
        """A task's quality and its generation; the generation is 0 if none is stored yet."""
        quality, generation = await self.object_store.fetch(task, read_quality)
        return quality or TaskQuality(), generation

    async def put(
        self, task: str, quality: TaskQuality, expected_generation: int, beside: Sequence[Change] = ()
    ) -> int:
        """Set a task's quality, with the changes `beside`, in one step. Returns its new generation. Raises Stale."""
        return await change_together(self._redis, [self.change(task, quality, expected_generation), *beside])

    def change(self, task: str, quality: TaskQuality, expected_generation: int) -> Change:
        """The change that sets a task's quality, for a step with several changes."""
        return Change(self.object_store, task, msgspec.to_builtins(quality), expected_generation)

    async def read_last_summary(self) -> Summary | None:
        """The summary of the monitor's last step, without the judgements; None if there was none."""
        return self._reader.read("the summary", await self._redis.get(SUMMARY_KEY), Summary)

    async def judgements(self) -> Mapping[str, Judgement]:
        """The last judgement of each version, without those that can't be read.

        An unchanged judgement is the same object as the last time.
        """
        return await self._judgements.all()

    async def summary(self) -> Summary | None:
        """The last summary with its judgements; None if nothing was ever judged. Unreadable ones are only counted."""
        summary = await self.read_last_summary()
        if summary is None:
            return None
        judgements = await self.judgements()
        unreadable = summary.unreadable + len(self._judgements.unreadable)
        return replace(summary, judgements=judgements, unreadable=unreadable)

    async def tell(self, summary: Summary, judged: Mapping[str, Judgement], gone: Collection[str]) -> None:
        """Store the monitor's summary and its new judgements, and delete the judgements of versions that are `gone`."""
        async with self._redis.pipeline(transaction=True) as pipe:
            if judged or gone:
                await self._judged.note_changes([*judged, *gone], pipe)
            if judged:
                pipe.hset(
                    JUDGEMENTS_KEY, mapping={name: msgspec.json.encode(judgement) for name, judgement in judged.items()}
                )
            if gone:
                pipe.hdel(JUDGEMENTS_KEY, *gone)
            pipe.set(SUMMARY_KEY, msgspec.json.encode(summary))
            await pipe.execute()
