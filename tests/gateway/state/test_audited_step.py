"""Entries of the audit that are written with what they tell of: entered once, also where their gateway was killed."""

from __future__ import annotations

from redis.asyncio import Redis

from gateway.state.audited_step import Drafts
from monitoring.audit import Audit
from serving.object_store import Change, ObjectStore, change_together


async def test_what_a_killed_gateway_has_left_is_entered_once_by_whoever_comes_next(redis: Redis) -> None:
    audit = Audit(redis)
    drafts = Drafts(redis, audit)
    draft = audit.draft("ada", "monitor.baseline", "returns@v1", after={"upper": 0.1}, generation=1)
    await change_together(redis, [Change(ObjectStore(redis, "baselines"), "returns@v1", {}), drafts.change(draft)])
    assert await audit.read() == []
    for _ in range(2):
        await drafts.enter_left()
    [entry] = await audit.read()
    assert (entry.actor, entry.action, entry.object, entry.at) == ("ada", "monitor.baseline", "returns@v1", draft.at)
    assert not [key async for key in redis.scan_iter("apprentice:admins:audit*")]


async def test_one_that_can_not_be_entered_keeps_no_other_waiting(redis: Redis) -> None:
    audit = Audit(redis)
    await ObjectStore(redis, "admins:audit").put("broken", {"no": "draft"})
    await change_together(redis, [Drafts(redis, audit).change(audit.draft("ada", "retraining.open", "returns@v1"))])
    await Drafts(redis, audit).enter_left()
    assert [entry.action for entry in await audit.read()] == ["retraining.open"]
