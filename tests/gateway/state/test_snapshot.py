"""What a new snapshot shares with the one before it."""

from __future__ import annotations

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.callers import Caller
from gateway.state.snapshot import Deployed, Snapshot, SnapshotKeeper
from router.policy import AttemptLimits, TaskPolicy
from serving.adapters.placement import Placement
from serving.adapters.registry import Registry, Version
from serving.shelf import Shelf

TASK = "returns"
V1, V2 = f"{TASK}@v1", f"{TASK}@v2"


def version(number: int) -> Version:
    return Version(
        name=f"{TASK}@v{number}",
        task=TASK,
        number=number,
        pool="small",
        state="ready",
        digest="",
        base_fingerprint="",
        rank=4,
        size_bytes=1,
        manifest={"task": TASK, "blueprint": {"system": "Decide."}},
        manifest_digest="",
        created_at=1.0,
        created_by="admin",
    )


@pytest.fixture
async def keeper(redis: Redis) -> SnapshotKeeper:
    """A keeper of a state with two of everything."""
    for number in (1, 2):
        known, placement = (
            version(number),
            Placement(replica="small-0", version=f"{TASK}@v{number}", state="ready", path=""),
        )
        caller = Caller(f"caller{number}", "shop", "caller", "", frozenset({"*"}))
        await Shelf(redis, "versions").put(known.name, msgspec.to_builtins(known))
        await Shelf(redis, "placements").put(placement.key, placement.to_json())
        await Shelf(redis, "callers").put(caller.public, caller.to_json())
        await Shelf(redis, "overrides").put(f"rule {number}", {"action": "general", "contains": f"Word {number}"})
    await Registry(redis).promote(TASK, V1)
    deployed = Deployed({TASK: TaskPolicy(TASK, None)}, frozenset(), AttemptLimits())
    return SnapshotKeeper(redis, deployed, {}, lambda _: None)


def shared(before: Snapshot, after: Snapshot) -> set[object]:
    """The names of what is the same object in both."""
    rules = {rule.id: rule for rule in before.policy.overrides}
    kinds = [
        (before.versions, after.versions),
        (before.aliases, after.aliases),
        (before.placements, after.placements),
        (before.callers, after.callers),
        (rules, {rule.id: rule for rule in after.policy.overrides}),
    ]
    return {name for was, now in kinds for name in now if was.get(name) is now[name]}


ALL = {V1, V2, TASK, ("small-0", V1), ("small-0", V2), "caller1", "caller2", "rule 1", "rule 2"}


async def test_a_refresh_after_a_change_of_one_version_converts_that_version_only(
    keeper: SnapshotKeeper, redis: Redis
) -> None:
    before = await keeper.refresh()
    await Registry(redis).move(V2, "quarantined")
    after = await keeper.refresh()
    assert shared(before, after) == ALL - {V2}
    assert (before.versions[V2].state, after.versions[V2].state) == ("ready", "quarantined")


async def test_a_refresh_after_a_change_of_one_rule_converts_that_rule_only(
    keeper: SnapshotKeeper, redis: Redis
) -> None:
    before = await keeper.refresh()
    await Shelf(redis, "overrides").put("rule 2", {"action": "refuse"})
    after = await keeper.refresh()
    assert shared(before, after) == ALL - {"rule 2"}
    assert [rule.action for rule in after.policy.overrides] == ["general", "refuse"]


async def test_what_is_deleted_is_in_no_later_snapshot(keeper: SnapshotKeeper, redis: Redis) -> None:
    before = await keeper.refresh()
    for kind, name in (("placements", f"small-0/{V2}"), ("callers", "caller2"), ("overrides", "rule 1")):
        await Shelf(redis, kind).delete(name)
    after = await keeper.refresh()
    assert shared(before, after) == ALL - {("small-0", V2), "caller2", "rule 1"}
    assert (set(after.placements), set(after.callers)) == ({("small-0", V1)}, {"caller1"})
    assert [rule.id for rule in after.policy.overrides] == ["rule 2"]


async def test_the_health_that_a_newer_gateway_writes_freezes_nothing(keeper: SnapshotKeeper, redis: Redis) -> None:
    shelf, version = Shelf(redis, "health"), {"verdict": "degraded", "kept": 0.5, "to": "general"}
    action = {"id": "1", "at": 1.0, "kind": "of a newer gateway", "version": V1, "because": ""}
    await shelf.put(TASK, {"versions": {V1: version}, "actions": [action]})
    before = await keeper.refresh()
    assert before.policy.shifts[V1].kept == 0.5
    assert before.health[TASK].actions[0].kind == "of a newer gateway"
    await shelf.put(TASK, {"versions": {V1: {**version, "verdict": "of a newer gateway"}}})
    await shelf.put("clauses", {"versions": {V2: "damaged"}})
    await Shelf(redis, "retraining").put("1", {"id": "1", "state": "of a newer gateway"})
    await Registry(redis).move(V2, "quarantined")
    after = await keeper.refresh()
    assert after.versions[V2].state == "quarantined"
    assert (after.policy.shifts[V1].kept, set(after.health), dict(after.retraining)) == (0.5, {TASK}, {})
