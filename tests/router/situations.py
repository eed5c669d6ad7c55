"""Fleets and policies to decide on: one small one made by hand, and hypothesis strategies for all others."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from hypothesis import settings
from hypothesis import strategies as st

from router.choice import choose
from router.findings import CHECK_NAMES, CheckName, CheckPolicy, FallbackName
from router.fitted import Fitted
from router.overrides import Override
from router.policy import Alias, AttemptLimits, Policy, Shift, TaskPolicy
from router.routing_data import NO_SCORES, Choice, Moment, RoutingRequest, Scores
from serving.adapters.versions_and_aliases import VERSION_STATES
from serving.fleet_view import CircuitView, FaultKind, FleetView, GeneralPromptView, PoolView, ReplicaView, VersionView

FAILED = ("no_replica", "overload", "timeout", "engine_error", "context_length")
BEFORE = ("degraded", "out_of_scope", "other_language", "holdout", "predicted_gain")
ACTIVE = ("override", "pinned", "adapter", "canary", *BEFORE, *FAILED)
RESERVED = ("contract", "low_confidence", "refusal")
"""Reasons that `choose` never gives: they come after an answer."""
NOW = 1000.0
NOW_UNIX = 1_800_000_000.0
TASKS = ("returns", "clauses")
POOLS = ("small", "general")
VERSIONS = ("returns@v1", "returns@v2", "clauses@v1")
EVERYTHING = frozenset({"*"})


def version(name: str, pool: str = "small", state: str = "active") -> VersionView:
    general_prompt = GeneralPromptView("Decide the return.", None, MappingProxyType({}))
    return VersionView(
        name, name.partition("@")[0], pool, state, f"sha256:{name}", "sha256:m", MappingProxyType({}), general_prompt
    )


def replica(name: str, pool: str, *loaded: str, **changes: Any) -> ReplicaView:
    view = ReplicaView(name, pool, up=True, loaded=frozenset(loaded), resting_until=0.0, in_flight_max=8)
    return replace(view, **changes)


def fleet(
    *replicas: ReplicaView,
    in_flight: dict[str, int] | None = None,
    versions: Any = VERSIONS,
    pools: Mapping[str, Mapping[str, Any]] | None = None,
) -> FleetView:
    """The pools small and general with these replicas; `pools` holds what else is to be known of them."""
    more = pools or {}
    pools = {
        name: PoolView(name, f"{name}-base", tuple(r for r in replicas if r.pool == name), **more.get(name, {}))
        for name in POOLS
    }
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
    """`returns` served by its v1, with general as its fallback."""
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


def asked(model: str = "returns", **changes: Any) -> RoutingRequest:
    return replace(RoutingRequest(model, "caller1", EVERYTHING), **changes)


def moment(draw: float = 0.5, now: float = NOW, fallbacks_closed: frozenset[str] = frozenset()) -> Moment:
    return Moment(now, NOW_UNIX, draw, fallbacks_closed)


@dataclass(frozen=True)
class Near:
    """A training prompt that is near."""

    id: str
    similarity: float = 0.5


@dataclass(frozen=True)
class Covered:
    """A scope model's score of a text."""

    score: float
    neighbours: tuple[Near, ...] = (Near("p1"), Near("p2"), Near("p3"))
    language: str = ""


@dataclass(frozen=True)
class Cut:
    """A fitted model, of scope or of the gain, as far as the router asks one: the same threshold for each share."""

    at: float
    shown_to_help: bool = True

    def threshold(self, _: float) -> float:
        return self.at


def fitted(scope: float | None = None, gain: float | None = None, shown_to_help: bool = True) -> Fitted:
    """Models with these thresholds, those that are given."""
    of_scope = None if scope is None else Cut(scope)
    of_gain = None if gain is None else Cut(gain, shown_to_help)
    return Fitted(of_scope, None, of_gain)  # type: ignore[arg-type]


def scored(version: str = "returns@v1", scope: float | None = None, gain: float | None = None) -> Scores:
    """The scores of a request by a version's models."""
    return Scores(version, None if scope is None else Covered(scope), gain)  # type: ignore[arg-type]


def checked_task(
    fallbacks: Mapping[str, tuple[FallbackName, ...]] | None = None, **checks: CheckPolicy
) -> dict[str, TaskPolicy]:
    """The task `returns` with these checks and fallbacks."""
    return {"returns": TaskPolicy("returns", "general", checks=checks, fallbacks=fallbacks or {})}  # type: ignore[arg-type]


draws = st.floats(0, 1, exclude_max=True)


class Case(NamedTuple):
    """One request on some fleet under some policy, and what goes wrong at each attempt: kind and Retry-After."""

    asked: RoutingRequest
    scores: Scores
    policy: Policy
    view: FleetView
    moment: Moment
    faults: tuple[tuple[FaultKind, float | None], ...]


def case(seed: int) -> Case:
    """Any case at all; the same one for the same seed."""
    chance = random.Random(seed)
    request, rules, view = any_request(chance), any_policy(chance), any_fleet(chance)
    at = moment(chance.random(), fallbacks_closed=frozenset(some(chance, TASKS) if chance.random() < 0.2 else ()))
    return Case(request, any_scores(chance), rules, view, at, any_faults(chance))


cases = st.builds(case, st.integers(0, (1 << 32) - 1))
"""From seeds, not field by field: so they are cheap enough for hundreds of cases a test."""
many = settings(max_examples=max(400, settings().max_examples))


def some(chance: random.Random, names: Sequence[str], least: int = 0) -> list[str]:
    return chance.sample(names, chance.randint(least, len(names)))


def any_request(chance: random.Random) -> RoutingRequest:
    models = [*TASKS * 12, *POOLS, *VERSIONS * 2, "auto", "auto", "returns@v9", "nobody", "@", ""]
    return RoutingRequest(
        chance.choice(models),
        chance.choice(["caller1", "caller2"]),
        chance.choice(
            [
                *[EVERYTHING] * 12,
                *[frozenset({"returns"}), frozenset({"general"}), frozenset()],
                *[frozenset({"auto"}), frozenset({"auto", "returns"}), frozenset({"auto", "general"})],
            ]
        ),
        chance.choice([None, "", "a session", "ein Gespräch"]),
        chance.choice([None, {}, {"shop": "de"}]),
        chance.choice(["", "a fragile vase", "x"]),
    )


def any_fleet(chance: random.Random) -> FleetView:
    replicas = [
        replica(
            f"{pool}-{number}",
            pool,
            *(some(chance, VERSIONS, chance.choice([1, 2, 3])) if pool == "small" else ()),
            up=chance.random() < 0.95,
            resting_until=chance.choice([0.0, 0.0, NOW - 1, NOW, NOW + 1, NOW + 60]),
            in_flight_max=chance.randint(2, 4),
            circuits=any_circuits(chance),
        )
        for pool in POOLS
        for number in range(chance.choice([0, 1, 2, 3, 4, 4]))
    ]
    states = [*VERSION_STATES, *["active"] * 12]
    known = [version(name, state=chance.choice(states)) for name in some(chance, VERSIONS, chance.choice([1, 3, 3]))]
    told = {
        name: {"continues": chance.random() < 0.5, "context_tokens_max": chance.choice([None, 2048, 8192])}
        for name in POOLS
    }
    in_flight = {r.name: chance.randint(0, 3) for r in replicas}
    return fleet(*replicas, in_flight=in_flight, versions=known, pools=told)


def any_circuits(chance: random.Random) -> dict[str, CircuitView]:
    return {
        name: CircuitView(chance.choice([0.0, NOW - 1, NOW + 1, NOW + 9]), chance.random() < 0.5, chance.random() < 0.2)
        for name in some(chance, ["", "small-base", *VERSIONS])
        if chance.random() < 0.3
    }


def any_override(chance: random.Random) -> Override:
    action = chance.choice(["general", "version", "refuse"])
    return Override(
        id=chance.choice("abc"),
        action=action,  # type: ignore[arg-type]
        task=chance.choice([None, *TASKS]),
        contains=chance.choice([None, None, "Fragile", "x"]),
        caller=chance.choice([None, None, "caller1", "caller2"]),
        metadata=chance.choice([{}, {"shop": "de"}]),
        version=chance.choice([*VERSIONS, "returns@v9"]) if action == "version" else None,
        expires_at=chance.choice([None, NOW_UNIX - 1, NOW_UNIX, NOW_UNIX + 1]),
    )


def any_policy(chance: random.Random) -> Policy:
    fallbacks = [None, "general", "general", "small", "gone"]
    aliases = {}
    for task in some(chance, TASKS, chance.choice([1, 2, 2])):
        ours = some(chance, [name for name in VERSIONS if name.startswith(task)], 1)
        shares = [chance.uniform(0.01, 1) for _ in ours]
        weights = {name: share / sum(shares) for name, share in zip(ours, shares, strict=True)}
        previous_version = chance.choice([None, *(name for name in VERSIONS if name.startswith(task))])
        aliases[task] = Alias(task, 1, weights, "salt", previous_version=previous_version)
    tasks = {
        name: TaskPolicy(
            name,
            chance.choice(fallbacks),
            checks=any_checks(chance),
            fallbacks=any_fallbacks(chance),
            pools_allowed=chance.choice([*[None] * 6, frozenset({"small"}), frozenset({"general"}), frozenset()]),
        )
        for name in some(chance, TASKS, chance.choice([1, 2, 2]))
    }
    return policy(
        tasks=tasks,
        fitted={name: any_fitted(chance) for name in some(chance, VERSIONS, 1)},
        shifts={name: Shift(chance.random()) for name in (some(chance, VERSIONS) if chance.random() < 0.5 else ())},
        auto_pool=chance.choice([None, "general", "general", "small", "gone"]),
        aliases=aliases,
        overrides=tuple(any_override(chance) for _ in range(chance.choice([0, 0, 0, 0, 0, 1, 3]))),
        limits=AttemptLimits(retries_max=chance.randint(0, 4)),
    )


def any_checks(chance: random.Random) -> dict[CheckName, CheckPolicy]:
    if chance.random() < 0.4:
        return {}
    shares = [0.0, 0.05, 0.5, 1.0]
    return {
        name: CheckPolicy(chance.choice(["observe", "enforce"]), chance.choice(shares))
        for name in some(chance, CHECK_NAMES)
    }


def any_fallbacks(chance: random.Random) -> dict[str, tuple[FallbackName, ...]]:
    orders: list[tuple[FallbackName, ...]] = [
        ("general",),
        ("previous_version",),
        ("needs_human",),
        ("previous_version", "general"),
    ]
    orders += [
        ("general", "previous_version"),
        ("general", "needs_human"),
        ("general", "previous_version", "needs_human"),
    ]
    reasons = ["override", *BEFORE, *RESERVED, *FAILED]
    return {reason: chance.choice(orders) for reason in some(chance, reasons) if chance.random() < 0.7}


def any_fitted(chance: random.Random) -> Fitted:
    levels = [None, -math.inf, -0.5, 0.0, 0.5]
    return fitted(chance.choice(levels), chance.choice(levels), chance.random() < 0.7)


def any_scores(chance: random.Random) -> Scores:
    if chance.random() < 0.3:
        return NO_SCORES
    scope, gain = chance.choice([None, -2.0, 0.0, 1.0]), chance.choice([None, -0.2, 0.0, 0.9])
    return replace(scored(chance.choice(VERSIONS), scope, gain), task=chance.choice([None, *TASKS]))


def any_faults(chance: random.Random) -> tuple[tuple[FaultKind, float | None], ...]:
    """More than any walk may take."""
    mild = get_args(FaultKind)[:-1]
    refused = chance.random() < 0.2
    waits = [None, None, 0.0, 0.5, 4.0, 30.0, 3600.0]
    found = [(chance.choice(mild), chance.choice(waits)) for _ in range(16)]
    return (*found[: chance.randint(0, 3)], ("refused", None)) if refused else tuple(found)


SECONDS = 60.0
"""Left for an answer."""


def start(model: str = "returns", view: FleetView | None = None, rules: Policy | None = None) -> Choice:
    decision = choose(asked(model), NO_SCORES, rules or policy(), view or usual_fleet(), moment(0.0))
    assert isinstance(decision, Choice)
    return decision
