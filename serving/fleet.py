"""All replicas, by pool. The owner of their state; the router gets its frozen picture from here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from serving.replica import Replica, ReplicaConfig
from serving.view import FleetView, PoolView, VersionView


@dataclass(frozen=True, slots=True)
class PoolConfig:
    """A pool as configured.

    `base_model` is the name under which its engines serve the base; `base_folder` a folder with the base's
    config.json (and weights, if `base_fingerprint` is to be computed); a pool takes adapters if one of them is set.
    `max_loras` and `max_cpu_loras` are what its engines were started with. A version is placed on `replicas_min`
    replicas (0: on all), and on more while it has over `in_flight_target` requests under way for each.
    `drain_seconds_max` bounds the wait for a version's last answers before it is unloaded.
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


class Fleet:
    """Replicas by name. `view()` is rebuilt only after something but the load has changed."""

    def __init__(self, pools: Iterable[PoolConfig]) -> None:
        self.pools: Mapping[str, PoolConfig] = {pool.name: pool for pool in pools}
        self.replicas: Mapping[str, Replica] = {
            config.name: Replica(config) for pool in self.pools.values() for config in pool.replicas
        }
        self._versions: Mapping[str, VersionView] = {}
        self._view: FleetView | None = None
        self._load = _Load(self.replicas)

    def view(self) -> FleetView:
        """The picture of this moment."""
        if self._view is None:
            pools = {
                pool.name: PoolView(pool.name, pool.base_model, tuple(r.view() for r in self.in_pool(pool.name)))
                for pool in self.pools.values()
            }
            self._view = FleetView(MappingProxyType(pools), self._versions, self._load)
        return self._view

    def changed(self) -> None:
        """Say that a replica's health, rest or adapters have changed."""
        self._view = None

    def know(self, versions: Mapping[str, VersionView]) -> None:
        """Take in the versions of a new snapshot."""
        self._versions = MappingProxyType(dict(versions))
        self._view = None

    def in_pool(self, pool: str) -> list[Replica]:
        """The replicas of a pool, in the order of the configuration."""
        return [replica for replica in self.replicas.values() if replica.config.pool == pool]


class _Load(Mapping[str, int]):
    """Requests in flight by replica, read live: the one part of the picture that changes with each request."""

    def __init__(self, replicas: Mapping[str, Replica]) -> None:
        self._replicas = replicas

    def __getitem__(self, name: str) -> int:
        return self._replicas[name].in_flight

    def get(self, name: str, default: int = 0) -> int:  # type: ignore[override]
        replica = self._replicas.get(name)
        return replica.in_flight if replica else default

    def __iter__(self) -> Iterator[str]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)
