"""Gauges that are counted over the whole fleet."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gateway.gauges import _placements
from serving.adapters.placement import Placement, PlacementState
from serving.fleet import Fleet, PoolConfig
from serving.replica import ReplicaConfig


def test_a_version_is_absent_where_its_pool_has_no_placement_of_it() -> None:
    pools = {"small": 3, "other": 1}
    fleet = Fleet(
        PoolConfig(
            pool, "base", tuple(ReplicaConfig(f"{pool}-{at}", f"http://{pool}-{at}", pool) for at in range(count))
        )
        for pool, count in pools.items()
    )
    states: dict[tuple[str, str], PlacementState] = {
        ("small-0", "a@v1"): "ready",
        ("small-1", "a@v1"): "failed",
        ("small-0", "b@v1"): "ready",
        ("small-1", "b@v1"): "ready",
        ("small-2", "b@v1"): "ready",
        ("small-0", "retired@v1"): "ghost",
        ("other-0", "a@v1"): "ready",
        ("gone", "a@v1"): "ready",
        ("small-0", "forgotten@v1"): "ready",
    }
    placements = {
        (on, name): Placement(replica=on, version=name, state=state, path="/") for (on, name), state in states.items()
    }
    versions = {
        name: SimpleNamespace(name=name, pool="small", state=state)
        for name, state in (("a@v1", "active"), ("b@v1", "ready"), ("new@v1", "verified"), ("retired@v1", "retired"))
    }
    snapshot = SimpleNamespace(placements=placements, versions=versions)
    services: Any = SimpleNamespace(snapshot=SimpleNamespace(current=snapshot), fleet=fleet)
    assert _placements(services) == {
        ("a@v1", "ready"): 1.0,
        ("a@v1", "failed"): 1.0,
        ("a@v1", "absent"): 1.0,
        ("b@v1", "ready"): 3.0,
        ("new@v1", "absent"): 3.0,
    }
