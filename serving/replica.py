"""One engine process as the gateway sees it: its load, its health, what it has loaded."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from serving.view import ReplicaView


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """A replica as configured.

    `store_folder` is the adapter store as its engine sees it (None: as we do); `sidecar_url` where its store is filled
    by a sidecar that pulls adapters by digest; `recycle_url` where a POST has its engine started anew.
    """

    name: str
    url: str
    pool: str
    api_key: str | None = None
    store_folder: str | None = None
    in_flight_max: int = 256
    sidecar_url: str | None = None
    recycle_url: str | None = None


class Replica:
    """State of one replica. Owner: the fleet. Changed by leases, the health check and the snapshot only."""

    def __init__(self, config: ReplicaConfig) -> None:
        self.config = config
        self.name = config.name
        # load, changed by leases
        self.in_flight = 0
        self.holds: dict[str, int] = {}
        """Leases by what answers under them: a version's name, or the base model's."""
        self._shared_seconds = 0.0
        self._changed_at = 0.0
        # health, changed by the health check and by failed attempts
        self.up = False
        self.resting_until = 0.0
        self._rests = 0
        self.engine_version = ""
        self.life = ""
        """Tells one process of the engine from the next; empty where the engine does not say."""
        # what it has loaded, as it lists it: name -> the path that it was loaded from
        self.looking = asyncio.Lock()
        self.seen: dict[str, str] = {}
        # what the state in Redis says of it, changed by each new snapshot
        self.loaded: frozenset[str] = frozenset()
        self.cordoned = False

    def lease(self, now: float, model: str) -> Lease:
        """One request's hold on this replica and on the model that answers it, from `now` (monotonic seconds).

        Its holder gives it back once.
        """
        began_at = self.shared_seconds(now)
        self.in_flight += 1
        self.holds[model] = self.holds.get(model, 0) + 1
        return Lease(self, began_at, model)

    def give_back(self, now: float, model: str) -> None:
        """For leases only: one of them has ended."""
        self.shared_seconds(now)
        self.in_flight -= 1
        left = self.holds.get(model, 0) - 1
        if left > 0:
            self.holds[model] = left
        else:
            self.holds.pop(model, None)
        if self.in_flight < 0:
            raise RuntimeError(f"replica {self.name}: a lease was given back that was never taken")

    def view(self) -> ReplicaView:
        """The frozen picture of this moment, for the router; the load is told apart from it."""
        return ReplicaView(
            self.name,
            self.config.pool,
            self.up and not self.cordoned,
            self.loaded,
            self.resting_until,
            self.config.in_flight_max,
        )

    def rest(self, now: float, seconds: float, seconds_max: float = 30.0) -> None:
        """Pass this replica over for a while after a fault; longer each time it fails again."""
        self.resting_until = max(self.resting_until, now + min(seconds * 2**self._rests, seconds_max))
        self._rests = min(self._rests + 1, 8)

    def wake(self) -> None:
        """It answered: the next fault starts with a short rest again."""
        self._rests = 0
        self.resting_until = 0.0

    def shared_seconds(self, now: float) -> float:
        """A clock that runs at 1/n while n requests are in flight: n of them pay for one engine second together."""
        if self.in_flight:
            self._shared_seconds += (now - self._changed_at) / self.in_flight
        self._changed_at = now
        return self._shared_seconds


class Lease:
    """One request's hold on a replica. Given back exactly once, by the object that holds it."""

    __slots__ = ("_began_at", "_held", "_model", "replica")

    def __init__(self, replica: Replica, began_at: float, model: str) -> None:
        self.replica = replica
        self._model = model
        self._began_at = began_at
        self._held = True

    def share(self, now: float) -> float:
        """The engine time (seconds) that this request answers for so far, shared with those beside it."""
        return self.replica.shared_seconds(now) - self._began_at

    def give_back(self, now: float) -> None:
        """End the hold. A second call raises."""
        if not self._held:
            raise RuntimeError(f"replica {self.replica.name}: a lease was given back twice")
        self._held = False
        self.replica.give_back(now, self._model)
