"""The frozen picture of fleet and versions that the router decides on: all that it may import from serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

FaultKind = Literal["unreachable", "silent", "overloaded", "failed", "missing", "truncated", "refused"]
"""What can go wrong at an engine, as the router sees it; serving.errors translates each fault into one of these."""


@dataclass(frozen=True, slots=True)
class BlueprintView:
    """What tells a general model that which the adapter carries in its weights.

    `system` goes before the caller's own system message; `response_format` and `sampling` are used where the
    caller has set none.
    """

    system: str
    response_format: Mapping[str, Any] | None
    sampling: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class VersionView:
    """A version as the router knows it. `name` (`returns@v3`) is also its name on every engine."""

    name: str
    task: str
    pool: str
    state: str
    digest: str
    manifest_digest: str
    sampling: Mapping[str, Any]
    blueprint: BlueprintView
    contract: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One engine process. `up` is the health check's word, unless an admin or a recycling has it cordoned;
    `resting_until` (monotonic seconds) is the data path's."""

    name: str
    pool: str
    up: bool
    loaded: frozenset[str]
    resting_until: float
    in_flight_max: int


@dataclass(frozen=True, slots=True)
class PoolView:
    """The replicas of one base model; `base_model` is the name under which its engines serve the base."""

    name: str
    base_model: str
    replicas: tuple[ReplicaView, ...]


@dataclass(frozen=True, slots=True)
class FleetView:
    """All pools and versions, and how many requests each replica holds at this moment."""

    pools: Mapping[str, PoolView]
    versions: Mapping[str, VersionView]
    in_flight: Mapping[str, int] = field(default_factory=dict)
