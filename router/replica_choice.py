"""The replica of a request: filter, then score, then pick.

Requests with the same beginning (a conversation, or a version's own prompt) share a key. They go to the same replica
while its load is near the mean or less, so that its prefix cache serves them. This is consistent hashing with bounded
loads (Mirrokni, Thorup and Zadimoghaddam 2016), over rendezvous hashing (Thaler and Ravishankar 1998).

A pool of more than SCANNED_MAX replicas is not scanned: the key's own few are looked at, by multi-probe consistent
hashing (Appleton and O'Reilly 2015), and a few at random. Without a key, or if its own are busy, the least busy of
those is taken (Mitzenmacher 2001).
"""

from __future__ import annotations

import hashlib
import math
import zlib
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from serving.fleet_view import CircuitView, PoolView, ReplicaView

Lack = Literal["no_replica", "overload"]
"""The reason why no replica was picked: no replica can serve the request, or all that can are full."""

BALANCE_MAX = 1.25
"""The largest load of a replica, as a multiple of the mean, before a key's next choice is taken."""
SCANNED_MAX = 64
"""The largest number of replicas that are all examined."""
DRAWN = 4
"""Number of random replicas that are examined in a larger pool."""
PLACES = 8
"""Places of a key on the ring of a larger pool."""
_WEIGHT_BITS = 64
_WEIGHTS_MASK = (1 << _WEIGHT_BITS) - 1


class Candidates(NamedTuple):
    """The replicas of a pool that are up and have a version, and the place of each on the ring of a large pool.

    `calm`: none of them has failed lately. `points` are ascending; the last one is the first one again, a turn later.
    `on_ring` has the replica of each point.
    """

    replicas: tuple[ReplicaView, ...]
    calm: bool
    points: tuple[int, ...] = ()
    on_ring: tuple[ReplicaView, ...] = ()


def pick(
    pool: PoolView,
    version: str | None,
    in_flight: Mapping[str, int],
    now: float,
    draw: float,
    avoid: frozenset[str] = frozenset(),
    key: str | None = None,
    spare_open: bool = False,
    on_trial: bool = False,
) -> ReplicaView | Lack:
    """A replica of the pool that serves the version (None: the base).

    With a key: the key's first choice of the replicas whose load is within the bound, the same at every gateway.
    Without a key: the least busy replica; `draw` in [0, 1) breaks ties.

    Replicas that rest after a fault, or are being probed, are skipped. If all are, the least bad one is tried, since a
    refusal helps nobody. `spare_open`, for requests with another destination, then excludes replicas whose breaker is
    open. `avoid` holds replicas that this request must not be sent to again. A version that is `on_trial` is asked
    however often it failed itself, so that its verdict has evidence.
    """
    candidates: Candidates = pool.derived.get(version) or _find_candidates(pool, version)
    model = "" if on_trial else version or pool.base_model
    if candidates.points:
        choice = _look_at_some(candidates, in_flight, now, draw, avoid, key, model)
        if choice is not None:
            return choice
    there: Sequence[ReplicaView] = candidates.replicas
    if avoid:
        there = [replica for replica in there if replica.name not in avoid]
    if not there:
        return "no_replica"
    awake = there if candidates.calm else [replica for replica in there if _is_awake(replica, model, now)]
    if not awake:
        if spare_open:
            there = [replica for replica in there if not any(circuit.open for circuit in _circuits(replica, model))]
            if not there:
                return "no_replica"
        awake = [min(there, key=lambda replica: _badness(replica, model))]
    loads = [in_flight.get(replica.name, 0) for replica in awake]
    free = [pair for pair in zip(awake, loads, strict=True) if pair[1] < pair[0].in_flight_max]
    if not free:
        return "overload"
    if len(free) == 1:
        return free[0][0]
    return _least_busy(free, draw) if key is None else _first_choice(free, key)


def _find_candidates(pool: PoolView, version: str | None) -> Candidates:
    """Compute the candidates for a version, once for each view of the pool."""
    there = tuple(replica for replica in pool.replicas if replica.up and (version is None or version in replica.loaded))
    calm = not any(replica.circuits or replica.resting_until for replica in there)
    candidates = Candidates(there, calm)
    if len(there) > SCANNED_MAX:
        on_ring = sorted(there, key=lambda replica: _factor(replica.name))
        points = [_factor(replica.name) for replica in on_ring]
        candidates = Candidates(there, calm, (*points, points[0] + _WEIGHTS_MASK + 1), (*on_ring, on_ring[0]))
    pool.derived[version] = candidates
    return candidates


def _look_at_some(
    candidates: Candidates,
    in_flight: Mapping[str, int],
    now: float,
    draw: float,
    avoid: frozenset[str],
    key: str | None,
    model: str,
) -> ReplicaView | None:
    """The choice among a few replicas of a large pool; None if none of them is free: then all must be examined.

    With a key: the first of its own replicas within the bound, which is computed from the random ones' mean load.
    """
    choice, fewest, total = None, 0, 0
    at = (int(draw * (1 << 53)) + 1) * _STEP & _WEIGHTS_MASK
    for _ in range(DRAWN):
        replica = candidates.replicas[at * len(candidates.replicas) >> _WEIGHT_BITS]
        at = at * _STEP & _WEIGHTS_MASK
        load = in_flight.get(replica.name, 0)
        total += load
        if (choice is None or load < fewest) and _is_free(replica, load, now, avoid, model):
            choice, fewest = replica, load
    if key is None:
        return choice
    bound = math.ceil(BALANCE_MAX * (total + 1) / DRAWN)
    for replica in _list_own(candidates, key):
        load = in_flight.get(replica.name, 0)
        if load < bound and _is_free(replica, load, now, avoid, model):
            return replica
    return choice


def _list_own(candidates: Candidates, key: str) -> list[ReplicaView]:
    """The replicas of a key, nearest first: the next one behind each of its places on the ring, at most PLACES.

    If a replica leaves, the next one behind its places is further away, so keys of other replicas do not move.
    """
    points, on_ring = candidates.points, candidates.on_ring
    start = zlib.crc32(key.encode("utf-8", "surrogatepass")) + 1
    places = [start * factor & _WEIGHTS_MASK for factor in _PLACE_FACTORS]
    nearest = sorted([(points[at := bisect_left(points, place)] - place, at) for place in places])
    return [on_ring[at] for _, at in nearest]


def _is_free(replica: ReplicaView, load: int, now: float, avoid: frozenset[str], model: str) -> bool:
    return load < replica.in_flight_max and _is_awake(replica, model, now) and replica.name not in avoid


def _is_awake(replica: ReplicaView, model: str, now: float) -> bool:
    if replica.resting_until > now:
        return False
    if not replica.circuits:
        return True
    return not any(circuit.probing or circuit.resting_until > now for circuit in _circuits(replica, model))


def _circuits(replica: ReplicaView, model: str) -> list[CircuitView]:
    """The breakers of the replica and of the model on it, if they have failed lately."""
    circuits = (replica.circuits.get(""), replica.circuits.get(model))
    return [circuit for circuit in circuits if circuit is not None]


def _badness(replica: ReplicaView, model: str) -> tuple[bool, float]:
    """The order among replicas that all rest: those that are not open first, then by the shortest rest."""
    circuits = _circuits(replica, model)
    rests = max((circuit.resting_until for circuit in circuits), default=0.0)
    return any(circuit.open for circuit in circuits), max(rests, replica.resting_until)


def _first_choice(replicas: Sequence[tuple[ReplicaView, int]], key: str) -> ReplicaView:
    """The replica with the greatest weight for the key within the bound. One always is: not all exceed the mean."""
    bound = math.ceil(BALANCE_MAX * (sum([load for _, load in replicas]) + 1) / len(replicas))
    point = zlib.crc32(key.encode("utf-8", "surrogatepass")) + 1
    first, heaviest = replicas[0][0], -1
    for replica, load in replicas:
        if load < bound:
            weight = point * _factor(replica.name) & _WEIGHTS_MASK
            if weight > heaviest:
                first, heaviest = replica, weight
    return first


@lru_cache(maxsize=4096)
def _factor(replica: str) -> int:
    """A replica's own odd number of 64 bits. Its product with a key is the key's weight at the replica."""
    return int.from_bytes(hashlib.blake2b(replica.encode(), digest_size=8).digest(), "big") | 1


def _least_busy(replicas: Sequence[tuple[ReplicaView, int]], draw: float) -> ReplicaView:
    fewest = min([load for _, load in replicas])
    ties = [replica for replica, load in replicas if load == fewest]
    return ties[int(draw * len(ties))]


_PLACE_FACTORS = tuple(_factor(f"place {number}") for number in range(PLACES))
_STEP = _factor("step")
