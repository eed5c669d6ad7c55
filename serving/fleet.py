"""All replicas, by pool. The fleet owns their state and gives the router frozen pictures of it."""

from __future__ import annotations

import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from serving.engine_traits import EngineKind
from serving.fleet_view import FleetView, PoolView, VersionView
from serving.replica import Replica, ReplicaConfig
from serving.replica_sources import ReplicaSource
from serving.shared_memory import BREAKER, SharedMemory


@dataclass(frozen=True, slots=True)
class DiscoveredPool:
    """The source of a pool's replicas, the port of their sidecars, and all else that a replica has."""

    source: ReplicaSource
    template: ReplicaConfig
    sidecar_port: int | None = None


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A pool as configured.

    `base_model` is the name under which its engines serve the base. `base_folder` is a folder with the base's
    config.json (and weights, if `base_fingerprint` is to be computed). A pool takes adapters if one of them is set.
    `max_loras` and `max_cpu_loras` are the values with which its engines were started. A version is placed on
    `replicas_min` replicas (0: on all), and on more while each has over `in_flight_target` of its requests under way.
    `drain_seconds_max` bounds the wait for a version's last answers before it is unloaded. `continues`,
    `context_tokens_max` and `engine` are as in PoolView. Health checks look at each replica once in
    `health_interval_seconds`. Discovery finds the replicas of a pool that is `discovered`.
    """

    name: str
    base_model: str
    replicas: tuple[ReplicaConfig, ...]
    base_folder: Path | None = None
    base_fingerprint: str | None = None
    max_loras: int = 4
    max_cpu_loras: int = 16
    replicas_min: int = 0
    in_flight_target: int = 16
    drain_seconds_max: float = 600.0
    continues: bool = False
    context_tokens_max: int | None = None
    engine: EngineKind = "vllm"
    health_interval_seconds: float = 1.0
    discovered: DiscoveredPool | None = None


LEAVING_SECONDS_MAX = 3600.0
"""Longer than any request: requests that chose a replica before it left have ended by then."""


class Fleet:
    """Replicas by name. `view()` is rebuilt only after a change of something other than the load."""

    def __init__(self, pools: Iterable[PoolConfig], memory: SharedMemory | None = None) -> None:
        """With `memory` the gateway's processes share loads and breakers."""
        self.pools: Mapping[str, PoolConfig] = {pool.name: pool for pool in pools}
        self._memory = memory
        self._changes = 0.0
        self._cordons: Container[str] = ()
        self.continues = any(pool.continues for pool in self.pools.values())
        """True if there is a pool whose engines can continue an answer that has begun."""
        self._replicas = _Replicas(
            {config.name: self._replica(config) for pool in self.pools.values() for config in pool.replicas}
        )
        self.replicas: Mapping[str, Replica] = self._replicas
        self._replaced: list[Replica] = []
        """Replicas whose place another engine has taken, or that left long ago, until their requests have ended."""
        self._versions: Mapping[str, VersionView] = {}
        self._view: FleetView | None = None
        self._load = _Load(self.replicas)

    def view(self) -> FleetView:
        """The view of this moment."""
        if self._memory is not None and self._memory.changes != self._changes:
            self._note_breakers(self._memory)
        if self._view is None:
            pools = {pool.name: self._pool_view(pool) for pool in self.pools.values()}
            self._view = FleetView(MappingProxyType(pools), self._versions, self._load)
        return self._view

    def _replica(self, config: ReplicaConfig) -> Replica:
        return Replica(config, self._breakers_changed, self._memory)

    def _breakers_changed(self) -> None:
        self._view = None
        if self._memory is not None:
            self._memory.touch()

    def _note_breakers(self, memory: SharedMemory) -> None:
        """Take in the breakers that other processes have changed."""
        self._changes, now = memory.changes, time.monotonic()
        for (name, url, model), row in memory.rows(BREAKER):
            replica = self.replicas.get(name)
            if replica is not None and replica.config.url == url:
                replica.note_breaker(model, row, now)
        self._view = None

    def _pool_view(self, pool: PoolConfig) -> PoolView:
        replicas = tuple(replica.view() for replica in self.in_pool(pool.name))
        longest = self.context_tokens(pool.name)
        return PoolView(pool.name, pool.base_model, replicas, pool.continues, longest, pool.engine)

    def changed(self) -> None:
        """Note that a replica's health, rest or adapters have changed."""
        self._view = None

    def know(self, versions: Mapping[str, VersionView], cordons: Container[str] = ()) -> None:
        """Take in the versions of a new snapshot, and the names of replicas that must get no requests."""
        self._versions = MappingProxyType(dict(versions))
        self._cordons = cordons
        for replica in self._replicas.values():
            replica.cordoned = replica.name in cordons
        self._view = None

    def set_pools(self, pools: Iterable[PoolConfig], now: float) -> None:
        """Use these pools from `now` (monotonic seconds) on. The pools are the same, but their replicas may differ.

        A replica that is no longer configured gets no new requests, and stays known until its requests have ended.
        """
        self.pools = {pool.name: pool for pool in pools}
        self.continues = any(pool.continues for pool in self.pools.values())
        before = dict(self._replicas)
        leaving = self._replicas.leaving
        for name in [
            name for name, (replica, at) in leaving.items() if not replica.in_flight and now - at > LEAVING_SECONDS_MAX
        ]:
            self._replaced.append(leaving.pop(name)[0])
        self._replicas.clear()
        for config in (config for pool in self.pools.values() for config in pool.replicas):
            replica = before.pop(config.name, None)
            if replica is None and config.name in leaving:
                replica, _ = leaving.pop(config.name)
                replica.forget_sight()
            if replica is not None and replica.config.place != config.place:
                self._replaced.append(replica)
                replica = None
            replica = replica or self._replica(config)
            replica.config, replica.cordoned = config, config.name in self._cordons
            self._replicas[config.name] = replica
        leaving.update({name: (replica, now) for name, replica in before.items()})
        self._release_replaced()
        self._view = None

    def _release_replaced(self) -> None:
        idle = [replica for replica in self._replaced if not replica.in_flight]
        self._replaced = [replica for replica in self._replaced if replica.in_flight]
        leaving = (replica for replica, _ in self._replicas.leaving.values())
        used = {(each.name, each.config.url) for each in (*self._replicas.values(), *leaving, *self._replaced)}
        for replica in idle:
            if (replica.name, replica.config.url) not in used:  # they have the same rows
                replica.release()

    def has_room(self, name: str, now: float) -> bool:
        """True if a replica could get one more request at `now` (monotonic seconds).

        A replica that rests, or is being probed, gets none while another one of its pool is awake.
        """
        replica = self.replicas.get(name)
        if replica is None or not replica.there or not replica.has_room:
            return False
        pool = replica.config.pool
        return replica.awake(now) or not any(other.there and other.awake(now) for other in self.in_pool(pool))

    def context_tokens(self, pool: str) -> int | None:
        """The tokens that every engine of a pool takes, prompt and answer: as configured, else as the engines say."""
        listed = [replica.context_tokens for replica in self.in_pool(pool) if replica.context_tokens is not None]
        return self.pools[pool].context_tokens_max or min(listed, default=None)

    def in_pool(self, pool: str) -> list[Replica]:
        """The replicas of a pool, in the order of the configuration."""
        return [replica for replica in self.replicas.values() if replica.config.pool == pool]


class _Replicas(dict[str, Replica]):
    """Replicas by name. Those that have left the configuration are found by name, but not listed."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        super().__init__(replicas)
        self.leaving: dict[str, tuple[Replica, float]] = {}

    def __missing__(self, name: str) -> Replica:
        return self.leaving[name][0]


class _Load(Mapping[str, int]):
    """Requests in flight by replica, read live: the one part of a view that changes with each request."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas

    def __getitem__(self, name: str) -> int:
        return self._replicas[name].load

    def get(self, name: str, default: int = 0) -> int:  # type: ignore[override]
        replica = self._replicas.get(name)
        return replica.load if replica else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)
