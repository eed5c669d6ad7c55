"""What the monitor has found of each task, as it stands in Redis: one object a task, each with its own generation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from monitoring.degradation.health import SUMMARY_KEY, Summary, TaskHealth
from serving.shelf import Change, Shelf, change_together


class HealthStore:
    """The shelf `health`, and the summary of what was judged. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.shelf = Shelf(redis, "health")

    async def of(self, task: str) -> tuple[TaskHealth, int]:
        """A task's health and its generation; 0 where nothing was found yet."""
        generation = (await self.shelf.generations()).get(task, 0)
        raw = await self.shelf.get(task)
        return (TaskHealth() if raw is None else msgspec.convert(raw, TaskHealth)), generation

    async def put(self, task: str, health: TaskHealth, expected_generation: int, beside: Sequence[Change] = ()) -> int:
        """Set it, and in the same step what goes with it; its new generation. Raises Stale where it has moved on."""
        change = Change(self.shelf, task, msgspec.to_builtins(health), expected_generation)
        return await change_together(self._redis, [change, *beside])

    async def summary(self) -> Summary | None:
        """What was judged last; None where nothing ever was."""
        raw = await self._redis.get(SUMMARY_KEY)
        return None if raw is None else msgspec.json.decode(raw, type=Summary)
