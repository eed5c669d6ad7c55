"""One engine process as the gateway sees it: its load, its health, its loaded versions."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from serving.breaker import Breaker, BreakerState
from serving.engine_traits import ENGINE_TRAITS, EngineKind, EngineTraits
from serving.fleet_view import FaultKind, ReplicaView
from serving.shared_memory import BREAKER, Row, SharedMemory
from serving.tls import TlsFiles

log = logging.getLogger(__name__)
OUTAGE_SECONDS_UNKNOWN = 30.0
"""Expected length of an engine's outage before one was seen to end."""
OUTAGES_REMEMBERED = 5
BACK_SECONDS_MAX = 300.0
"""Longest time until an engine is back that is told: nobody knows what is further away."""
OF_MODEL: frozenset[FaultKind] = frozenset({"failed", "missing", "truncated"})
"""Faults that say something of the model that was asked, while others on its replica may answer."""
OF_REPLICA: frozenset[FaultKind] = frozenset({"unreachable", "dropped", "silent", "overloaded", "key_refused"})
WHOLE = ""
"""The replica's own place among the breakers, which are named after models."""


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """A replica as configured.

    `store_folder` is the adapter store as its engine sees it (None: as we do); `sidecar_url` where its store is filled
    by a sidecar that pulls adapters by digest; `recycle_url` where a POST has its engine restarted. `engine` says
    what is known of it; where that is no more than OpenAI's API, `url` may have a path. `tls`: see TlsFiles.
    """

    name: str
    url: str
    pool: str
    api_key: str | None = None
    store_folder: str | None = None
    in_flight_max: int = 256
    sidecar_url: str | None = None
    recycle_url: str | None = None
    engine: EngineKind = "vllm"
    tls: TlsFiles | None = None

    @property
    def place(self) -> tuple[object, ...]:
        """The identity of its engine: pool, address, kind and TLS."""
        return self.pool, self.url, self.engine, self.tls

    @property
    def base_url(self) -> str:
        """The address of OpenAI's API: `/chat/completions` and `/models` are below it."""
        return self.url + self.traits.api_path

    @property
    def traits(self) -> EngineTraits:
        """The traits of its kind of engine."""
        return ENGINE_TRAITS[self.engine]


class Replica:
    """State of one replica. Owner: the fleet. Changed by leases, the health check and the snapshot only."""

    def __init__(
        self, config: ReplicaConfig, changed: Callable[[], None] = lambda: None, memory: SharedMemory | None = None
    ) -> None:
        """`changed` is told of each change of a breaker; with `memory` the gateway's processes share load and
        breakers."""
        self.config = config
        self.name = config.name
        self._changed = changed
        self._memory = memory
        # load, changed by leases
        self._loads = None if memory is None else memory.row("load", self.name, config.url)
        self.in_flight = 0
        """Of this process."""
        self.holds: dict[str, int] = {}
        """Leases by what answers under them: a version's name, or the base model's."""
        self._shared_seconds = 0.0
        self._changed_at = 0.0
        # health, changed by the health check and by failed attempts
        self.up = False
        self._breakers: dict[str, Breaker] = {}
        """Of the replica and of models on it, from a fault until it is forgotten."""
        self._down_at: float | None = None
        self._outages: deque[float] = deque(maxlen=OUTAGES_REMEMBERED)
        """Lengths of its last outages, in seconds."""
        self.trouble = ""
        """The reason why it is down, in words; empty where it is up, or where nothing answers."""
        self.key_trouble = ""
        """The reason why it refuses our key though it may be up, in words; empty once it has answered."""
        self.untold_looks = 0
        """Looks on end in which it answered, but could not tell its build or its process's start."""
        self.looked_at = float("-inf")
        """The time at which the health check last began to look, in monotonic seconds."""
        self._looks = None if memory is None else memory.row("looks", self.name, config.url)
        self.engine_version = ""
        self.context_tokens: int | None = None
        """The tokens that its base model takes, as the engine lists it; None where it does not say."""
        self.life = ""
        """Tells one process of the engine from the next; empty where the engine does not say."""
        # what it has loaded, as it lists it: name -> the path that it was loaded from
        self.looking = asyncio.Lock()
        self.seen: dict[str, str] = {}
        # what the state in Redis says of it, changed by each new snapshot
        self.loaded: frozenset[str] = frozenset()
        self.cordoned = False

    def lease(self, now: float, model: str, probes: bool = True) -> Lease:
        """One request's hold on this replica and on the model that answers it, from `now` (monotonic seconds).

        Its holder gives it back once. Under an open breaker it is the one request that is let through, unless its
        holder will not say what came of it, and so does not probe.
        """
        began_at = self.shared_seconds(now)
        self._count(1)
        self.holds[model] = self.holds.get(model, 0) + 1
        lease = Lease(self, began_at, model)
        if self._breakers and probes:
            lease.probes = tuple(breaker for breaker in self._of(model) if breaker.open and not breaker.probing)
            for breaker in lease.probes:
                breaker.let_through(lease)
            if lease.probes:
                self._changed()
        return lease

    def probed(self, lease: Lease) -> None:
        """For leases only: a request that was let through has ended, whatever became of it."""
        for breaker in lease.probes:
            breaker.probed(lease)
        self._changed()

    def give_back(self, now: float, model: str) -> float:
        """For leases only: one of them has ended. Returns the shared clock's time."""
        shared_seconds = self.shared_seconds(now)
        self._count(-1)
        left = self.holds.get(model, 0) - 1
        if left > 0:
            self.holds[model] = left
        else:
            self.holds.pop(model, None)
        if self.in_flight < 0:
            raise RuntimeError(f"replica {self.name}: a lease was given back that was never taken")
        return shared_seconds

    def _count(self, more: int) -> None:
        self.in_flight += more
        if self._loads is not None and self._memory is not None:
            self._loads[self._memory.process] = self.in_flight

    @property
    def load(self) -> int:
        """Requests in flight of all processes of this gateway."""
        return self.in_flight if self._loads is None else int(sum(self._loads))

    def view(self) -> ReplicaView:
        """The frozen picture of this moment, for the router; the load is told apart from it."""
        return ReplicaView(
            name=self.name,
            pool=self.config.pool,
            up=self.there,
            loaded=self.loaded,
            resting_until=breaker.my_turn_at if (breaker := self._breakers.get(WHOLE)) else 0.0,
            in_flight_max=self.config.in_flight_max,
            circuits={name: breaker.view() for name, breaker in self._breakers.items()},
        )

    @property
    def there(self) -> bool:
        """True if it may be asked at all."""
        return self.up and not self.cordoned

    def awake(self, now: float) -> bool:
        """True if the replica as a whole neither rests nor is being probed."""
        breaker = self._breakers.get(WHOLE)
        return breaker is None or (breaker.my_turn_at <= now and not breaker.probing)

    @property
    def has_room(self) -> bool:
        """True if it could hold one more request."""
        return self.load < self.config.in_flight_max

    @property
    def resting_until(self) -> float:
        """Until when the replica as a whole is passed over, in monotonic seconds."""
        breaker = self._breakers.get(WHOLE)
        return breaker.resting_until if breaker else 0.0

    def breaker_state(self, now: float) -> BreakerState:
        """Of its breakers, its own and those of models on it, the one that is furthest from closed."""
        states = {breaker.state(now) for breaker in self._breakers.values()}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def failed(
        self,
        now: float,
        model: str,
        kind: FaultKind,
        jitter: float,
        rest_seconds: float | None = None,
        had_answered: bool = False,
        is_doubtful: bool = False,
    ) -> None:
        """Count a fault against the replica, or against the model that was asked; see Breaker.failed.

        Faults of another kind count against nobody. One that `is_doubtful` may lie in what was asked for.
        """
        if kind == "key_refused" and not self.key_trouble:
            self.key_trouble = explain_refused_key(self.config.pool, 401)
            pool = self.config.pool
            log.error("replica %s of the pool %s refuses requests: %s", self.name, pool, self.key_trouble)
        name = model if kind in OF_MODEL else WHOLE if kind in OF_REPLICA else None
        if name is None:
            return
        breaker = self._breakers.get(name) or self._begin(name)
        if is_doubtful:
            breaker.rest(now)
        else:
            breaker.failed(now, jitter, rest_seconds, had_answered)
        self._changed()

    def answered(self, now: float, model: str) -> None:
        """Count a good answer of a model: what was open closes."""
        if not self._breakers:
            return
        self.key_trouble = ""
        changed = [breaker.answered(now) for breaker in self._of(model)]
        self.forget_faults(now)
        if any(changed):
            self._changed()

    def forget_faults(self, now: float) -> None:
        """Forget the breakers that have nothing left to remember, such as of a version that is asked no more."""
        for name in [name for name, breaker in self._breakers.items() if breaker.forgotten(now)]:
            breaker = self._breakers.pop(name)
            was_open = breaker.open
            breaker.forget()
            if self._memory is not None:
                self._memory.release(self.name, self.config.url, name)
            if was_open:
                self._changed()
        if not self._breakers:
            self.key_trouble = ""

    def note_breaker(self, model: str, row: Row, now: float) -> None:
        """Another process has told of this model's breaker, whose numbers are in the row."""
        if model not in self._breakers and not Breaker(row).is_well(now):
            self._begin(model)

    def _begin(self, model: str) -> Breaker:
        row = None if self._memory is None else self._memory.row(BREAKER, self.name, self.config.url, model)
        return self._breakers.setdefault(model, Breaker(row, self._memory))

    def release(self) -> None:
        """Give back its part of the shared memory: no request holds it any more."""
        if self._memory is not None:
            self._memory.release(self.name, self.config.url)

    def forget_sight(self) -> None:
        """Take it as down until the next look, which is due: its engine may be another process than was seen."""
        self.up, self.seen, self.loaded, self.life = False, {}, frozenset(), ""
        self.looked_at = float("-inf")

    def may_look(self, now: float, interval_seconds: float) -> bool:
        """Take the turn to look at it. False where another process has looked lately, which tells the others."""
        self.looked_at = now
        if self._looks is None or self._memory is None:
            return True
        with self._memory.locked():
            if max(self._looks) + interval_seconds / 2 > now:
                return False
            self._looks[self._memory.process] = now
            return True

    def went_down(self, now: float) -> None:
        """The health check saw that the engine is down, perhaps not for the first time."""
        if self._down_at is None:
            self._down_at = now

    def back_in_seconds(self, now: float) -> float:
        """Expected time until it can be asked, 1 s or more: by its last outages, or until its rest is over."""
        if self.there:
            return max(1.0, self.resting_until - now)
        over = 0.0 if self._down_at is None else now - self._down_at
        expected = median(self._outages) if self._outages else OUTAGE_SECONDS_UNKNOWN
        return min(max(1.0, expected - over, over / 2), BACK_SECONDS_MAX)

    def came_up(self, now: float) -> None:
        """The health check saw the engine come up: the next request may try it."""
        if self._down_at is not None:
            self._outages.append(now - self._down_at)
            self._down_at = None
        for breaker in self._breakers.values():
            breaker.may_be_well(now)
        self._changed()

    def _of(self, model: str) -> list[Breaker]:
        return [breaker for breaker in (self._breakers.get(WHOLE), self._breakers.get(model)) if breaker is not None]

    def shared_seconds(self, now: float) -> float:
        """A clock that runs at 1/n while n requests are in flight: n of them pay for one engine second together."""
        if self.in_flight:
            self._shared_seconds += (now - self._changed_at) / self.load
        self._changed_at = now
        return self._shared_seconds


def explain_refused_key(pool: str, status: int) -> str:
    """The reason why an engine of this pool answers with this status, 401 or 403, in words."""
    return f"it answers {status}: pools.{pool}.api_key, or the replica's own, is missing, wrong, or not allowed there"


class Lease:
    """One request's hold on a replica. Given back exactly once, by the object that holds it."""

    __slots__ = ("_began_at", "_held", "_model", "probes", "replica")

    def __init__(self, replica: Replica, began_at: float, model: str) -> None:
        self.replica = replica
        self.probes: tuple[Breaker, ...] = ()
        """The breakers that it was let through to see about."""
        self._model = model
        self._began_at = began_at
        self._held = True

    def share(self, now: float) -> float:
        """The engine time (seconds) that this request answers for so far, shared with those beside it."""
        return self.replica.shared_seconds(now) - self._began_at

    def give_back(self, now: float) -> float:
        """End the hold, and return its whole share. A second call raises."""
        if not self._held:
            raise RuntimeError(f"replica {self.replica.name}: a lease was given back twice")
        self._held = False
        if self.probes:
            self.replica.probed(self)
        return self.replica.give_back(now, self._model) - self._began_at
