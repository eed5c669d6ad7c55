"""Which replica takes the request: filter, then score, then pick."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from serving.view import PoolView, ReplicaView

Lack = Literal["no_replica", "overload"]
"""Why no replica could be picked: none is there for it, or all that are there are full."""


def pick(
    pool: PoolView,
    version: str | None,
    in_flight: Mapping[str, int],
    now: float,
    draw: float,
    avoid: frozenset[str] = frozenset(),
) -> ReplicaView | Lack:
    """The least busy replica of the pool that serves the version (None: the base), ties broken by `draw` in [0, 1).

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
    return _least_busy(free, in_flight, draw)


def _least_busy(replicas: Sequence[ReplicaView], in_flight: Mapping[str, int], draw: float) -> ReplicaView:
    fewest = min(in_flight.get(replica.name, 0) for replica in replicas)
    ties = [replica for replica in replicas if in_flight.get(replica.name, 0) == fewest]
    return ties[int(draw * len(ties))]
