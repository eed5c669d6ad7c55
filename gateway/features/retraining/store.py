"""Requests to retrain adapters in Redis: one object for each request, and its examples under other keys."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence, Set

import msgspec
from redis.asyncio import Redis

from gateway.state.redis import replace_value
from monitoring.evaluation.erasure import find_forgotten
from monitoring.ids import SHAPE, read_time
from monitoring.quality.verdicts.retraining import EXAMPLE_WORDS, RETRAININGS_MAX, Example, Retraining
from monitoring.texts import FORGOTTEN_KEY, Resealing, Seals
from monitoring.time_units import DAY_SECONDS
from serving.object_store import Change, StructStore, change_together

SCANNED_AT_ONCE = 500


def id_of(task: str, action: str, at: float) -> str:
    """The id of the request that an action on a task opens: the same at each call, and ids sort by time."""
    digest = hashlib.blake2b(f"{task}\n{action}".encode(), digest_size=4).hexdigest()
    return f"{int(at * 1000):012x}{digest}"


class RetrainingStore(StructStore[Retraining]):
    """The object store `retraining`, and each request's examples. Every method raises RedisError.

    An example is stored until its request is `retention_seconds` old, and so can't be judged any more. Examples of
    requests of one day are stored together, and deleted together when the oldest request has that age.
    """

    def __init__(
        self, redis: Redis, retention_seconds: float, seals: Callable[[], Seals] = lambda: Seals({}, None)
    ) -> None:
        """`seals` gives the present keys of texts."""
        super().__init__(redis, "retraining", Retraining, "the request to train")
        self._seals = seals
        self._retention_ms = int(retention_seconds * 1000)

    async def examples(self, name: str) -> list[Example]:
        """The readable examples of a request that are still stored, the newest first."""
        days = await self._days(name)
        examples: list[Example] = []
        keys = [_examples_key(name, day) for day in days]
        for key, raw in zip(keys, await self._redis.mget(keys) if days else (), strict=True):
            examples += self._reader.read(key, raw, list[Example]) or []
        seals = self._seals()
        opened = [seals.read_words(example, example.request_id, EXAMPLE_WORDS) for example in examples]
        return sorted(opened, key=lambda example: -example.at)

    async def keep(self, name: str, examples: Sequence[Example]) -> None:
        """Store the examples of a request, without those of erased requests. A later erasure finds them."""
        days, seals = dict[int, list[Example]](), self._seals()
        for example in examples:
            closed = seals.close_words(example, example.request_id, EXAMPLE_WORDS)
            days.setdefault(int(_asked_at(example) // DAY_SECONDS), []).append(closed)
        ends = {day: int(min(map(_asked_at, of_day)) * 1000) + self._retention_ms for day, of_day in days.items()}
        if not days:
            return
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.set(_examples_key(name), msgspec.json.encode(sorted(days)), pxat=max(ends.values()))
            for day, of_day in days.items():
                pipe.set(_examples_key(name, day), msgspec.json.encode(of_day), pxat=ends[day])
            await pipe.execute()
        requests = [example.request_id for example in examples]
        marks = await self._redis.mget([FORGOTTEN_KEY + request for request in requests])
        if erased := find_forgotten(requests, marks):  # erased while the examples were read
            await self.forget_requests(erased, name)

    async def _days(self, name: str) -> list[int]:
        """The days (counted from 1970) whose requests have or had examples."""
        raw = await self._redis.get(_examples_key(name))
        return self._reader.read(_examples_key(name), raw, list[int]) or []

    async def open(self, retraining: Retraining) -> int:
        """Enter a new request, and delete the oldest ones over the limit. Return its generation."""
        generation = await change_together(self._redis, [self.change(retraining, 0)])
        await self.tidy()
        return generation

    def change(self, retraining: Retraining, expected_generation: int | None = None) -> Change:
        """A request's new value as a part of a greater step."""
        return Change(self.object_store, retraining.id, msgspec.to_builtins(retraining), expected_generation)

    async def tidy(self) -> None:
        """Delete the oldest requests over the limit, closed ones first."""
        ordered = sorted(await self.all(), key=lambda each: (each.state == "closed", -each.opened_at))
        over = ordered[RETRAININGS_MAX:]
        await self.object_store.forget([retraining.id for retraining in over])
        for retraining in over:
            await self.forget_examples(retraining.id)

    async def forget_examples(self, name: str) -> None:
        """Delete the examples of a request that was deleted, or never opened."""
        days = await self._days(name)
        await self._redis.delete(_examples_key(name), *(_examples_key(name, day) for day in days))

    async def forget_requests(self, requests: Set[str], name: str = "*") -> int:
        """Delete the examples from these requests, in all requests to train or in one. Return their number."""
        return await self._change_each(lambda example: None if example.request_id in requests else example, name)

    async def reseal(self, resealing: Resealing) -> None:
        """Seal all examples under the present key, if their former key is known."""
        seals = self._seals()
        reseal = lambda example: seals.reseal_words(example, example.request_id, EXAMPLE_WORDS)  # noqa: E731
        await self._change_each(lambda example: resealing.change(example, reseal))

    async def _change_each(self, change: Callable[[Example], Example | None], name: str = "*") -> int:
        """Replace each example by the result of `change`, or delete it (None). Return the number of changed ones. It
        tries again if another gateway has changed examples meanwhile. Their requests may not be opened yet."""
        changed = 0
        pattern = f"{_examples_key(name)}:*"
        for key in {key.decode() async for key in self._redis.scan_iter(pattern, SCANNED_AT_ONCE)}:
            while True:
                raw = await self._redis.get(key)
                examples = self._reader.read(key, raw, list[Example]) or []
                after = [(example, change(example)) for example in examples]
                count = sum(new is not example for example, new in after)
                rest = msgspec.json.encode([new for _, new in after if new is not None])
                if not count or await replace_value(self._redis, key, raw, rest):
                    break
            changed += count
        return changed


def _asked_at(example: Example) -> float:
    """The time of an example's request, in Unix seconds; of its judgement if the request's id holds no time."""
    return read_time(example.request_id) if SHAPE.fullmatch(example.request_id) else example.at


def _examples_key(name: str, day: int | None = None) -> str:
    """The key of the examples of one day; without a day, the key of the list of days."""
    return f"apprentice:retraining:{name}:examples" + ("" if day is None else f":{day}")
