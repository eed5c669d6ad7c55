"""The plan of the replicas that are to hold each version of a pool. Pure: the reconciler carries it out.

Rendezvous hashing (highest random weight, Thaler and Ravishankar 1998) with a bounded number of versions per replica
(Mirrokni, Thorup and Zadimoghaddam 2016). Each version has its own order of the replicas, so a new or lost replica
moves few versions. A placed version stays, even if another replica would be more even: a move costs a load.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

BALANCE_MAX = 1.25
"""A replica takes at most this multiple of the mean number of versions while another one has fewer."""
SHRINK_BELOW_RATIO = 0.6
"""A copy is removed only if the others would then run below this part of their target."""


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand for a version: its requests in flight at all gateways, as a smoothed mean, and its priority. Higher is
    placed first: active before canary before previous version before ready."""

    in_flight: float
    priority: int


@dataclass(frozen=True, slots=True)
class Room:
    """The room on a replica: `max_loras` versions at once in a batch, `places` of our versions in all."""

    name: str
    max_loras: int
    places: int


def spread(
    demands: Mapping[str, Demand],
    replicas: Sequence[Room],
    replicas_min: int,
    in_flight_target: int,
    before: Mapping[str, Collection[str]],
) -> Mapping[str, tuple[str, ...]]:
    """The replicas that should hold each version, the version's first choice first; none if there is no place.

    A version gets `replicas_min` copies (0: one on every replica), and more above `in_flight_target` requests in flight
    a copy. `before` has its present replicas. A placed version that is wanted gives way only to a version of higher
    priority. Copies for load take only places that nobody needs. Total: it raises for no input.
    """
    rooms = {room.name: room for room in replicas}
    copies_min = min(replicas_min, len(rooms)) if replicas_min > 0 else len(rooms)
    locations = {version: rooms.keys() & before.get(version, ()) for version in demands}
    counts = {
        version: _copies(demand.in_flight, len(locations[version]), copies_min, len(rooms), in_flight_target)
        for version, demand in demands.items()
    }
    plan = _Plan(demands, rooms, sum(counts.values()))
    plan.keep(counts, locations)
    ranked = sorted(demands, key=lambda version: (-demands[version].priority, version))
    groups = [list(group) for _, group in groupby(ranked, key=lambda version: demands[version].priority)]
    for group in groups:
        plan.fill(group, dict.fromkeys(group, copies_min), displace=True)
    for group in groups:
        plan.fill(group, counts, displace=False)
    return plan.placed()


def _copies(in_flight: float, now: int, copies_min: int, copies_max: int, in_flight_target: int) -> int:
    """The number of copies that a version with `now` copies should have."""
    target = max(1, in_flight_target)
    enough = max(copies_min, _filled(in_flight / target, copies_max))
    ample = max(copies_min, _filled(in_flight / (target * SHRINK_BELOW_RATIO), copies_max))
    return max(enough, min(now, ample))


def _filled(copies: float, copies_max: int) -> int:
    return math.ceil(min(copies, copies_max)) if copies > 0 else 0


def _weight(version: str, replica: str) -> int:
    digest = hashlib.blake2b(f"{version}\n{replica}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _in_order(version: str, replicas: Iterable[str]) -> list[str]:
    """The version's own order of these replicas. All of a large fleet take long: pass only those that matter."""
    return sorted(replicas, key=lambda replica: (-_weight(version, replica), replica))


class _Plan:
    """The unfinished plan: the replicas of each version, and the versions on each replica."""

    def __init__(self, demands: Mapping[str, Demand], rooms: Mapping[str, Room], copies: int) -> None:
        self._demands = demands
        self._rooms = rooms
        self._even = math.ceil(BALANCE_MAX * copies / len(rooms)) if rooms else 0
        self._replicas_of: dict[str, set[str]] = {version: set() for version in demands}
        self._versions_on: dict[str, set[str]] = {replica: set() for replica in rooms}
        self._orders: dict[str, list[str]] = {}

    def keep(self, counts: Mapping[str, int], locations: Mapping[str, Iterable[str]]) -> None:
        """Keep versions where they are, up to the wanted copies and the places of each replica."""
        for version, replicas in locations.items():
            for replica in _in_order(version, replicas)[: counts[version]]:
                self._put(version, replica)
        for replica, versions in sorted(self._versions_on.items()):
            over = len(versions) - max(0, self._rooms[replica].places)
            for version in sorted(versions, key=self._goes_first)[: max(0, over)]:
                self._take(version, replica)

    def fill(self, versions: Sequence[str], counts: Mapping[str, int], displace: bool) -> None:
        """Give each version its next copy, in turn, until it has the wanted copies or no place is left."""
        for copies in range(1, max(counts[version] for version in versions) + 1):
            for version in versions:
                if len(self._replicas_of[version]) < min(copies, counts[version]):
                    self._place(version, displace)

    def placed(self) -> dict[str, tuple[str, ...]]:
        """The replicas of each version, in the version's own order."""
        return {version: tuple(_in_order(version, replicas)) for version, replicas in self._replicas_of.items()}

    def _place(self, version: str, displace: bool) -> None:
        order = self._orders.get(version) or self._orders.setdefault(version, _in_order(version, self._rooms))
        there = [replica for replica in order if replica not in self._replicas_of[version]]
        for limit in (self._evenly, self._batched, self._at_all):
            for replica in there:
                if len(self._versions_on[replica]) < limit(self._rooms[replica]):
                    return self._put(version, replica)
        if displace:
            self._displace(version, there)
        return None

    def _displace(self, version: str, there: Sequence[str]) -> None:
        """Take the place of the version of lower priority that gives way first, if there is one."""
        lower = [
            (self._goes_first(other), at, other)
            for at, replica in enumerate(there)
            for other in self._versions_on[replica]
            if self._demands[other].priority < self._demands[version].priority
        ]
        if lower:
            _, at, other = min(lower)
            self._take(other, there[at])
            self._put(version, there[at])

    def _goes_first(self, version: str) -> tuple[int, int, str]:
        """Sort key for giving way: lowest priority first, and of those the version with the most copies."""
        return self._demands[version].priority, -len(self._replicas_of[version]), version

    def _evenly(self, room: Room) -> int:
        return min(self._even, room.max_loras, room.places)

    def _batched(self, room: Room) -> int:
        return min(room.max_loras, room.places)

    def _at_all(self, room: Room) -> int:
        return room.places

    def _put(self, version: str, replica: str) -> None:
        self._replicas_of[version].add(replica)
        self._versions_on[replica].add(version)

    def _take(self, version: str, replica: str) -> None:
        self._replicas_of[version].remove(replica)
        self._versions_on[replica].remove(version)
