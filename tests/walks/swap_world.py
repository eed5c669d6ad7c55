"""The world of the swap machine: two fake engines, two gateways' reconcilers on one Valkey, a clock that can be put on.

A gateway here is what its jobs are made of (fleet, snapshot, presence, reconciler), without its HTTP surface.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any, cast

import httpx
from redis.asyncio import Redis

from gateway.fleet_health import check_health
from gateway.services import Services
from gateway.sibling_processes import Siblings
from gateway.state.presence import KEY as PRESENCE_KEY
from gateway.state.presence import Presence
from gateway.state.snapshot import ConfiguredPolicy, Snapshot, SnapshotKeeper
from router.policy import AttemptLimits, TaskPolicy
from serving.adapters.base_model import Base
from serving.adapters.loader import AdapterLoader, World
from serving.adapters.manifest import Manifest, read_manifest
from serving.adapters.reconcile import Reconciler
from serving.adapters.registry import Registry
from serving.adapters.store import Store
from serving.adapters.verification import Artifact, verify
from serving.engine_client import EngineClient
from serving.fingerprint import BaseFingerprint
from serving.fleet import Fleet, PoolConfig
from serving.object_store import ObjectStore
from serving.replica import Lease, ReplicaConfig
from tests.fakes.adapters import BASE_CONFIG, write_adapter, write_base
from tests.walks.swap_trace import Recording, RecordingLooks, Trace

TASK, POOL, BASE_MODEL = "returns", "small", "tiny-base"
ADAPTERS = 7
MAX_LORAS, MAX_CPU_LORAS = 2, 6
NEVER_OVERDUE_SECONDS = 1e12
MANIFEST = f"task: {TASK}\ngeneral_prompt:\n  system: Decide the return.\nprovenance:\n"


class Clock:
    """The time module for who asks it for the time; it can be put on."""

    def __init__(self) -> None:
        self.on_seconds = 0.0

    def time(self) -> float:
        """Unix seconds."""
        return time.time() + self.on_seconds

    async def read_redis_time(self, _: Redis) -> float:
        """The same, as if it were Redis's."""
        return self.time()

    def time_ns(self) -> int:
        """The same in nanoseconds."""
        return time.time_ns() + int(self.on_seconds * 1e9)

    def monotonic(self) -> float:
        """Seconds since some moment."""
        return time.monotonic() + self.on_seconds


@dataclass(frozen=True)
class Goods:
    """The files on disk, once for all runs: the base model, verified adapters in the store, and strangers' folders."""

    base: Base
    store: Store
    artifacts: tuple[tuple[Artifact, Manifest], ...]
    strangers: tuple[Path, ...]
    labels: Mapping[str, str]


def make_goods(folder: Path) -> Goods:
    """Write and verify it all."""
    base, store = write_base(folder / BASE_MODEL), Store(folder / "store")
    artifacts, labels = [], {}
    for number in range(ADAPTERS):
        source = write_adapter(folder / f"adapter-{number}", BASE_CONFIG, rank=4, seed=number)
        (folder / f"manifest-{number}.yaml").write_text(f"{MANIFEST}  number: {number}\n")
        artifact = verify(source, base)
        labels[str(store.put(source, artifact))] = f"adapter-{number}"
        artifacts.append((artifact, read_manifest(folder / f"manifest-{number}.yaml")))
    strangers = tuple(write_adapter(folder / f"stranger-{n}", BASE_CONFIG, rank=4, seed=100 + n) for n in range(2))
    labels |= {str(path): f"stranger-{number}" for number, path in enumerate(strangers)}
    return Goods(base, store, tuple(artifacts), strangers, MappingProxyType(labels))


class Killed(Exception):
    """The gateway is gone: nothing that it does from here on happens."""


class NotesUntil(ObjectStore):
    """The object store of placements, for a gateway that is killed at its n-th note: before it is made, or after."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis, "placements")
        self.left: int | None = None
        self.made_last = False

    async def put(self, name: str, value: dict[str, Any], expected_generation: int | None = None) -> int:
        """Make the note, unless it is one too many."""
        return await self._note(lambda: super(NotesUntil, self).put(name, value, expected_generation))

    async def delete(self, name: str, expected_generation: int | None = None) -> int:
        """The same for the end of a placement."""
        return await self._note(lambda: super(NotesUntil, self).delete(name, expected_generation))

    async def _note(self, make: Callable[[], Any]) -> int:
        if self.left is None:
            return int(await make())
        self.left -= 1
        if self.left == 0 and self.made_last:
            await make()
        if self.left <= 0:
            raise Killed
        return int(await make())


@dataclass
class Held:
    """A lease that a gateway has for a caller."""

    lease: Lease
    name: str


@dataclass
class Gateway:
    """One gateway: it decides by its own snapshot, and sees engines with its own eyes."""

    name: str
    fleet: Fleet
    http: httpx.AsyncClient
    engines: EngineClient
    notes: NotesUntil
    reconciler: Reconciler
    snapshot: SnapshotKeeper
    presence: Presence
    held: list[Held] = field(default_factory=list)
    siblings: Siblings = field(default_factory=Siblings)

    @property
    def control(self) -> SimpleNamespace:
        """The health check's part of the services' control plane."""
        return SimpleNamespace(siblings=self.siblings, adapters=SimpleNamespace(reconciler=self.reconciler))

    async def look(self) -> None:
        """The health check's round; of the Services it needs no more than this gateway has."""
        await self.snapshot.refresh()
        await check_health(cast(Services, self))

    async def follow(self) -> None:
        """The work of a gateway without the job: it reads the snapshot, and reports its own state."""
        await self.snapshot.refresh()
        await self.presence.tell()

    async def step(self) -> None:
        """One pass of the job, as gateway.features.releases.reconciling has it."""
        snapshot = await self.snapshot.refresh()
        await self.presence.tell()
        roll = await self.presence.present()
        world = World(
            idle=lambda replica, version: roll.idle(replica, version, snapshot.generation), in_flight=roll.in_flight
        )
        await self.reconciler.step(snapshot.versions, world)

    def take(self, replica: str, version: str) -> None:
        """A caller's request is admitted, if the router may send it there."""
        there = self.fleet.replicas[replica]
        if there.up and version in there.loaded:
            self.held.append(Held(there.lease(time.monotonic(), version), version))

    def give_back(self, held: Held) -> None:
        """A caller's request has ended."""
        self.held.remove(held)
        held.lease.give_back(time.monotonic())

    def drop(self, replica: str) -> None:
        """The engine is gone, and with it all answers that came from there."""
        for held in [held for held in self.held if held.lease.replica.name == replica]:
            self.give_back(held)

    def holds(self, replica: str, version: str) -> bool:
        """True where it has a lease on the version there."""
        return bool(self.fleet.replicas[replica].holds.get(version))

    async def leave(self, redis: Redis) -> None:
        """It is gone, and what it told of itself has run out."""
        await self.reconciler.stop()
        await redis.hdel(PRESENCE_KEY, self.name)
        await self.http.aclose()
        await self.engines.__aexit__(None, None, None)


async def _no_time() -> float:
    """Presence's clock stands still: a gateway is gone once it left, not because the machine thinks for long."""
    return 0.0


def open_gateway(
    name: str,
    redis: Redis,
    goods: Goods,
    urls: Mapping[str, str],
    trace: Trace,
    before: Callable[[str, str, Any], None],
    replicas_min: int,
) -> Gateway:
    """A gateway's process is started."""
    configs = tuple(ReplicaConfig(replica, url, POOL) for replica, url in urls.items())
    fleet = Fleet(
        [
            PoolConfig(
                POOL,
                BASE_MODEL,
                configs,
                base_fingerprint=goods.base.fingerprint,
                max_loras=MAX_LORAS,
                max_cpu_loras=MAX_CPU_LORAS,
                replicas_min=replicas_min,
                drain_seconds_max=NEVER_OVERDUE_SECONDS,
            )
        ]
    )
    names = {url: replica for replica, url in urls.items()}
    http = httpx.AsyncClient(transport=Recording(trace, names, before))
    engines = RecordingLooks(trace, names)
    fingerprints = {POOL: BaseFingerprint(goods.base.fingerprint)}
    loader = AdapterLoader(fleet, redis, goods.store, fingerprints, http, engines, lambda *_: None)
    loader.placements = notes = NotesUntil(redis)
    reconciler = Reconciler(fleet, Registry(redis), loader)

    def use_snapshot(snapshot: Snapshot) -> None:
        fleet.know({version: kept.view() for version, kept in snapshot.versions.items()})
        for replica in fleet.replicas.values():
            reconciler.adopt(replica, snapshot.versions, snapshot.placements)

    configured = ConfiguredPolicy({TASK: TaskPolicy(TASK, None)}, frozenset(), AttemptLimits())
    snapshot = SnapshotKeeper(redis, configured, {}, use_snapshot)
    presence = Presence(redis, name, fleet, lambda: snapshot.current.generation, clock=_no_time)
    return Gateway(name, fleet, http, engines, notes, reconciler, snapshot, presence)
