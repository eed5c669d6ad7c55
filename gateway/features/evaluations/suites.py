"""Suites in Redis, by their digest. Requests and expected answers stay until the suite is removed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from redis.asyncio import Redis

from gateway.features.evaluations.row_batches import read_batches, take_over
from gateway.features.evaluations.store import get_coming_key
from gateway.state.audited_step import AuditedStep
from gateway.state.gate_store import read_suites
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.redis_keys import SUITES_KEY, get_suite_key
from monitoring.evaluation.suites import Suite, kinds_of
from monitoring.ids import DIGEST_START
from monitoring.texts import Seals
from serving.object_store import LenientReader

SUITES_MAX = 50


class NoSuite(Exception):
    """A task has no suite with this name; the message lists the existing ones."""


class SuiteStore:
    """The suites in Redis. Every method raises RedisError."""

    def __init__(self, redis: Redis, seals: Callable[[], Seals] = lambda: Seals({}, None)) -> None:
        """`seals` returns the present keys of texts."""
        self._seals = seals
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._reader = LenientReader()

    async def all(self, task: str | None = None) -> list[Suite]:
        """The suites of a task (None: of all tasks), the newest first."""
        suites = await read_suites(self._redis, task, self._reader)
        return sorted(suites, key=lambda suite: (-suite.created_at, suite.digest))

    async def find(self, task: str, name: str) -> Suite:
        """The one suite of a task with this kind or prefix of its digest, with its present kind. Raises
        NoSuite."""
        added = await self.all(task)
        kinds = kinds_of(added)
        suites = [msgspec.structs.replace(suite, kind=kinds[suite.digest]) for suite in added]
        wanted = name.lower().removeprefix("sha256:")
        fits = [suite for suite in suites if suite.kind == wanted]
        if not fits and DIGEST_START.fullmatch(wanted):
            fits = [suite for suite in suites if suite.digest.startswith(wanted)]
        if len(fits) == 1:
            return fits[0]
        listed = ", ".join(f"{suite.digest[:12]} ({suite.kind})" for suite in fits or suites)
        if fits:
            raise NoSuite(f"{task} has several suites {name[:80]!r}: name one by its digest, of {listed}.")
        has = f"it has {listed}" if listed else "it has none yet: `apprentice suites add` adds one"
        raise NoSuite(f"{task} has no suite {name[:80]!r}: {has}.")

    async def add(self, suite: Suite, coming: str, step: AuditedStep) -> None:
        """Store a suite with the rows of this upload, in one transaction with the entries noted with `step`. Raises
        RowsErased."""
        async with take_over(self._redis, get_coming_key(coming), suite.rows) as all_of_it:
            all_of_it.rename(get_coming_key(coming), get_suite_key(suite.task, suite.digest))
            all_of_it.persist(get_suite_key(suite.task, suite.digest))
            all_of_it.hset(SUITES_KEY, f"{suite.task}/{suite.digest}", msgspec.json.encode(suite))
            step.write_into(all_of_it)
        await step.enter()

    async def remove(self, suite: Suite, step: AuditedStep) -> None:
        """Delete a suite and its rows, in one transaction with the entries noted with `step`."""
        async with self._redis.pipeline(transaction=True) as all_of_it:
            all_of_it.unlink(get_suite_key(suite.task, suite.digest))
            all_of_it.hdel(SUITES_KEY, f"{suite.task}/{suite.digest}")
            step.write_into(all_of_it)
            await all_of_it.execute()
        await step.enter()

    def rows(self, suite: Suite) -> AsyncIterator[list[Row]]:
        """The rows of a suite, in batches. Raises Unsealable."""
        return read_batches(self._redis, get_suite_key(suite.task, suite.digest), self._seals())
