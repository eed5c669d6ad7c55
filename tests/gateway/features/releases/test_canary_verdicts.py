"""Verdicts on canaries in Redis: the last verdict, and drafts that are not yet entered."""

from __future__ import annotations

import logging

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.releases.canary_verdicts import CanaryVerdicts
from monitoring.audit import STREAM, Audit, AuditConflict
from monitoring.metrics import Meters
from monitoring.quality.verdicts.canary_verdict import CanaryAction, CanaryVerdict
from serving.adapters.registry import Registry
from serving.adapters.versions_and_aliases import AliasEntry, CanaryEntry
from serving.object_store import ObjectStore

BEGUN = CanaryEntry(version="returns@v2", share=0.1, started_at=5.0, by="ada", plan={})
WAITS = CanaryVerdict(action="continue", because="It waits.", evidence={"canary_requests": 1})


async def no_obstacle(_: str) -> None:
    return None


def carrying_out(redis: Redis) -> CanaryVerdicts:
    return CanaryVerdicts(redis, Registry(redis), Audit(redis), Meters(), no_obstacle)


async def test_pending_verdict_is_entered_also_where_its_task_has_lost_its_alias(redis: Redis) -> None:
    draft = Audit(redis).draft("system", "alias.rollback", "returns", evidence={"pairs": 3}, generation=7)
    await ObjectStore(redis, "verdicts").put("returns", msgspec.to_builtins(draft))
    for _ in range(2):
        await carrying_out(redis).enter_left()
    [entry] = await Audit(redis).read()
    assert (entry.action, entry.evidence, entry.generation, entry.at) == ("alias.rollback", {"pairs": 3}, 7, draft.at)


async def test_a_verdict_that_can_not_be_entered_keeps_no_other_waiting(redis: Redis) -> None:
    verdicts = ObjectStore(redis, "verdicts")
    await verdicts.put("alarms", {"no": "draft"})
    await verdicts.put("returns", msgspec.to_builtins(Audit(redis).draft("system", "alias.hold", "returns")))
    await carrying_out(redis).enter_left()
    assert [entry.object for entry in await Audit(redis).read()] == ["returns"]
    assert set(await verdicts.all()) == {"alarms"}


async def test_canary_under_way_at_an_upgrade_restarts_its_evidence_and_is_logged_once(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = {"id": "returns@v2 5.0", "state": {"bounds": [0, 1, 0]}, "records_read": "1-0", "feedback_read": "1-0"}
    told = {"action": "hold", "because": "No verdict.", "evidence": {"canary_requests": 9}, "held": True}
    await redis.set("apprentice:rollout:returns", msgspec.json.encode(earlier | told))
    verdicts = carrying_out(redis)
    assert (await verdicts.shown("returns", BEGUN))["because"] == "No verdict."
    held = CanaryVerdict(action="hold", because="No verdict.", evidence={})
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            await verdicts.carry_out("returns", BEGUN, held)
    assert [one.getMessage() for one in caplog.records] == [
        "the evidence on the canary returns@v2 starts again: an earlier release kept it"
    ]
    assert await verdicts.shown("returns", BEGUN) == {
        "verdict": "hold",
        "because": "No verdict.",
        "evidence": {},
    }


async def test_what_is_kept_of_a_canary_is_nothing_of_another_one_and_may_be_damaged(redis: Redis) -> None:
    verdicts = carrying_out(redis)
    await verdicts.carry_out("returns", BEGUN, WAITS)
    shown = await verdicts.shown("returns", BEGUN)
    assert shown == {"verdict": "continue", "because": "It waits.", "evidence": {"canary_requests": 1}}
    nothing = {"verdict": "continue", "because": "", "evidence": {}}
    assert await verdicts.shown("returns", msgspec.structs.replace(BEGUN, started_at=6.0)) == nothing
    await redis.set("apprentice:canary:returns", "no verdict")
    assert await verdicts.shown("returns", BEGUN) == nothing
    await verdicts.carry_out("returns", BEGUN, WAITS)
    assert await verdicts.shown("returns", BEGUN) == shown


async def test_a_promotion_that_the_gate_does_not_allow_is_a_hold_that_says_why(redis: Redis) -> None:
    async def obstacle(name: str) -> tuple[CanaryAction, str]:
        return "hold", f"The gate holds {name} up."

    verdicts = CanaryVerdicts(redis, Registry(redis), Audit(redis), Meters(), obstacle)
    await verdicts.carry_out("returns", BEGUN, CanaryVerdict(action="promote", because="No worse.", evidence={}))
    shown = await verdicts.shown("returns", BEGUN)
    assert (shown["verdict"], shown["because"]) == ("hold", "The gate holds returns@v2 up.")
    await verdicts.carry_out("returns", BEGUN, CanaryVerdict(action="roll_back", because="Worse.", evidence={}))
    assert (await verdicts.shown("returns", BEGUN))["verdict"] == "roll_back"


async def test_verdicts_that_wait_for_the_audit_all_come_into_it(redis: Redis) -> None:
    verdicts, audit = carrying_out(redis), Audit(redis)
    await audit.append("ada", "replica.cordon", "small-0")
    last = await audit.append("ada", "replica.uncordon", "small-0")
    removed = await redis.xrange(STREAM, min=f"{last.number}-0")
    await redis.xdel(STREAM, f"{last.number}-0")  # the chain takes no entry until its end is back
    for started_at in (5.0, 6.0):
        canary = msgspec.structs.replace(BEGUN, started_at=started_at)
        alias = AliasEntry(weights={"returns@v1": 0.9, "returns@v2": 0.1}, canary=canary)
        await ObjectStore(redis, "aliases").put("returns", msgspec.to_builtins(alias))
        with pytest.raises(AuditConflict):
            await verdicts.carry_out("returns", canary, CanaryVerdict(action="hold", because="No.", evidence={}))
    await redis.delete(STREAM)
    await redis.xadd(STREAM, removed[0][1], id=removed[0][0])
    await verdicts.enter_left()
    assert [entry.action for entry in await audit.read()][1:] == ["alias.hold", "alias.hold"]
