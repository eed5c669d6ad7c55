"""A version on a replica: its state, and the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import msgspec

PlacementState = Literal["loading", "probing", "ready", "closing", "drained", "unloading", "ghost", "unknown", "failed"]
"""`absent` is the state of a version without a placement."""
PLACEMENT_STATES: tuple[PlacementState, ...] = get_args(PlacementState)
UNDER_WAY: frozenset[PlacementState] = frozenset({"loading", "probing"})
"""States in which an engine works on a version that it has not served yet in its life."""
HELD: frozenset[PlacementState] = frozenset({"loading", "probing", "ready", "unknown"})
"""States in which a replica has a version, or will have it soon."""

RETRY_SECONDS_MAX = 120.0
"""Longest wait for the next try. A placement with a longer wait was stored before the clock was set back."""

Step = Literal["none", "load", "probe", "reopen", "close", "drain", "unload", "ghost", "lost", "forget", "block"]
Listed = Literal["here", "elsewhere", "not"]


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version on a replica, as it is stored. Only the reconciler that has the job changes it.

    `life` is the engine process that it holds for; `fingerprint` is the one that was probed. `since` and `retry_at` are
    in Unix seconds. `ghosts` counts copies unloaded in this life: the engine forgot their name, but has their weights.
    `wrong`: it failed because of its answers.
    """

    replica: str
    version: str
    state: PlacementState
    path: str
    life: str = ""
    fingerprint: str = msgspec.field(default="", name="stack")  # the stored name of earlier releases
    since: float = 0.0
    ghosts: int = 0
    failures: int = 0
    retry_at: float = 0.0
    wrong: bool = False
    note: str = ""

    @property
    def key(self) -> str:
        """Its name in the object store."""
        return name_placement(self.replica, self.version)

    def to_json(self) -> dict[str, Any]:
        """The form that the object store keeps."""
        built: dict[str, Any] = msgspec.to_builtins(self)
        return built


def name_placement(replica: str, version: str) -> str:
    """The name of a placement in the object store."""
    return f"{replica}/{version}"


def read_placement(_: str, raw: Mapping[str, Any]) -> Placement:
    """A placement of the object store. Raises ValidationError if this release can't read it."""
    return msgspec.convert(raw, Placement)


def map_by_place(placements: Iterable[Placement]) -> dict[tuple[str, str], Placement]:
    """Placements by replica and version."""
    return {(placement.replica, placement.version): placement for placement in placements}


def group_by_replica(placements: Mapping[tuple[str, str], Placement]) -> dict[str, dict[tuple[str, str], Placement]]:
    """The same placements, grouped by replica."""
    return _group(placements, 0)


def group_by_version(placements: Mapping[tuple[str, str], Placement]) -> dict[str, dict[tuple[str, str], Placement]]:
    """The same placements, grouped by version."""
    return _group(placements, 1)


def _group(placements: Mapping[tuple[str, str], Placement], part: int) -> dict[str, dict[tuple[str, str], Placement]]:
    parts: dict[str, dict[tuple[str, str], Placement]] = {}
    for place, placement in placements.items():
        parts.setdefault(place[part], {})[place] = placement
    return parts


@dataclass(frozen=True, slots=True)
class Sight:
    """The present view of a version on a replica.

    `wanted`: it should be there, and may be. `listed`: whether the engine lists the name, and with our path. `idle`: no
    gateway holds a lease on it. `life` and `fingerprint` are the engine's present ones. `asked_at` (Unix seconds) is
    when its version last changed its state: earlier failures are ignored.
    """

    wanted: bool
    listed: Listed
    life: str
    fingerprint: str
    idle: bool
    now: float
    asked_at: float = 0.0
    drain_seconds_max: float = 600.0


def may_be_one_life(first: str, second: str) -> bool:
    """Return whether two engine processes may be the same: unless both are known and differ.

    If one gateway can't read an engine's start, what others have proven there still holds. A restarted engine lists no
    adapter before it is loaded again, and that load is stored first.
    """
    return not first or not second or first == second


def next_step(placement: Placement | None, sight: Sight) -> Step:
    """The reconciler's next step with a version on a replica that is up. Total: every input has one step."""
    if placement is not None and not may_be_one_life(placement.life, sight.life):
        return "lost"  # the engine was restarted: nothing known of the old one holds, ghosts included
    if sight.listed == "elsewhere":
        if sight.wanted:
            return "block"
        return "none" if placement is None or placement.state == "ghost" else "forget"
    if sight.wanted:
        return _step_to_ready(placement, sight)
    return _step_to_absent(placement, sight)


def _step_to_ready(placement: Placement | None, sight: Sight) -> Step:
    if placement is None:
        return "probe" if sight.listed == "here" else "load"
    # If it was proven in an unknown life, it is probed again once the life is known: a restart is seen at once.
    proven = placement.fingerprint == sight.fingerprint and sight.life in ("", placement.life)
    if placement.state in ("failed", "unknown") and placement.since >= sight.asked_at and _waits(placement, sight):
        return "none"
    if sight.listed == "not":
        # vLLM 0.32 ends if a name is loaded again while answers of its unloaded copy run (docs/explanation/swaps.md)
        return "none" if placement.ghosts and not sight.idle else "load"
    if placement.state == "failed":
        return "unload" if sight.idle else "none"
    if placement.state == "ready" and proven:
        return "none"
    return "reopen" if placement.state in ("closing", "drained") and proven else "probe"


def _waits(placement: Placement, sight: Sight) -> bool:
    return sight.now < placement.retry_at <= sight.now + RETRY_SECONDS_MAX


def _step_to_absent(placement: Placement | None, sight: Sight) -> Step:
    state = None if placement is None else placement.state
    if sight.listed == "here":
        if state == "closing" and placement is not None:
            overdue = sight.now - placement.since > sight.drain_seconds_max
            return "drain" if sight.idle or overdue else "none"
        if state not in ("drained", "unloading") or placement is None:
            return "close"
        return "none" if _waits(placement, sight) else "unload"
    if state is None or state == "ghost":
        return "none"
    return "forget" if state == "failed" else "ghost"


@dataclass(frozen=True, slots=True)
class Capacity:
    """The number of adapters that a replica's engine can hold, and does hold: registered names (of any loader) and
    ghosts.

    An engine that gets one more than `max_cpu_loras` reads adapters from disk again inside its step.
    """

    max_loras: int
    max_cpu_loras: int
    registered: int
    ghosts: int

    @property
    def places(self) -> int:
        """Most adapters that it may hold; one place stays free."""
        return self.max_cpu_loras - 1

    @property
    def loads_left(self) -> int:
        """Loads that it can take before an adapter has to be evicted."""
        return max(0, self.places - self.registered - self.ghosts)
