"""The replica of a request: filter, then score, then pick.

Requests that share a beginning (a conversation, or a version's own prompt) share a key, and go to the same replica
while it is not busier than the others, so that its prefix cache serves them: consistent hashing with bounded loads
(Mirrokni, Thorup and Zadimoghaddam 2016), over rendezvous hashing (Thaler and Ravishankar 1998).
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Literal

from serving.view import CircuitView, PoolView, ReplicaView

Lack = Literal["no_replica", "overload"]
"""The reason why no replica was picked: none is there for it, or all that are there are full."""

BALANCE_MAX = 1.25
"""The largest load of a replica, as a multiple of the mean, before a key's next choice is taken."""
_WEIGHTS_MASK = (1 << 64) - 1


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

    With a key: the key's first choice of those whose load is within the bound, the same one at every gateway. Without
    one: the least busy, ties broken by `draw` in [0, 1).

    Replicas that rest after a fault, or are being probed, are passed over, unless all of them are: then the least bad
    is tried, since a refusal helps nobody. With `spare_open`, for who has somewhere else to go, none is tried whose
    breaker is open. `avoid` holds replicas that this request must not be sent to again. A version that is `on_trial` is
    asked however often it failed itself, so that its verdict has something to go by.
    """
    there = [
        replica
        for replica in pool.replicas
        if replica.up and replica.name not in avoid and (version is None or version in replica.loaded)
    ]
    if not there:
        return "no_replica"
    model = "" if on_trial else version or pool.base_model
    awake = [replica for replica in there if _is_awake(replica, model, now)]
    if not awake:
        if spare_open:
            there = [replica for replica in there if not any(circuit.open for circuit in _circuits(replica, model))]
            if not there:
                return "no_replica"
        awake = [min(there, key=lambda replica: _badness(replica, model))]
    free = [replica for replica in awake if in_flight.get(replica.name, 0) < replica.in_flight_max]
    if not free:
        return "overload"
    if len(free) == 1:
        return free[0]
    if key is None:
        return _least_busy(free, in_flight, draw)
    return _first_choice(free, in_flight, key)


def _is_awake(replica: ReplicaView, model: str, now: float) -> bool:
    if replica.resting_until > now:
        return False
    if not replica.circuits:
        return True
    return not any(circuit.probing or circuit.resting_until > now for circuit in _circuits(replica, model))


def _circuits(replica: ReplicaView, model: str) -> list[CircuitView]:
    """The replica's own, and that of the model on it, as far as they have failed lately."""
    circuits = (replica.circuits.get(""), replica.circuits.get(model))
    return [circuit for circuit in circuits if circuit is not None]


def _badness(replica: ReplicaView, model: str) -> tuple[bool, float]:
    """Pick one of replicas that all rest: first those that are not open, then that which rests the shortest."""
    circuits = _circuits(replica, model)
    rests = max((circuit.resting_until for circuit in circuits), default=0.0)
    return any(circuit.open for circuit in circuits), max(rests, replica.resting_until)


def _first_choice(replicas: Sequence[ReplicaView], in_flight: Mapping[str, int], key: str) -> ReplicaView:
    """One of them is always within the bound, since not all can carry more than their mean."""
    loads = [in_flight.get(replica.name, 0) for replica in replicas]
    bound = math.ceil(BALANCE_MAX * (sum(loads) + 1) / len(loads))
    point = zlib.crc32(key.encode("utf-8", "surrogatepass")) + 1
    first, heaviest = replicas[0], -1
    for replica, load in zip(replicas, loads, strict=True):
        if load < bound:
            weight = point * _factor(replica.name) & _WEIGHTS_MASK
            if weight > heaviest:
                first, heaviest = replica, weight
    return first


@lru_cache(maxsize=4096)
def _factor(replica: str) -> int:
    """A replica's own odd number of 64 bits: a key times it is the key's weight there, for the price of a product."""
    return int.from_bytes(hashlib.blake2b(replica.encode(), digest_size=8).digest(), "big") | 1


def _least_busy(replicas: Sequence[ReplicaView], in_flight: Mapping[str, int], draw: float) -> ReplicaView:
    fewest = min(in_flight.get(replica.name, 0) for replica in replicas)
    ties = [replica for replica in replicas if in_flight.get(replica.name, 0) == fewest]
    return ties[int(draw * len(ties))]
