"""The parts that a new snapshot shares with the one before it."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.callers import Caller
from gateway.state.snapshot import ConfiguredPolicy, Snapshot, SnapshotKeeper, object_store_of
from router.policy import AttemptLimits, Shift, TaskPolicy
from serving.adapters.placement import Placement
from serving.adapters.registry import Registry
from serving.adapters.versions_and_aliases import AliasEntry, CanaryEntry, Version
from serving.object_store import ObjectStore, Stale, Unreadable

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
        manifest={"task": TASK, "general_prompt": {"system": "Decide."}},
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
        await ObjectStore(redis, "versions").put(known.name, msgspec.to_builtins(known))
        await ObjectStore(redis, "placements").put(placement.key, placement.to_json())
        await ObjectStore(redis, "callers").put(caller.public, caller.to_json())
        await ObjectStore(redis, "overrides").put(f"rule {number}", {"action": "general", "contains": f"Word {number}"})
    await Registry(redis).promote(TASK, V1)
    configured = ConfiguredPolicy({TASK: TaskPolicy(TASK, None)}, frozenset(), AttemptLimits())
    return SnapshotKeeper(redis, configured, {}, lambda _: None)


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
    await ObjectStore(redis, "overrides").put("rule 2", {"action": "refuse"})
    after = await keeper.refresh()
    assert shared(before, after) == ALL - {"rule 2"}
    assert [rule.action for rule in after.policy.overrides] == ["general", "refuse"]


async def test_a_change_is_read_while_another_admin_writes_on_and_on(keeper: SnapshotKeeper, redis: Redis) -> None:
    await ObjectStore(redis, "callers").delete("caller1")
    refreshing, writes = asyncio.ensure_future(keeper.refresh()), 0
    while not refreshing.done() and writes < 1000:
        writes += 1
        await ObjectStore(redis, "overrides").put("rule 3", {"action": "general", "contains": "Word 3"})
    assert "caller1" not in (await refreshing).callers
    assert writes < 1000


async def test_what_is_deleted_is_in_no_later_snapshot(keeper: SnapshotKeeper, redis: Redis) -> None:
    before = await keeper.refresh()
    for kind, name in (("placements", f"small-0/{V2}"), ("callers", "caller2"), ("overrides", "rule 1")):
        await ObjectStore(redis, kind).delete(name)
    after = await keeper.refresh()
    assert shared(before, after) == ALL - {("small-0", V2), "caller2", "rule 1"}
    assert (set(after.placements), set(after.callers)) == ({("small-0", V1)}, {"caller1"})
    assert [rule.id for rule in after.policy.overrides] == ["rule 2"]


async def test_the_health_that_a_newer_gateway_writes_freezes_nothing(keeper: SnapshotKeeper, redis: Redis) -> None:
    object_store, version = (
        ObjectStore(redis, "health"),
        {"verdict": "degraded", "kept": 0.5, "to": "previous_version", "to_version": V2},
    )
    action = {"id": "1", "at": 1.0, "kind": "of a newer gateway", "version": V1, "because": ""}
    await object_store.put(TASK, {"versions": {V1: version}, "actions": [action]})
    before = await keeper.refresh()
    assert before.policy.shifts == {V1: Shift(0.5, "previous_version", V2)}
    assert before.quality[TASK].actions[0].kind == "of a newer gateway"
    await object_store.put(TASK, {"versions": {V1: {**version, "verdict": "of a newer gateway"}}})
    await object_store.put("clauses", {"versions": {V2: "damaged"}})
    await ObjectStore(redis, "retraining").put("1", {"id": "1", "state": "of a newer gateway"})
    await Registry(redis).move(V2, "quarantined")
    after = await keeper.refresh()
    assert after.versions[V2].state == "quarantined"
    assert (after.policy.shifts[V1].kept, set(after.quality), dict(after.retraining)) == (0.5, {TASK}, {})


async def test_one_change_needs_one_look_at_all_kinds(keeper: SnapshotKeeper, redis: Redis) -> None:
    await keeper.refresh()
    await ObjectStore(redis, "overrides").put("rule 1", {"action": "refuse"})
    await redis.config_resetstat()
    await keeper.refresh()
    commands = await redis.info("commandstats")
    calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in commands.items()}
    calls.pop("config|resetstat")
    assert calls == {"get": 1, "hget": 1, "hmget": 2, "hscan": 1, "mget": 2}  # of cordons all are read


# ---- what a newer release has written ------------------------------------------------------------

NEWER = {
    "versions": (V2, {"state": "paused"}),
    "aliases": (TASK, {"mirrored": {V2: 0.5}}),
    "placements": (f"small-0/{V2}", {"state": "warming"}),
    "callers": ("caller2", {"limits": {"images_per_minute": 1}}),
    "overrides": ("rule 2", {"tool": "refund"}),
}
"""Of each kind an object, and what a newer release has set on it: a value, or a field, that this one does not know."""


async def write_newer(redis: Redis, kind: str) -> bytes:
    """Let a newer release change an object of the kind; what it has written."""
    name, change = NEWER[kind]
    before = await ObjectStore(redis, kind).get(name)
    assert before is not None
    await ObjectStore(redis, kind).put(name, {**before, **change})
    return await written(redis, kind)


async def written(redis: Redis, kind: str) -> bytes:
    return (await ObjectStore(redis, kind).written())[NEWER[kind][0]]


async def change_others(redis: Redis) -> None:
    """Change an object of each kind that this release can read; of aliases one of another task is new."""
    await Registry(redis).move(f"{TASK}@v3", "staging")
    await ObjectStore(redis, "aliases").put("clauses", {"weights": {"clauses@v1": 1.0}})
    placement = Placement(replica="small-0", version=V1, state="closing", path="")
    await ObjectStore(redis, "placements").put(placement.key, placement.to_json())
    await ObjectStore(redis, "callers").put(
        "caller1", Caller("caller1", "now", "caller", "", frozenset({"*"})).to_json()
    )
    await ObjectStore(redis, "overrides").put("rule 1", {"action": "refuse"})


async def state_of(redis: Redis, name: str) -> str:
    return str((await ObjectStore(redis, "versions").all())[name]["state"])


@pytest.mark.invariant("An object of a newer release freezes no older gateway and is never overwritten.")
@pytest.mark.parametrize("kind", NEWER)
async def test_one_that_a_newer_release_has_written_keeps_no_other_from_being_read(
    keeper: SnapshotKeeper, redis: Redis, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    await ObjectStore(redis, "versions").put(f"{TASK}@v3", msgspec.to_builtins(version(3)))
    before = await keeper.refresh()
    await write_newer(redis, kind)
    await change_others(redis)
    for _ in range(2):
        await ObjectStore(redis, "cordons").put("small-0", {})
        after = await keeper.refresh()
    assert after.versions[f"{TASK}@v3"].state == "staging"
    assert set(after.aliases) == {TASK, "clauses"}
    assert after.placements["small-0", V1].state == "closing"
    assert after.callers["caller1"].name == "now"
    assert [rule.action for rule in after.policy.overrides if rule.id == "rule 1"] == ["refuse"]
    told = {
        "versions": after.versions[V2] is before.versions[V2],
        "aliases": after.aliases[TASK] is before.aliases[TASK],
        "placements": after.placements["small-0", V2] is before.placements["small-0", V2],
        "callers": "caller2" not in after.callers,
        "overrides": [rule.id for rule in after.policy.overrides] == ["rule 1"],
    }
    assert told[kind], "it is passed over as a whole, and safely"
    assert len([line for line in caplog.messages if NEWER[kind][0] in line]) == 1


@pytest.mark.parametrize("kind", NEWER)
async def test_one_that_a_newer_release_has_written_is_absent_where_it_was_never_read(
    keeper: SnapshotKeeper, redis: Redis, kind: str
) -> None:
    await write_newer(redis, kind)
    snapshot = await keeper.refresh()
    found = {
        "versions": snapshot.versions,
        "aliases": snapshot.aliases,
        "placements": {f"{replica}/{name}" for replica, name in snapshot.placements},
        "callers": snapshot.callers,
        "overrides": {rule.id for rule in snapshot.policy.overrides},
    }
    absent = {other: NEWER[other][0] for other in NEWER if NEWER[other][0] not in found[other]}
    assert absent == {kind: NEWER[kind][0]}
    assert snapshot.unreadable == ({V2} if kind == "versions" else set())


@pytest.mark.invariant("An object of a newer release freezes no older gateway and is never overwritten.")
@pytest.mark.parametrize("kind", NEWER)
async def test_what_a_newer_release_has_written_is_never_written_over(
    keeper: SnapshotKeeper, redis: Redis, kind: str
) -> None:
    await keeper.refresh()
    newer, name = await write_newer(redis, kind), NEWER[kind][0]
    object_store = object_store_of(redis, kind)
    generation = (await object_store.generations())[name]
    for expected in (None, generation):
        with pytest.raises(Unreadable):
            await object_store.put(name, {}, expected)
        with pytest.raises(Unreadable):
            await object_store.delete(name, expected)
    with pytest.raises(Stale):
        await object_store.put(name, {}, generation - 1)
    assert await written(redis, kind) == newer
    assert (await object_store.generations())[name] == generation


async def test_no_step_of_the_registry_moves_what_a_newer_release_has_written(redis: Redis) -> None:
    registry = Registry(redis)
    for number in (1, 2):
        await ObjectStore(redis, "versions").put(f"{TASK}@v{number}", msgspec.to_builtins(version(number)))
    await registry.promote(TASK, V1)
    alias = await write_newer(redis, "aliases")
    for step in (registry.promote(TASK, V2), registry.withdraw(V2), registry.roll_back(TASK, V2)):
        with pytest.raises(Unreadable):
            await step
    assert await written(redis, "aliases") == alias
    assert [await state_of(redis, name) for name in (V1, V2)] == ["active", "ready"]


async def test_an_alias_takes_no_step_away_from_a_version_that_a_newer_release_has_moved(redis: Redis) -> None:
    for number in (1, 2):
        await ObjectStore(redis, "versions").put(f"{TASK}@v{number}", msgspec.to_builtins(version(number)))
    await Registry(redis).promote(TASK, V2)
    newer = await write_newer(redis, "versions")
    with pytest.raises(Unreadable):
        await Registry(redis).promote(TASK, V1)
    with pytest.raises(Unreadable):
        await Registry(redis).move(V2, "quarantined")
    assert await written(redis, "versions") == newer
    assert (await Registry(redis).aliases())[TASK].weights == {V2: 1.0}


UP_TO_NOW = {
    Version: "name task number pool state digest base_fingerprint rank size_bytes manifest manifest_digest created_at"
    " created_by changed_at signed_by signature note",
    AliasEntry: "weights salt shadow previous rollout",
    CanaryEntry: "version share started_at by plan",
    Placement: "replica version state path life stack since ghosts failures retry_at wrong note",
}


@pytest.mark.parametrize("kind", UP_TO_NOW)
def test_a_field_that_is_new_is_left_out_where_it_is_not_used(kind: type[msgspec.Struct]) -> None:
    """Else no gateway of the release before could read anything that this one writes."""
    fresh = {
        Version: version(1),
        AliasEntry: AliasEntry(weights={V1: 1.0}),
        CanaryEntry: CanaryEntry(version=V1, share=0.1, started_at=0.0, by=""),
        Placement: Placement(replica="small-0", version=V1, state="ready", path=""),
    }[kind]
    assert set(msgspec.to_builtins(fresh)) == set(UP_TO_NOW[kind].split())


def test_a_callers_field_that_is_new_is_left_out_where_it_is_not_used() -> None:
    caller = Caller("caller1", "shop", "caller", "", frozenset({"*"}))
    assert set(caller.to_json()) == {"name", "role", "secret_digest", "models", "expires_at"}


@pytest.mark.parametrize(
    "change",
    [{"role": "auditor"}, {"models": None}, {"networks": ["10.0.0.0/8"]}, {"limits": {"usd_per_year": 1}},
     {"former": {"secret_digest": "", "until": 1.0, "revoked": True}}],
)  # fmt: skip
def test_no_caller_is_made_of_what_this_release_does_not_know(change: dict[str, object]) -> None:
    raw = Caller("caller1", "shop", "caller", "", frozenset({"*"})).to_json()
    assert Caller.from_json("caller1", raw).role == "caller"
    with pytest.raises(msgspec.ValidationError):
        Caller.from_json("caller1", {**raw, **change})


async def test_a_replica_whose_cordon_is_damaged_gets_no_requests_and_the_rest_is_read(
    keeper: SnapshotKeeper, redis: Redis
) -> None:
    await ObjectStore(redis, "cordons").put("small-0", {"reason": "It is hot."})
    await redis.hset("apprentice:cordons", mapping={"small-1": b"{", "small-2": b"[]"})
    await redis.hset("apprentice:aliases:generations", "clauses", "many")
    found = await keeper.refresh()
    assert found.cordons == {
        "small-0": "It is hot.",
        "small-1": "its cordon can't be read",
        "small-2": "its cordon can't be read",
    }
    assert found.aliases[TASK].leading == V1
