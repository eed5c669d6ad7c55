"""Suites: data sets of a task that its versions are evaluated on again and again, kept in Redis by their digest.

A task's suites are its own (`newest` and `older`, which show what was forgotten), general skills, and hard cases that
production found. Requests and expected answers stay until the suite is removed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from gateway.features.evaluations.store import get_coming_key, read_batches
from gateway.state.audited_step import AuditedStep
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.keys import SUITES_KEY, get_suite_key

Kind = Literal["newest", "general", "hard"]
SUITES_MAX = 50
DIGEST_START = re.compile(r"[0-9a-f]{6,64}")


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """A suite. `kind` is what it was added as: of several `newest` the last one is it, and the others are older.

    `metric` and `class_field` are used where an evaluation names none. `counts` are the numbers of rows by slice and
    its value: class, source, language and length. `erased` rows were forgotten since: the digest is then no more than
    a name.
    """

    task: str
    digest: str
    kind: Kind
    rows: int
    groups: int
    metric: str = ""
    class_field: str = ""
    counts: dict[str, dict[str, int]] = {}
    notes: tuple[str, ...] = ()
    by: str = ""
    created_at: float = 0.0
    erased: int = 0

    @property
    def data_digest(self) -> str:
        """The digest of the rows that it has now."""
        named = f"{self.digest} without {self.erased} rows"
        return hashlib.sha256(named.encode()).hexdigest() if self.erased else self.digest


class NoSuite(Exception):
    """A task has no suite of this name; the message says which it has."""


class SuiteStore:
    """Keeps suites in Redis. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str

    async def all(self, task: str | None = None) -> list[Suite]:
        """Those of a task (None: of all), the newest first."""
        suites = [msgspec.json.decode(raw, type=Suite) for raw in await self._redis.hvals(SUITES_KEY)]
        of_task = [suite for suite in suites if task in (None, suite.task)]
        return sorted(of_task, key=lambda suite: (-suite.created_at, suite.digest))

    async def find(self, task: str, name: str) -> Suite:
        """The one suite of a task with this kind, or whose digest begins so. Raises NoSuite."""
        suites = await self.all(task)
        kinds = kinds_of(suites)
        wanted = name.lower().removeprefix("sha256:")
        fits = [suite for suite in suites if kinds[suite.digest] == wanted]
        if not fits and DIGEST_START.fullmatch(wanted):
            fits = [suite for suite in suites if suite.digest.startswith(wanted)]
        if len(fits) == 1:
            return fits[0]
        listed = ", ".join(f"{suite.digest[:12]} ({kinds[suite.digest]})" for suite in fits or suites)
        if fits:
            raise NoSuite(f"{task} has several suites {name[:80]!r}: name one by its digest, of {listed}.")
        has = f"it has {listed}" if listed else "it has none yet: `apprentice suites add` adds one"
        raise NoSuite(f"{task} has no suite {name[:80]!r}: {has}.")

    async def add(self, suite: Suite, coming: str, step: AuditedStep) -> None:
        """Keep a suite with the rows of this upload, in one transaction with the entries noted with `step`."""
        async with self._redis.pipeline(transaction=True) as all_of_it:
            all_of_it.rename(get_coming_key(coming), get_suite_key(suite.task, suite.digest))
            all_of_it.persist(get_suite_key(suite.task, suite.digest))
            all_of_it.hset(SUITES_KEY, f"{suite.task}/{suite.digest}", msgspec.json.encode(suite))
            step.write_into(all_of_it)
            await all_of_it.execute()
        await step.enter()

    async def remove(self, suite: Suite, step: AuditedStep) -> None:
        """Forget a suite and its rows, in one transaction with the entries noted with `step`."""
        async with self._redis.pipeline(transaction=True) as all_of_it:
            all_of_it.unlink(get_suite_key(suite.task, suite.digest))
            all_of_it.hdel(SUITES_KEY, f"{suite.task}/{suite.digest}")
            step.write_into(all_of_it)
            await all_of_it.execute()
        await step.enter()

    def rows(self, suite: Suite) -> AsyncIterator[list[Row]]:
        """Its rows, some at a time."""
        return read_batches(self._redis, get_suite_key(suite.task, suite.digest))


def kinds_of(suites: Sequence[Suite]) -> Mapping[str, str]:
    """The kind of each of a task's suites, by digest: `newest`, `older`, `general` or `hard`."""
    newest = max((suite for suite in suites if suite.kind == "newest"), key=lambda one: one.created_at, default=None)
    return {suite.digest: "older" if suite.kind == "newest" and suite != newest else suite.kind for suite in suites}
