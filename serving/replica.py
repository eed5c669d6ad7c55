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
"""Expected length of an engine's outage while none of its outages has ended yet."""
OUTAGES_REMEMBERED = 5
BACK_SECONDS_MAX = 300.0
"""Longest expected time until an engine is back that is reported: longer ones can't be foreseen."""
OF_MODEL: frozenset[FaultKind] = frozenset({"failed", "missing", "truncated"})
"""Faults of the model that was asked; other models on its replica may still answer."""
OF_REPLICA: frozenset[FaultKind] = frozenset({"unreachable", "dropped", "silent", "overloaded", "key_refused"})
WHOLE = ""
"""Key of the replica's own breaker; the other breakers are named after models."""


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """A replica as configured.

    `store_folder` is the path of the adapter store for its engine (None: the same as for us). `sidecar_url` is the
    sidecar that fills its store with adapters by digest. A POST to `recycle_url` restarts its engine. `engine` is its
    kind; if only OpenAI's API is known of that kind, `url` may have a path. `tls`: see TlsFiles.
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
        """`changed` is called at each change of a breaker. With `memory` the gateway's processes share load and
        breakers."""
        self.config = config
        self.name = config.name
        self._changed = changed
        self._memory = memory
        # load, changed by leases
        self._loads = None if memory is None else memory.row("load", self.name, config.url)
        self.in_flight = 0
        """Requests in flight of this process."""
        self.holds: dict[str, int] = {}
        """Number of leases by the model that answers: a version's name, or the base model's."""
        self._shared_seconds = 0.0
        self._changed_at = 0.0
        # health, changed by the health check and by failed attempts
        self.up = False
        self._breakers: dict[str, Breaker] = {}
        """Breakers of the replica and of models on it, each from a fault until it is forgotten."""
        self._down_at: float | None = None
        self._outages: deque[float] = deque(maxlen=OUTAGES_REMEMBERED)
        """Lengths of its last outages, in seconds."""
        self.trouble = ""
        """The reason why it is down; empty if it is up, or if nothing answers."""
        self.key_trouble = ""
        """The reason why it refuses our key though it may be up; empty once it has answered."""
        self.untold_looks = 0
        """Number of successive looks that it answered without telling its build or its process's start."""
        self.looked_at = float("-inf")
        """The time at which the last look of the health check began, in monotonic seconds."""
        self._looks = None if memory is None else memory.row("looks", self.name, config.url)
        self.engine_version = ""
        self.context_tokens: int | None = None
        """The most tokens that its base model takes, as the engine lists it; None if it does not say."""
        self.life = ""
        """Identifies one process of the engine; empty if the engine does not say."""
        # the models that it lists: name -> the path that it was loaded from
        self.looking = asyncio.Lock()
        self.seen: dict[str, str] = {}
        # from the state in Redis, changed by each new snapshot
        self.loaded: frozenset[str] = frozenset()
        self.cordoned = False

    def lease(self, now: float, model: str, probes: bool = True) -> Lease:
        """One request's hold on this replica and on the model that answers it, from `now` (monotonic seconds).

        Its holder gives it back once. Under an open breaker it is the one request that is let through as a test.
        `probes` is False if its holder will not report the result.
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
        """For leases only: end a request that was let through as a test, whatever its result."""
        for breaker in lease.probes:
            breaker.probed(lease)
        self._changed()

    def give_back(self, now: float, model: str) -> float:
        """For leases only: end one lease. Returns the shared clock's time."""
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
            # an engine whose address comes back has the same row as its replica before
            self._loads[self._memory.process] += more

    @property
    def load(self) -> int:
        """Requests in flight of all processes of this gateway."""
        return self.in_flight if self._loads is None else int(sum(self._loads))

    def view(self) -> ReplicaView:
        """The frozen state of this moment, for the router; the load is passed separately."""
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
        """True if it may get requests at all."""
        return self.up and not self.cordoned

    def awake(self, now: float) -> bool:
        """True if the replica as a whole neither rests nor is being probed."""
        breaker = self._breakers.get(WHOLE)
        return breaker is None or (breaker.my_turn_at <= now and not breaker.probing)

    @property
    def has_room(self) -> bool:
        """True if it can take one more request."""
        return self.load < self.config.in_flight_max

    @property
    def resting_until(self) -> float:
        """The time until which the replica as a whole is skipped, in monotonic seconds."""
        breaker = self._breakers.get(WHOLE)
        return breaker.resting_until if breaker else 0.0

    def breaker_state(self, now: float) -> BreakerState:
        """The state furthest from closed among its own breaker and those of models on it."""
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

        Faults of other kinds are not counted. An `is_doubtful` fault, maybe the request's own, only causes a rest.
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
        """Count a good answer of a model. It closes the breakers of the model and of the replica."""
        if not self._breakers:
            return
        self.key_trouble = ""
        changed = [breaker.answered(now) for breaker in self._of(model)]
        self.forget_faults(now)
        if any(changed):
            self._changed()

    def forget_faults(self, now: float) -> None:
        """Delete breakers that have nothing left to remember, such as that of a version without requests."""
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
        """Take in this model's breaker, which another process has announced; `row` has its numbers."""
        if model not in self._breakers and not Breaker(row).is_well(now):
            self._begin(model)

    def _begin(self, model: str) -> Breaker:
        row = None if self._memory is None else self._memory.row(BREAKER, self.name, self.config.url, model)
        return self._breakers.setdefault(model, Breaker(row, self._memory))

    def release(self) -> None:
        """Give back its part of the shared memory, once no request holds the replica."""
        if self._memory is not None:
            self._memory.release(self.name, self.config.url)

    def forget_sight(self) -> None:
        """Treat it as down until the next look, which is due now: its engine may be another process."""
        self.up, self.seen, self.loaded, self.life = False, {}, frozenset(), ""
        self.looked_at = float("-inf")

    def may_look(self, now: float, interval_seconds: float) -> bool:
        """Take the turn to look at it. False if another process has looked lately; that one informs the others."""
        self.looked_at = now
        if self._looks is None or self._memory is None:
            return True
        with self._memory.locked():
            if max(self._looks) + interval_seconds / 2 > now:
                return False
            self._looks[self._memory.process] = now
            return True

    def went_down(self, now: float) -> None:
        """Note that the health check saw the engine down, perhaps not for the first time."""
        if self._down_at is None:
            self._down_at = now

    def back_in_seconds(self, now: float) -> float:
        """Expected time until it can be asked, at least 1 s: from its last outages, or until its rest is over."""
        if self.there:
            return max(1.0, self.resting_until - now)
        over = 0.0 if self._down_at is None else now - self._down_at
        expected = median(self._outages) if self._outages else OUTAGE_SECONDS_UNKNOWN
        return min(max(1.0, expected - over, over / 2), BACK_SECONDS_MAX)

    def came_up(self, now: float) -> None:
        """Note that the health check saw the engine come up: the next request may try it."""
        if self._down_at is not None:
            self._outages.append(now - self._down_at)
            self._down_at = None
        for breaker in self._breakers.values():
            breaker.may_be_well(now)
        self._changed()

    def _of(self, model: str) -> list[Breaker]:
        return [breaker for breaker in (self._breakers.get(WHOLE), self._breakers.get(model)) if breaker is not None]

    def shared_seconds(self, now: float) -> float:
        """A clock that runs at 1/n while n requests are in flight, so that n requests share one engine second."""
        if self.in_flight:
            self._shared_seconds += (now - self._changed_at) / self.load
        self._changed_at = now
        return self._shared_seconds


def explain_refused_key(pool: str, status: int) -> str:
    """The reason, in words, why an engine of this pool answers with this status (401 or 403)."""
    return f"it answers {status}: pools.{pool}.api_key, or the replica's own, is missing, wrong, or not allowed there"


class Lease:
    """One request's hold on a replica. Given back exactly once, by the object that holds it."""

    __slots__ = ("_began_at", "_held", "_model", "probes", "replica")

    def __init__(self, replica: Replica, began_at: float, model: str) -> None:
        self.replica = replica
        self.probes: tuple[Breaker, ...] = ()
        """The breakers that this request tests."""
        self._model = model
        self._began_at = began_at
        self._held = True

    def share(self, now: float) -> float:
        """The engine time (seconds) that counts for this request so far, shared with the requests beside it."""
        return self.replica.shared_seconds(now) - self._began_at

    def give_back(self, now: float) -> float:
        """End the hold, and return its whole share. A second call raises."""
        if not self._held:
            raise RuntimeError(f"replica {self.replica.name}: a lease was given back twice")
        self._held = False
        if self.probes:
            self.replica.probed(self)
        return self.replica.give_back(now, self._model) - self._began_at
