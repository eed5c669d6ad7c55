"""Which replica takes the request: filter, then score, then pick.

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

from serving.view import PoolView, ReplicaView

Lack = Literal["no_replica", "overload"]
"""Why no replica could be picked: none is there for it, or all that are there are full."""

BALANCE_MAX = 1.25
"""How many times the mean load a replica may carry before a key's next choice is taken."""
_WEIGHTS_MASK = (1 << 64) - 1


def pick(
    pool: PoolView,
    version: str | None,
    in_flight: Mapping[str, int],
    now: float,
    draw: float,
    avoid: frozenset[str] = frozenset(),
    key: str | None = None,
) -> ReplicaView | Lack:
    """A replica of the pool that serves the version (None: the base).

    With a key: the key's first choice of those whose load is within the bound, the same one at every gateway. Without
    one: the least busy, ties broken by `draw` in [0, 1).

    Replicas that rest after a fault are passed over, unless all of them rest: then the one that rests the shortest
    is tried, since a refusal helps nobody. `avoid` holds replicas that this request must not be sent to again.
    """
    there = [
        replica
        for replica in pool.replicas
        if replica.up and replica.name not in avoid and (version is None or version in replica.loaded)
    ]
    if not there:
        return "no_replica"
    awake = [replica for replica in there if replica.resting_until <= now] or [
        min(there, key=lambda replica: replica.resting_until)
    ]
    free = [replica for replica in awake if in_flight.get(replica.name, 0) < replica.in_flight_max]
    if not free:
        return "overload"
    if len(free) == 1:
        return free[0]
    if key is None:
        return _least_busy(free, in_flight, draw)
    return _first_choice(free, in_flight, key)


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
