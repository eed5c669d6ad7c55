"""The reconciler's view of a large fleet: each replica is asked only for the versions that have to do with it."""

from __future__ import annotations

from collections.abc import ItemsView
from typing import Any, cast

import msgspec
from redis.asyncio import Redis

from serving.adapters.loader import AdapterLoader, Pass, World
from serving.adapters.manifest import from_json
from serving.adapters.placement import Placement, group_by_replica
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry, note_nothing
from serving.adapters.verification import Artifact
from serving.adapters.versions_and_aliases import Version, VersionState
from serving.fingerprint import BaseFingerprint
from serving.fleet import Fleet, PoolConfig
from serving.replica import ReplicaConfig

REPLICAS = 40
TASKS = 100


def version_of(task: str, state: VersionState = "active", pool: str = "small") -> Version:
    return Version(
        name=f"{task}@v1",
        task=task,
        number=1,
        pool=pool,
        state=state,
        digest="sha256:" + "d" * 64,
        base_fingerprint="sha256:b",
        rank=8,
        size_bytes=1,
        manifest={},
        manifest_digest="sha256:m",
        created_at=0.0,
        created_by="admin",
    )


def fleet_of(*pools: str) -> Fleet:
    return Fleet(
        PoolConfig(
            pool,
            "base",
            tuple(ReplicaConfig(f"{pool}-{at}", f"http://10.0.0.{at}:8000", pool) for at in range(REPLICAS)),
        )
        for pool in pools
    )


def placed(replica: str, version: str) -> Placement:
    return Placement(replica=replica, version=version, state="ready", path="/store/d")


def pass_of(versions: list[Version], *placements: Placement) -> Pass:
    places = {(placement.replica, placement.version): placement for placement in placements}
    world = World(idle=lambda *_: True, in_flight=lambda _: 0.0)
    return Pass({version.name: version for version in versions}, places, {}, world)


def reconciler_of(fleet: Fleet) -> Reconciler:
    nobody: Any = None  # it asks neither Redis nor an engine here
    return Reconciler(fleet, nobody, nobody)


def test_a_pass_looks_at_what_is_placed_and_not_at_each_version_on_each_replica() -> None:
    fleet = fleet_of("small")
    versions = [version_of(f"task-{task}") for task in range(TASKS)]
    now = pass_of(versions, *(placed(f"small-{at % REPLICAS}", version.name) for at, version in enumerate(versions)))
    names = reconciler_of(fleet)._names_on_replicas(now)
    assert names.keys() == fleet.replicas.keys()
    assert sum(map(len, names.values())) == TASKS


def test_a_replica_is_asked_for_what_is_planned_listed_or_written_down_there() -> None:
    fleet = fleet_of("small", "other")
    versions = [version_of(task) for task in ("planned", "listed", "written", "elsewhere")]
    now = pass_of(versions, placed("small-1", "written@v1"), placed("small-1", "forgotten@v1"))
    now.versions = {**now.versions, "of-other@v1": version_of("of-other", pool="other")}
    now.plan = {"planned@v1": ("small-1",), "elsewhere@v1": ("small-2",)}
    fleet.replicas["small-1"].seen = {"base": "/base", "listed@v1": "/store/d", "of-other@v1": "/store/d"}
    names = reconciler_of(fleet)._names_on_replicas(now)
    assert names["small-1"] == ["listed@v1", "planned@v1", "written@v1", "forgotten@v1"]
    assert names["small-2"] == ["elsewhere@v1"]
    assert names["other-1"] == []


def test_the_most_important_version_is_seen_to_first() -> None:
    states: tuple[VersionState, ...] = ("staging", "ready", "previous_version", "canary", "active", "draining")
    versions = [version_of(state, state) for state in states]
    now = pass_of(versions, *(placed("small-0", version.name) for version in versions))
    names = reconciler_of(fleet_of("small"))._names_on_replicas(now)["small-0"]
    expected = ("active", "canary", "previous_version", "ready", "staging", "draining")
    assert names == [f"{state}@v1" for state in expected]


def test_a_new_version_does_not_wait_for_a_replica_that_left_during_the_pass() -> None:
    version = version_of("new", "staging")
    now = pass_of([version])
    now.plan = {version.name: ("left-0", "small-0")}
    fleet = fleet_of("small")
    assert reconciler_of(fleet)._may_load(fleet.replicas["small-0"], version, now)


async def test_a_new_version_needs_no_room_on_a_replica_that_left_during_the_pass() -> None:
    version, fleet, nobody = version_of("new", "staging"), fleet_of("small"), cast(Any, None)
    now = pass_of([version])
    now.plan = {version.name: ("left-0", "small-0")}
    loader = AdapterLoader(fleet, nobody, nobody, {}, nobody, nobody, nobody)
    assert await loader._has_room(fleet.replicas["small-0"], version, now)


def test_placements_are_parted_by_replica() -> None:
    places = {(on, "v"): placed(on, "v") for on in ("small-0", "small-1")} | {("small-0", "w"): placed("small-0", "w")}
    parts = group_by_replica(places)
    assert {on: len(part) for on, part in parts.items()} == {"small-0": 2, "small-1": 1}
    assert {place for part in parts.values() for place in part} == places.keys()


class Counted(dict[tuple[str, str], Placement]):
    """Placements that count how often all of them are gone through."""

    times = 0

    def items(self) -> ItemsView[tuple[str, str], Placement]:
        self.times += 1
        return super().items()


async def test_room_on_many_replicas_is_found_without_a_walk_over_all_placements_for_each() -> None:
    fleet, nobody = fleet_of("small"), cast(Any, None)
    loader = AdapterLoader(fleet, nobody, nobody, {}, nobody, nobody, nobody)
    for replica in fleet.replicas.values():
        replica.up = True
    full = msgspec.structs.replace(placed("small-1", "old@v1"), state="ghost", ghosts=15)
    now = pass_of([version_of("new", "staging")], full)
    now.plan = {"new@v1": tuple(fleet.replicas)}
    placements = now.placements = Counted(now.placements)
    assert await loader._has_room(fleet.replicas["small-0"], now.versions["new@v1"], now)
    assert "no room in the pool small: small-1 can take" in loader.no_room("small", now)
    assert placements.times == 0


async def test_failure_of_a_staging_does_not_end_the_next_one_that_began_meanwhile(redis: Redis) -> None:
    registry, nobody, fleet = Registry(redis), cast(Any, None), fleet_of("small")
    bases = {"small": BaseFingerprint("sha256:" + "b" * 64)}
    artifact = Artifact("sha256:" + "a" * 64, 4, 8.0, ("q_proj",), "F32", 100, bases["small"].base_fingerprint)
    manifest = from_json({"task": "returns", "general_prompt": {"system": "Decide."}})
    name = (await registry.register("returns", "small", artifact, manifest, "admin")).name
    reconciler = Reconciler(fleet, registry, AdapterLoader(fleet, redis, nobody, bases, nobody, nobody, nobody))
    for is_overtaken, state in ((True, "staging"), (False, "verified")):
        version = await registry.move(name, "staging")
        failed = msgspec.structs.replace(placed("small-0", name), state="failed", since=version.changed_at)
        now = pass_of([version], failed)
        now.plan = {name: ("small-0",)}
        if is_overtaken:
            await registry.withdraw(name)
            await registry.move(name, "staging")
        await reconciler._settle(now, note_nothing)
        assert (await registry.version(name)).state == state
