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
    """The instructions that tell a general model what the adapter carries in its weights.

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
    general_prompt: GeneralPromptView
    contract: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CircuitView:
    """The state of a breaker: others are preferred until `resting_until` (monotonic seconds).

    While it is `open`, it is asked only where nobody else can answer, and after its rest by one request at a time:
    `probing` says that there is one.
    """

    resting_until: float = 0.0
    open: bool = False
    probing: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One engine process. `up` is the health check's result, unless an admin or a recycling has it cordoned;
    `resting_until` (monotonic seconds) is the data path's. `circuits` holds what has failed lately: the replica
    itself under the empty name, and the models on it by theirs."""

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

    `continues` says that its engines go on with an assistant's message that has begun; `context_tokens_max` how many
    tokens they take, prompt and answer together, if it is known. `derived` is the router's: what it has worked out of
    this picture, by version; it ends with the picture.
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
