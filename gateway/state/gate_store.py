"""The gate's evidence in Redis: comparisons of versions, and the versions that an admin let past the gate by force."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

from monitoring.evaluation.best import DataAccuracy, LeaderEvidence
from monitoring.evaluation.gate import Comparison, is_judge_trusted
from monitoring.evaluation.redis_keys import SUITES_KEY
from monitoring.evaluation.suites import Suite, name_kinds
from serving.object_store import Change, LenientReader, ObjectStore

LATEST_KEY = "apprentice:evaluations:latest"
"""A hash: the last evaluation of each version in short."""
COMPARISONS_KEY = "apprentice:evaluations:comparisons"
"""A hash: for each version, its newest comparison with each other version. It is kept as long as the version."""


class Forced(msgspec.Struct, frozen=True, kw_only=True):
    """An admin's step past the gate. `by` is a key's public id, `at` Unix seconds, `because` the gate's reason. `rule`
    is the name of the rule for which it was, if it was not for an alias."""

    reason: str
    by: str
    at: float
    because: str
    rule: str = ""


class GateStore:
    """Reads and writes the gate's evidence. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._forced = ObjectStore(redis, "forced")
        self._leaders = ObjectStore(redis, "former_leaders")
        self._reader = LenientReader()

    async def comparisons(self, version: str) -> dict[str, Comparison]:
        """The newest comparisons of a version, by the other version. Unreadable ones are left out."""
        return (await self.fetch_comparisons(version))[1]

    async def fetch_comparisons(self, version: str) -> tuple[bytes, dict[str, Comparison]]:
        """The comparisons of a version, as stored in Redis and decoded."""
        raw = await self._redis.hget(COMPARISONS_KEY, version)
        return raw or b"", self._reader.read(f"the comparisons of {version}", raw, dict[str, Comparison]) or {}

    async def comparisons_now(self, version: str) -> dict[str, Comparison]:
        """The comparisons of a version, each with the present kind of its suite."""
        return name_kinds(
            await self.comparisons(version), await read_suites(self._redis, version.partition("@")[0], self._reader)
        )

    async def evidence(self, versions: Sequence[str]) -> LeaderEvidence:
        """The figures that rank versions: their comparisons, and the last accuracy of those that have one."""
        return LeaderEvidence(
            {name: await self.comparisons_now(name) for name in versions}, await self._accuracies(versions)
        )

    async def _accuracies(self, versions: Sequence[str]) -> dict[str, DataAccuracy]:
        raw = await self._redis.hmget(LATEST_KEY, versions) if versions else []
        shares: dict[str, DataAccuracy] = {}
        for name, value in zip(versions, raw, strict=True):
            last = self._read_last(name, value)
            share = ((last.get("accuracy") or {}).get("adapter") or {}).get("share")
            digest = last.get("data_digest")  # an earlier release kept none
            failed = (last.get("failed") or {}).get("adapter")
            is_sound = is_judge_trusted(last.get("judge")) and not last.get("leaked") and not failed
            if share is not None and digest is not None and is_sound:
                shares[name] = DataAccuracy(f"{digest} {last.get('metric')}", float(share))
        return shares

    async def find_evaluation(self, version: str) -> str:
        """The last evaluation of a version; empty if there was none."""
        raw = await self._redis.hget(LATEST_KEY, version)
        last = self._read_last(version, raw)
        return str(last.get("id") or "") if "adapter" in (last.get("accuracy") or {}) else ""

    def _read_last(self, version: str, raw: bytes | None) -> Mapping[str, Any]:
        return self._reader.read(f"the last evaluation of {version}", raw, dict[str, Any]) or {}

    async def forced(self, version: str) -> Forced | None:
        """The last step of a version past the gate; None if it took none, or if that can't be read."""
        raw = (await self._forced.written([version])).get(version)
        return self._reader.read(f"the step of {version} past the gate", raw, Forced)

    def change(self, version: str, forced: Forced) -> Change:
        """The change that remembers a step past the gate, for as long as the version lives."""
        return Change(self._forced, version, msgspec.to_builtins(forced))

    async def former_leaders(self, task: str) -> list[str]:
        """The versions that led a task by aliases that were removed, the last one first."""
        return list((await self._leaders.get(task) or {}).get("versions", ()))

    def change_leaders(self, task: str, leaders: Sequence[str]) -> Change:
        """The change that remembers the leaders of removed aliases."""
        return Change(self._leaders, task, {"versions": list(leaders)})


async def read_suites(redis: Any, task: str | None, reader: LenientReader) -> list[Suite]:
    """The readable suites of a task (None: of all). Raises RedisError."""
    written: dict[bytes, bytes] = await redis.hgetall(SUITES_KEY)
    suites = [reader.read(f"the suite {name.decode()}", raw, Suite) for name, raw in written.items()]
    return [suite for suite in suites if suite is not None and task in (None, suite.task)]
