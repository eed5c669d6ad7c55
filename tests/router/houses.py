"""Fleets and policies to decide on: one small one made by hand, and hypothesis strategies for all others."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType
from typing import Any

from hypothesis import strategies as st

from router.choice import Asked, Moment
from router.overrides import Override
from router.policy import Alias, AttemptLimits, Policy, TaskPolicy
from serving.view import BlueprintView, FleetView, PoolView, ReplicaView, VersionView

NOW = 1000.0
NOW_UNIX = 1_800_000_000.0
TASKS = ("returns", "clauses")
POOLS = ("small", "general")
VERSIONS = ("returns@v1", "returns@v2", "clauses@v1")
EVERYTHING = frozenset({"*"})
POLICY_FIELDS = frozenset({"overrides", "limits", "aliases", "tasks", "callable_pools"})


def version(name: str, pool: str = "small", state: str = "active") -> VersionView:
    blueprint = BlueprintView("Decide the return.", None, MappingProxyType({}))
    return VersionView(
        name, name.partition("@")[0], pool, state, f"sha256:{name}", "sha256:m", MappingProxyType({}), blueprint
    )


def replica(name: str, pool: str, *loaded: str, **changes: Any) -> ReplicaView:
    view = ReplicaView(name, pool, up=True, loaded=frozenset(loaded), resting_until=0.0, in_flight_max=8)
    return replace(view, **changes)


def fleet(*replicas: ReplicaView, in_flight: dict[str, int] | None = None, versions: Any = VERSIONS) -> FleetView:
    """The pools small and general with these replicas."""
    pools = {name: PoolView(name, f"{name}-base", tuple(r for r in replicas if r.pool == name)) for name in POOLS}
    known = {one.name: one for one in (v if isinstance(v, VersionView) else version(v) for v in versions)}
    return FleetView(MappingProxyType(pools), MappingProxyType(known), MappingProxyType(in_flight or {}))


def usual_fleet(**changes: Any) -> FleetView:
    """Two small replicas with every version, two general ones."""
    return fleet(
        replica("small-0", "small", *VERSIONS),
        replica("small-1", "small", *VERSIONS),
        replica("general-0", "general"),
        replica("general-1", "general"),
        **changes,
    )


def policy(**changes: Any) -> Policy:
    """`returns` served by its v1, with general as its exit."""
    return replace(
        Policy(
            7,
            MappingProxyType({"returns": TaskPolicy("returns", "general")}),
            MappingProxyType({"returns": Alias("returns", 1, {"returns@v1": 1.0}, "salt")}),
            frozenset({"general"}),
            (),
            AttemptLimits(),
        ),
        **changes,
    )


def asked(model: str = "returns", **changes: Any) -> Asked:
    return replace(Asked(model, "caller1", EVERYTHING), **changes)


def moment(draw: float = 0.5, now: float = NOW) -> Moment:
    return Moment(now, NOW_UNIX, draw)


draws = st.floats(0, 1, exclude_max=True)
moments = st.builds(moment, draws)
names = st.sampled_from([*TASKS, *POOLS, *VERSIONS, "returns@", "returns@v9", "nobody", "@", ""])
alone = st.sampled_from([EVERYTHING, frozenset({"returns"}), frozenset({"general"}), frozenset()])


@st.composite
def fleets(draw: st.DrawFn) -> FleetView:
    replicas = []
    for pool in POOLS:
        for number in range(draw(st.integers(0, 3))):
            loaded = draw(st.frozensets(st.sampled_from(VERSIONS))) if pool == "small" else ()
            replicas.append(
                replica(
                    f"{pool}-{number}",
                    pool,
                    *loaded,
                    up=draw(st.booleans()),
                    resting_until=draw(st.sampled_from([0.0, NOW - 1, NOW, NOW + 1, NOW + 60])),
                    in_flight_max=draw(st.integers(1, 3)),
                )
            )
    states = st.sampled_from(["verified", "ready", "active", "standby", "quarantined", "retired"])
    known = [version(name, state=draw(states)) for name in draw(st.sets(st.sampled_from(VERSIONS)))]
    return fleet(*replicas, in_flight={r.name: draw(st.integers(0, 4)) for r in replicas}, versions=known)


@st.composite
def overrides(draw: st.DrawFn) -> Override:
    action = draw(st.sampled_from(["general", "version", "refuse"]))
    return Override(
        id=draw(st.sampled_from("abc")),
        action=action,
        task=draw(st.sampled_from([None, *TASKS])),
        contains=draw(st.sampled_from([None, "Fragile", "x"])),
        caller=draw(st.sampled_from([None, "caller1", "caller2"])),
        metadata=draw(st.sampled_from([{}, {"shop": "de"}])),
        version=draw(st.sampled_from([*VERSIONS, "returns@v9"])) if action == "version" else None,
        expires_at=draw(st.sampled_from([None, NOW_UNIX - 1, NOW_UNIX, NOW_UNIX + 1])),
    )


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    tasks = {
        name: TaskPolicy(name, draw(st.sampled_from([None, "general", "small", "gone"])))
        for name in draw(st.sets(st.sampled_from(TASKS)))
    }
    aliases = {}
    for task in draw(st.sets(st.sampled_from(TASKS))):
        ours = [name for name in VERSIONS if name.startswith(task)]
        shares = {name: draw(st.floats(0.01, 1)) for name in draw(st.sets(st.sampled_from(ours), min_size=1))}
        aliases[task] = Alias(task, 1, {name: s / sum(shares.values()) for name, s in shares.items()}, "salt")
    limits = AttemptLimits(retries_max=draw(st.integers(0, 4)))
    rules = tuple(draw(st.lists(overrides(), max_size=3)))
    return policy(tasks=tasks, aliases=aliases, overrides=rules, limits=limits)


askeds = st.builds(
    asked,
    names,
    caller=st.sampled_from(["caller1", "caller2"]),
    models_allowed=alone,
    session=st.one_of(st.none(), st.text(max_size=8)),
    metadata=st.sampled_from([None, {}, {"shop": "de"}]),
    text=st.sampled_from(["", "a fragile vase", "x"]),
)
