"""Carrying out the verdicts on canaries that a plan judges: promote, roll back, or hold.

The monitor judges (`monitoring/quality/signals/canaries.py`). This module carries a verdict out once, in one atomic
step with the draft of its audit entry. It stores the verdict in Redis, so that all gateways can show it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, assert_never

import msgspec
from redis.asyncio import Redis

from gateway.state.audited_step import Drafts
from gateway.state.quality_store import QualityStore
from monitoring.audit import Audit
from monitoring.metrics import Meters
from monitoring.quality.verdicts.canary_verdict import CanaryAction, CanaryVerdict
from serving.adapters.registry import Registry, RegistryError
from serving.adapters.versions_and_aliases import CanaryEntry
from serving.object_store import UNREADABLE, Change, Stale

log = logging.getLogger(__name__)
KEPT_SECONDS = 180 * 86_400
"""Longer than a plan may last."""
AUDITED_AS: Mapping[str, str] = {"promote": "alias.promote", "roll_back": "alias.rollback", "hold": "alias.hold"}


class KeptVerdict(msgspec.Struct, kw_only=True):
    """The last verdict on a canary, as stored in Redis. `held`: the audit has an entry for its `hold` already.

    `records_read` is set if an earlier release stored it, with the evidence.
    """

    id: str = ""
    action: str = "continue"
    because: str = ""
    evidence: dict[str, Any] = {}
    held: bool = False
    records_read: str | None = None


class CanaryVerdicts:
    """Carrying out of verdicts on canaries, by the one gateway that has the monitor's job."""

    def __init__(
        self,
        redis: Redis,
        registry: Registry,
        audit: Audit,
        meters: Meters,
        find_obstacle: Callable[[str], Awaitable[tuple[CanaryAction, str] | None]],
    ) -> None:
        """`find_obstacle` returns the action instead of a promotion, and the reason; None if the version may be
        promoted. A temporary obstacle must not be a `hold`: only the first `hold` gets an audit entry."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._registry = registry
        self._audit = audit
        self._meters = meters
        self._find_obstacle = find_obstacle
        self._drafts = Drafts(redis, audit, "verdicts")
        self._quality = QualityStore(redis)

    async def shown(self, task: str, canary: CanaryEntry) -> dict[str, Any]:
        """A canary's last verdict, its reason, and the evidence."""
        last = await self._read_last(task, canary)
        return {"verdict": last.action, "because": last.because, "evidence": last.evidence}

    @property
    def drafts_key(self) -> str:
        """The Redis key of waiting audit entries. It exists only if there are some."""
        return self._drafts.values

    async def enter_left(self) -> None:
        """Enter into the audit the verdicts that a killed gateway carried out before its end. Raises RedisError."""
        await self._drafts.enter_left()

    async def carry_out(self, task: str, canary: CanaryEntry, verdict: CanaryVerdict) -> None:
        """Store the verdict on a canary, and carry it out once. Raises RedisError.

        The action's own step writes the draft of the audit entry. If this gateway is then killed, the next one with
        the job enters it.
        """
        last = await self._read_last(task, canary)
        if last.records_read is not None:
            last.records_read = None
            log.warning("the evidence on the canary %s starts again: an earlier release kept it", canary.version)
        if verdict.action == "promote" and (obstacle := await self._find_obstacle(canary.version)) is not None:
            verdict = CanaryVerdict(action=obstacle[0], because=obstacle[1], evidence=verdict.evidence)
        last.action, last.because, last.evidence = verdict.action, verdict.because, verdict.evidence
        await self._redis.set(_key(task), msgspec.json.encode(last), ex=KEPT_SECONDS)
        if verdict.action == "continue" or (verdict.action == "hold" and last.held):
            return
        if verdict.action == "promote" and await self._is_degraded(task, canary.version):
            return  # the monitor has paused it, and decides on its recovery
        alias, generation = await self._registry.alias(task)
        if alias is None or alias.canary != canary:
            return
        draft = self._audit.draft(
            "system",
            AUDITED_AS[verdict.action],
            task,
            before=alias.weights,
            after={"version": canary.version, "action": verdict.action, "because": verdict.because},
            evidence=verdict.evidence,
            generation=generation if verdict.action == "hold" else generation + 1,
        )
        noted = self._drafts.change(draft)
        try:
            match verdict.action:
                case "promote":
                    await self._registry.promote(task, canary.version, generation, noted)
                case "roll_back":
                    await self._registry.roll_back(task, None, generation, verdict.because, noted)
                case "hold":
                    await self._hold(task, last, noted)
                case _:
                    assert_never(verdict.action)
        except (Stale, RegistryError) as error:
            log.warning("the verdict on %s was not carried out: %s", canary.version, error)
            return
        self._meters.canary_verdicts.add(1, task, verdict.action)
        log.warning("canary %s: %s. %s", canary.version, verdict.action, verdict.because)
        await self._drafts.enter(noted.name)

    async def _is_degraded(self, task: str, version: str) -> bool:
        """Return whether this version is degraded, by the monitor or by an admin's pin."""
        quality = (await self._quality.of(task))[0].versions.get(version)
        return quality is not None and quality.verdict == "degraded"

    async def _hold(self, task: str, last: KeptVerdict, noted: Change) -> None:
        last.held = True
        async with self._redis.pipeline(transaction=True) as both:
            both.set(_key(task), msgspec.json.encode(last), ex=KEPT_SECONDS)
            both.hset(self._drafts.values, noted.name, msgspec.json.encode(noted.value))
            await both.execute()

    async def _read_last(self, task: str, canary: CanaryEntry) -> KeptVerdict:
        """The last verdict on a canary; an empty one for a new canary, or an unreadable verdict."""
        name = f"{canary.version} {canary.started_at}"
        raw, of_earlier_release = await self._redis.mget(_key(task), f"apprentice:rollout:{task}")
        try:
            verdict = msgspec.json.decode(raw or of_earlier_release or b"{}", type=KeptVerdict)
        except UNREADABLE:
            return KeptVerdict(id=name)
        return verdict if verdict.id == name else KeptVerdict(id=name)


def _key(task: str) -> str:
    return f"apprentice:canary:{task}"
