"""Requests to retrain adapters, as they stand in Redis: one object a request, its examples apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Set
from typing import Any

import msgspec
from redis.asyncio import Redis

from monitoring.ids import SHAPE, read_time
from monitoring.quality.verdicts.retraining import RETRAININGS_MAX, Example, Retraining, close_request
from serving.object_store import Change, LenientReader, ObjectStore, change_together

DAY_SECONDS = 86_400


def id_of(task: str, action: str, at: float) -> str:
    """The id of what an action on a task opens, which it did at that time: always the same, and it sorts likewise."""
    digest = hashlib.blake2b(f"{task}\n{action}".encode(), digest_size=4).hexdigest()
    return f"{int(at * 1000):012x}{digest}"


class RetrainingStore:
    """The object store `retraining`, and each request's examples. Every method raises RedisError.

    An example is kept until its request is `retention_seconds` old, as long as that may be judged: those of the
    requests of one day stand together, and go together once the oldest of them is so old.
    """

    def __init__(self, redis: Redis, retention_seconds: float) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._retention_ms = int(retention_seconds * 1000)
        self.object_store = ObjectStore(redis, "retraining")
        self._reader = LenientReader()

    async def all(self) -> list[Retraining]:
        """All that are kept and can be read, the newest first; of the others it is logged once."""
        return await self._reader.read_all(self.object_store, "the request to train", Retraining)

    async def get(self, name: str) -> tuple[Retraining | None, int]:
        """One request (None: there is none, or no more), and its generation, which is never newer.

        Raises Unreadable where it can't be read.
        """
        return await self.object_store.fetch(name, lambda raw: msgspec.convert(raw, Retraining))

    async def examples(self, name: str) -> list[Example]:
        """The examples of a request that are kept still and can be read, the newest first."""
        days = await self._days(name)
        examples: list[Example] = []
        keys = [_examples_key(name, day) for day in days]
        for key, raw in zip(keys, await self._redis.mget(keys) if days else (), strict=True):
            examples += self._reader.read(key, raw, list[Example]) or []
        return sorted(examples, key=lambda example: -example.at)

    async def keep(self, name: str, examples: Sequence[Example]) -> None:
        """Keep the examples of a request."""
        days: dict[int, list[Example]] = {}
        for example in examples:
            days.setdefault(int(_asked_at(example) // DAY_SECONDS), []).append(example)
        ends = {day: int(min(map(_asked_at, of_day)) * 1000) + self._retention_ms for day, of_day in days.items()}
        if not days:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(_examples_key(name), msgspec.json.encode(sorted(days)), pxat=max(ends.values()))
            for day, of_day in days.items():
                pipe.set(_examples_key(name, day), msgspec.json.encode(of_day), pxat=ends[day])
            await pipe.execute()

    async def _days(self, name: str) -> list[int]:
        """The days, counted from 1970, of whose requests there are examples, or were."""
        raw = await self._redis.get(_examples_key(name))
        return self._reader.read(_examples_key(name), raw, list[int]) or []

    async def open(self, retraining: Retraining) -> int:
        """Enter a new request, and forget the oldest of more than are kept; its generation."""
        generation = await change_together(self._redis, [self.change(retraining, 0)])
        await self.tidy()
        return generation

    async def close(self, name: str, by: str, at: float, expected_generation: int | None = None) -> Retraining:
        """Close a request. Raises KeyError where there is none, and Stale where it has moved on."""
        retraining, generation = await self.get(name)
        if retraining is None:
            raise KeyError(name)
        after = close_request(retraining, by, at)
        await change_together(
            self._redis, [self.change(after, generation if expected_generation is None else expected_generation)]
        )
        return after

    def change(self, retraining: Retraining, expected_generation: int | None = None) -> Change:
        """A request's new value as a part of a greater step."""
        return Change(self.object_store, retraining.id, msgspec.to_builtins(retraining), expected_generation)

    async def tidy(self) -> None:
        """Forget the oldest of more requests than are kept, those that are closed first."""
        ordered = sorted(await self.all(), key=lambda each: (each.state == "closed", -each.opened_at))
        over = ordered[RETRAININGS_MAX:]
        await self.object_store.forget([retraining.id for retraining in over])
        for retraining in over:
            await self.forget_examples(retraining.id)

    async def forget_examples(self, name: str) -> None:
        """Delete the examples of a request that is gone, or was never opened."""
        days = await self._days(name)
        await self._redis.delete(_examples_key(name), *(_examples_key(name, day) for day in days))

    async def forget_requests(self, requests: Set[str]) -> int:
        """Delete the examples that are one of these requests; their number."""
        gone = 0
        for retraining in await self.all():
            for day in await self._days(retraining.id):
                key = _examples_key(retraining.id, day)
                examples = self._reader.read(key, await self._redis.get(key), list[Example]) or []
                rest = [example for example in examples if example.request_id not in requests]
                if len(rest) < len(examples):
                    await self._redis.set(key, msgspec.json.encode(rest), xx=True, keepttl=True)
                    gone += len(examples) - len(rest)
        return gone


def _asked_at(example: Example) -> float:
    """The time of its request, in Unix seconds; that of its judgement where its id does not tell."""
    return read_time(example.request_id) if SHAPE.fullmatch(example.request_id) else example.at


def _examples_key(name: str, day: int | None = None) -> str:
    """The key of the examples of one day; without a day, that of the list of days."""
    return f"apprentice:retraining:{name}:examples" + ("" if day is None else f":{day}")
