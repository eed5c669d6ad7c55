"""The frozen picture of fleet and versions for the router's decisions: all that the router may import from serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from serving.engine_traits import EngineKind

FaultKind = Literal[
    "unreachable",
    "dropped",
    "silent",
    "overloaded",
    "key_refused",
    "failed",
    "missing",
    "unserved",
    "truncated",
    "late",
    "oversize",
    "too_long",
    "refused",
]
"""The kinds of faults, as the router sees them; serving.errors translates each fault into one of these."""


@dataclass(frozen=True, slots=True)
class GeneralPromptView:
    """The instructions that teach a general model what the adapter carries in its weights.

    `system` goes before the caller's own system message; `response_format` and `sampling` are used if the caller has
    set none.
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
    general_prompt: GeneralPromptView
    contract: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CircuitView:
    """The state of a breaker: others are preferred until `resting_until` (monotonic seconds).

    While it is `open`, it is asked only if nobody else can answer. After its rest one request at a time is let through;
    `probing` says that one is under way.
    """

    resting_until: float = 0.0
    open: bool = False
    probing: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One engine process. `up` is the health check's result, but False while an admin or a recycling cordons the
    replica. The data path sets `resting_until` (monotonic seconds). `circuits` holds the breakers with recent faults:
    the replica's own under the empty name, and those of its models under their names."""

    name: str
    pool: str
    up: bool
    loaded: frozenset[str]
    resting_until: float
    in_flight_max: int
    circuits: Mapping[str, CircuitView] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PoolView:
    """The replicas of one base model; `base_model` is the name under which its engines serve the base.

    `continues`: its engines can continue an assistant's message that has begun. `context_tokens_max` is the number of
    tokens that they take, prompt and answer together, if it is known. The router owns `derived`: its results from this
    picture, by version, which end with the picture.
    """

    name: str
    base_model: str
    replicas: tuple[ReplicaView, ...]
    continues: bool = False
    context_tokens_max: int | None = None
    engine: EngineKind = "vllm"
    derived: dict[str | None, Any] = field(init=False, repr=False, compare=False, default_factory=dict)


@dataclass(frozen=True, slots=True)
class FleetView:
    """All pools and versions, and how many requests each replica holds at this moment."""

    pools: Mapping[str, PoolView]
    versions: Mapping[str, VersionView]
    in_flight: Mapping[str, int] = field(default_factory=dict)
