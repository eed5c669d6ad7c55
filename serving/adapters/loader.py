"""Takes one step with a version on one replica: records the step, has the engine do it, and records the result.

A step is recorded before it is taken. After a crash, the next gateway reads the progress, and looks at the engine
before it repeats anything.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import httpx
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import RedisError

from serving.adapters.placement import (
    RETRY_SECONDS_MAX,
    UNDER_WAY,
    Capacity,
    Placement,
    PlacementState,
    Step,
    group_by_replica,
    group_by_version,
    name_placement,
    read_placement,
)
from serving.adapters.probe import BaseModel, ProbeError, References, probe
from serving.adapters.sidecar import PullError, ensure_on
from serving.adapters.store import Store
from serving.adapters.versions_and_aliases import Version
from serving.engine_client import EngineClient
from serving.engine_traits import AdapterApi
from serving.fingerprint import BaseFingerprint, compute_fingerprint
from serving.fleet import Fleet
from serving.health import look, make_engine_headers
from serving.object_store import Mirror, ObjectStore, Stale, Unreadable
from serving.replica import Replica

log = logging.getLogger(__name__)
LOAD_TIMEOUT_SECONDS = 120.0
FAILED_RETRY_SECONDS = 15.0
UNKNOWN_RETRY_SECONDS = 1.0
WAIT_SECONDS = 1.0
ENGINE_TEXT_MAX = 160
LEAVING: frozenset[PlacementState] = frozenset({"closing", "drained", "unloading"})
WAS_LOADED: frozenset[PlacementState] = LEAVING | {"probing", "ready"}
"""States in which the engine has the weights. If it no longer lists the name, they remain as a ghost."""


@dataclass(frozen=True, slots=True)
class World:
    """The state of the gateways, as the reconciler needs it. `idle`: none holds a lease on a version of a replica
    (None: on anything there). `in_flight`: a version's requests in flight at all of them, as a smoothed mean. `clock`,
    in Unix seconds, is common to all: one gateway stages a version, and another has the job."""

    idle: Callable[[str, str | None], bool]
    in_flight: Callable[[str], float]
    clock: Callable[[], float] = time.time


@dataclass(slots=True)
class Pass:
    """One pass over the fleet: the stored state at its beginning, with the changes since."""

    versions: Mapping[str, Version]
    placements: dict[tuple[str, str], Placement]
    generations: dict[str, int]
    world: World
    unreadable: frozenset[str] = frozenset()
    plan: dict[str, tuple[str, ...]] = field(default_factory=dict)
    _by_replica: dict[str, dict[tuple[str, str], Placement]] = field(init=False)
    _by_version: dict[str, dict[tuple[str, str], Placement]] = field(init=False)

    def __post_init__(self) -> None:
        self._by_replica = group_by_replica(self.placements)
        self._by_version = group_by_version(self.placements)

    def on(self, replica: str) -> Mapping[tuple[str, str], Placement]:
        """The placements on one replica."""
        return self._by_replica.get(replica, {})

    def of(self, version: str) -> Mapping[tuple[str, str], Placement]:
        """The placements of one version."""
        return self._by_version.get(version, {})

    def set(self, place: tuple[str, str], placement: Placement | None) -> None:
        """Record the placement that is now stored for a place (None: there is none)."""
        here, of_version = self._by_replica.setdefault(place[0], {}), self._by_version.setdefault(place[1], {})
        for placements in (self.placements, here, of_version):
            if placement is None:
                placements.pop(place, None)
            else:
                placements[place] = placement


class AdapterLoader:
    """Loads, probes and unloads versions on replicas. It alone changes placements."""

    def __init__(
        self,
        fleet: Fleet,
        redis: Redis,
        store: Store,
        fingerprints: Mapping[str, BaseFingerprint],
        http: httpx.AsyncClient,
        engines: EngineClient,
        loaded: Callable[[str, float], None],
    ) -> None:
        """`fingerprints` are the pools' base models; `engines` is for looks, `http` for all else. `loaded` is called
        after each load with the pool and the seconds."""
        self._fleet = fleet
        self.placements = ObjectStore(redis, "placements", read_placement)
        self.written = Mirror(self.placements, read_placement)
        self._references = References(redis)
        self._store = store
        self._fingerprints = fingerprints
        self._http = http
        self._engines = engines
        self._loaded = loaded

    def path_on(self, replica: Replica, version: Version) -> str:
        """The path of the version's bytes for this replica's engine. It contains their digest."""
        here = self._store.path(version.digest)
        folder = replica.config.store_folder
        return str(PurePosixPath(folder) / here.name) if folder else str(here)

    def explain_misfit(self, version: Version) -> str:
        """The reason why the version can't be loaded, as a sentence; empty if its pool serves the base model that it
        was trained on."""
        name, pool, base = version.name, version.pool, self._fingerprints.get(version.pool)
        if base is None:
            return f"{name} is for the pool {pool}, and none of this name takes adapters: push it again."
        if version.base_fingerprint != base.base_fingerprint:
            return f"{name} was trained on another base model than the pool {pool} serves."
        return ""

    def compute_fingerprint_on(self, replica: Replica, version: Version) -> str:
        """The digest of everything that answers a request for this version on this replica."""
        base = self._fingerprints[version.pool]
        return compute_fingerprint(base, replica.engine_version, version.digest, version.manifest_digest)

    def capacity(self, replica: Replica, placements: Mapping[tuple[str, str], Placement]) -> Capacity:
        """The capacity of the replica's engine, and its use."""
        pool = self._fleet.pools[replica.config.pool]
        ghosts = sum(p.ghosts for (on, _), p in placements.items() if on == replica.name and p.life == replica.life)
        registered = len(replica.seen.keys() - self.base_names(replica))
        return Capacity(pool.max_loras, pool.max_cpu_loras, registered, ghosts)

    def base_names(self, replica: Replica) -> frozenset[str]:
        """Names under which the engine lists the base itself: all with the root of the base."""
        base_model = self._fleet.pools[replica.config.pool].base_model
        root = replica.seen.get(base_model)
        return frozenset(name for name, path in replica.seen.items() if path == root) | {base_model}

    async def take(self, step: Step, replica: Replica, name: str, version: Version | None, now: Pass) -> bool:
        """Take one step. Returns True if another may follow in this pass. An unforeseen fault counts against this
        version on this replica, and does not stop others. Raises RedisError, Stale and Unreadable."""
        try:
            return await self._take(step, replica, name, version, now)
        except (RedisError, Stale, Unreadable):
            raise
        except Exception as fault:
            if version is None:
                raise
            log.exception("reconcile: the step %r of %s on %s failed", step, name, replica.name)
            why = f"A fault of the gateway's at {name} on {replica.name} ({type(fault).__name__}): see its log."
            await self._fail(replica, version, now, why)
            return False

    async def _take(self, step: Step, replica: Replica, name: str, version: Version | None, now: Pass) -> bool:
        placement = now.placements.get((replica.name, name))
        if version is None or step in ("lost", "forget"):
            is_wanted = step == "lost" and replica.name in now.plan.get(name, ())
            if is_wanted and version is not None and placement is not None and placement.state in UNDER_WAY:
                await self._note_end(replica, version, placement, now)
            else:
                await self._forget(replica, name, placement, now, lost=step == "lost")
            return step == "lost"
        if step == "load":
            return await self._load(replica, version, now)
        if step == "probe":
            await self._prove(replica, version, now)
            return False
        if step == "unload":
            return await self._unload(replica, version, now)
        if step == "block":
            if placement is None or placement.state != "failed":
                note = f"{replica.name} serves other bytes under the name {name}: restart that engine."
                await self._fail(replica, version, now, note)
            return False
        states: dict[Step, PlacementState] = {
            "reopen": "ready",
            "close": "closing",
            "drain": "drained",
            "ghost": "ghost",
        }
        ghosts = (placement.ghosts if placement else 0) + (step == "ghost")
        await self._write(replica, version, now, states[step], ghosts=ghosts)
        return step == "drain"

    async def _forget(self, replica: Replica, name: str, placement: Placement | None, now: Pass, *, lost: bool) -> None:
        """Delete a placement. If copies of its version are still in the engine, it becomes a ghost instead."""
        key = name_placement(replica.name, name)
        if placement is None:
            return
        if placement.ghosts and not lost:
            ghost = replace(placement, state="ghost", since=now.world.clock(), failures=0, retry_at=0.0)
            await self._put(ghost, now)
        else:
            now.generations[key] = await self.placements.delete(key, now.generations.get(key, 0))
            now.set((replica.name, name), None)

    async def _put(self, placement: Placement, now: Pass) -> None:
        """Store a placement, unless somebody else has stored it meanwhile. Raises Stale."""
        key = placement.key
        now.generations[key] = await self.placements.put(key, placement.to_json(), now.generations.get(key, 0))
        now.set((placement.replica, placement.version), placement)

    async def _write(
        self, replica: Replica, version: Version, now: Pass, state: PlacementState, **changed: Any
    ) -> Placement:
        """Store the state of a version on a replica, before anything is done about it. Raises Stale."""
        before = now.placements.get((replica.name, version.name))
        ghosts = before.ghosts if before and before.life == replica.life else 0
        fields: dict[str, Any] = {
            "ghosts": ghosts,
            "failures": before.failures if before and state != "ready" else 0,
            "fingerprint": before.fingerprint if before else "",
            "note": before.note if before and {before.state, state} <= UNDER_WAY else "",
            **changed,
        }
        placement = Placement(
            replica=replica.name,
            version=version.name,
            state=state,
            path=self.path_on(replica, version),
            life=replica.life,
            # a failure is never older than the staging that met it, even if an older release used its own clock
            since=max(now.world.clock(), version.changed_at if "retry_at" in changed else 0.0),
            **fields,
        )
        await self._put(placement, now)
        return placement

    async def _note_end(self, replica: Replica, version: Version, placement: Placement, now: Pass) -> None:
        """Note that the engine restarted while it loaded or probed the version. The first time may be chance: its note
        stays in the placement until the version serves there, or fails. After further times each try waits longer, and
        a new version is given up."""
        is_new = version.state == "staging"
        if not (placement.note if is_new else placement.failures):
            note = f"{replica.name} ended while it began to serve {version.name}: it is tried again."
            log.warning("reconcile: %s", note, extra={"replica": replica.name, "version": version.name})
            await self._write(replica, version, now, "loading", failures=placement.failures + 1, note=note)
            return
        ended = "ended twice" if placement.note else "ended again"
        note = f"{replica.name} {ended} while it began to serve {version.name}: see that engine's log."
        await self._fail(replica, version, now, note, wrong=is_new)

    async def _fail(
        self, replica: Replica, version: Version, now: Pass, why: str, *, wrong: bool = False, gone: bool = False
    ) -> None:
        """Note a failure. Each next try waits longer. `gone`: the version was loaded, and leaves a ghost."""
        await self._put_off(replica, version, now, "failed", FAILED_RETRY_SECONDS, why, wrong, gone)

    async def _put_off(
        self,
        replica: Replica,
        version: Version,
        now: Pass,
        state: PlacementState,
        seconds: float,
        why: str,
        wrong: bool = False,
        gone: bool = False,
    ) -> None:
        before = now.placements.get((replica.name, version.name))
        ghosts = (before.ghosts if before and before.life == replica.life else 0) + gone
        fields = {"note": why, "wrong": wrong, "ghosts": ghosts}
        failures = (before.failures if before else 0) + 1
        wait = min(seconds * 2 ** min(failures - 1, 8), RETRY_SECONDS_MAX)
        log.warning("reconcile: %s", why, extra={"replica": replica.name, "version": version.name})
        await self._write(replica, version, now, state, failures=failures, retry_at=now.world.clock() + wait, **fields)

    async def _load(self, replica: Replica, version: Version, now: Pass) -> bool:
        """Have the engine load it. The engine's list then decides, also after a refusal or a silence."""
        await look(self._fleet, replica, self._engines, identify=True)
        if not replica.up or version.name in replica.seen:
            return False  # the last look was too old
        before = now.placements.get((replica.name, version.name))
        if before is not None and before.life != replica.life:
            before = None
        gone = before is not None and before.state in WAS_LOADED and bool(replica.life)
        path, life = self.path_on(replica, version), replica.life
        await self._write(replica, version, now, "loading", ghosts=(before.ghosts if before else 0) + gone)
        began = time.monotonic()
        if replica.config.sidecar_url is not None:
            try:
                await ensure_on(replica.config.sidecar_url, version.digest, self._http)
            except PullError as error:
                await self._fail(replica, version, now, str(error))
                return False
        evicts_ghost = not self.capacity(replica, now.on(replica.name)).loads_left
        if not await self._has_room(replica, version, now):
            return False
        adapter_api = _adapter_api_of(replica)
        answer = await self._post(replica, adapter_api.load_path, adapter_api.load_body(version.name, path))
        await look(self._fleet, replica, self._engines, identify=answer is None)
        if not replica.up or replica.life != life:
            return replica.up  # it stays `loading`: the engine's next life shows that this ended it
        there = replica.seen.get(version.name)
        if there == path:
            if evicts_ghost:
                await self._write_off_oldest_ghost(replica, now)
            self._loaded(version.pool, time.monotonic() - began)
            return True
        if there is not None:
            await self._fail(replica, version, now, f"{replica.name} serves other bytes under the name {version.name}.")
        elif answer is None:
            note = f"{replica.name} did not say whether it loaded {version.name}."
            await self._put_off(replica, version, now, "unknown", UNKNOWN_RETRY_SECONDS, note)
        else:
            await self._fail(replica, version, now, self._not_loaded(replica, version, answer))
        return False

    def _not_loaded(self, replica: Replica, version: Version, answer: httpx.Response) -> str:
        """The reason why an engine refused a load, in short, and what to do if that is known."""
        if not self._store.holds(version.digest):
            return (
                f"The store of the gateway that loads has no bytes of {version.name}: push its adapter again, then "
                "stage it. Gateways of one Redis need the same store_folder."
            )
        return f"{replica.name} did not load {version.name} ({answer.status_code}): {_in_short(answer)}."

    async def _has_room(self, replica: Replica, version: Version, now: Pass) -> bool:
        """True if the engine takes one more without reading adapters from disk again. If False, the reason is stored.

        If only ghosts are in the way, each adapter that is listed answers one token. The ghosts are then the least
        recently used, and the first of them gives way to the load. A version that is new to its replicas must have room
        on each of them before it is loaded on the first.
        """
        targets = now.plan.get(version.name, ()) if version.state == "staging" else (replica.name,)
        for target in filter(None, map(self._fleet.replicas.get, targets)):
            capacity = self.capacity(target, now.on(target.name))
            if capacity.registered < capacity.places or version.name in target.seen:
                continue
            leaving = [
                name for (_, name), p in now.on(target.name).items() if name in target.seen and p.state in LEAVING
            ]
            if leaving:
                note = f"it waits until {min(leaving)} is unloaded from {target.name}"
                await self._write(
                    replica, version, now, "unknown", retry_at=now.world.clock() + WAIT_SECONDS, note=note
                )
            else:
                await self._fail(replica, version, now, self.no_room(version.pool, now))
            return False
        capacity = self.capacity(replica, now.on(replica.name))
        if capacity.loads_left or (capacity.ghosts and await self._keep_warm(replica)):
            return True
        await self._fail(replica, version, now, self.no_room(version.pool, now))
        return False

    def no_room(self, pool: str, now: Pass) -> str:
        """A sentence that says that a pool's engines have no room for one more version, and what to do."""
        up = [replica for replica in self._fleet.in_pool(pool) if replica.up]
        full_names = [replica.name for replica in up if not self.capacity(replica, now.on(replica.name)).loads_left]
        names = ", ".join(full_names or (replica.name for replica in up))
        return (
            f"no room in the pool {pool}: {names} can take no more adapters. "
            "Unload or retire versions, or recycle a replica that holds ghosts, then stage it again."
        )

    async def _write_off_oldest_ghost(self, replica: Replica, now: Pass) -> None:
        """Note that the engine has evicted the least recently used adapter, a ghost, for the load."""
        ghosts = [p for p in now.on(replica.name).values() if p.life == replica.life]
        oldest = min((p for p in ghosts if p.ghosts), key=lambda placement: placement.since, default=None)
        if oldest is None:
            return
        reduced = replace(oldest, ghosts=oldest.ghosts - 1)
        if reduced.ghosts or reduced.state != "ghost":
            await self._put(reduced, now)
        else:
            await self._forget(replica, oldest.version, reduced, now, lost=True)

    async def _keep_warm(self, replica: Replica) -> bool:
        """Have every adapter that the engine lists answer one token, so that all are used more recently than ghosts."""
        for name in sorted(replica.seen.keys() - self.base_names(replica)):
            body = {"model": name, "prompt": "a", "max_tokens": 1}
            answer = await self._post(replica, f"{replica.config.traits.api_path}/completions", body)
            if answer is None or answer.status_code != 200:
                return False
        return True

    async def _prove(self, replica: Replica, version: Version, now: Pass) -> None:
        """Probe the version. It becomes ready if it answers as it should, and is unloaded if it does not."""
        fingerprint, life = self.compute_fingerprint_on(replica, version), replica.life
        await self._write(replica, version, now, "probing")
        try:
            name = self._fleet.pools[version.pool].base_model
            base = compute_fingerprint(self._fingerprints[version.pool], replica.engine_version, None, None)
            base_model = BaseModel(name, base, lambda: not replica.in_flight and now.world.idle(replica.name, None))
            await probe(replica, version, fingerprint, base_model, self._references, self._http)
        except ProbeError as error:
            if not error.wrong:
                await look(self._fleet, replica, self._engines, identify=True)
                if not replica.up or replica.life != life:
                    return  # it stays `probing`: the engine's next life shows that this ended it
                await self._put_off(replica, version, now, "unknown", UNKNOWN_RETRY_SECONDS, str(error))
                return
            await self._forget_name(replica, version)
            gone = version.name not in replica.seen and replica.life == life
            await self._fail(replica, version, now, str(error), wrong=True, gone=gone)  # one write for both
            return
        await self._write(replica, version, now, "ready", fingerprint=fingerprint)

    async def _unload(self, replica: Replica, version: Version, now: Pass) -> bool:
        """Have the engine forget the name; answers under way finish. The engine's copy stays as a ghost."""
        before = now.placements.get((replica.name, version.name))
        if before is None or before.state != "failed":
            before = await self._write(replica, version, now, "unloading")
        life, forgotten = replica.life, await self._forget_name(replica, version)
        if replica.life != life:
            return False  # the engine was restarted: it has nothing of the version, not even a ghost
        if not forgotten:
            note = f"{replica.name} did not unload {version.name}."
            await self._put_off(replica, version, now, "unloading", UNKNOWN_RETRY_SECONDS, note)
            return False
        await self._write(replica, version, now, "ghost", ghosts=before.ghosts + 1)
        return True

    async def _forget_name(self, replica: Replica, version: Version) -> bool:
        adapter_api = _adapter_api_of(replica)
        answer = await self._post(replica, adapter_api.unload_path, adapter_api.unload_body(version.name))
        await look(self._fleet, replica, self._engines)
        return answer is not None and answer.status_code in (200, 404) and version.name not in replica.seen

    async def forget_references(self, version: str) -> None:
        """Delete the version's reference answers: its next probe is the first again. Raises RedisError."""
        await self._references.forget(version)

    async def _post(self, replica: Replica, path: str, body: dict[str, Any]) -> httpx.Response | None:
        try:
            return await self._http.post(
                replica.config.url + path,
                json=body,
                headers=make_engine_headers(replica.config),
                timeout=LOAD_TIMEOUT_SECONDS,
            )
        except httpx.HTTPError:
            return None


def _adapter_api_of(replica: Replica) -> AdapterApi:
    adapter_api = replica.config.traits.adapter_api
    assert adapter_api is not None, "pools of engines that take no adapters have none to place"
    return adapter_api


def join_notes(placements: Iterable[Placement]) -> str:
    """The placements' notes, joined. Notes that differ only in the replica are given once."""
    by_note: dict[str, tuple[str, list[str]]] = {}
    for placement in placements:
        note = placement.note
        by_note.setdefault(note.replace(placement.replica, ""), (note, []))[1].append(placement.replica)
    notes = []
    for note, replicas in by_note.values():
        others = [name for name in replicas[1:] if name not in note] if replicas[0] in note else []
        notes.append(f"{note.rstrip('.')}; the same on {', '.join(others)}." if others else note)
    return " ".join(notes)


def _in_short(answer: httpx.Response) -> str:
    """The engine's error message, shortened, without the JSON around it."""
    try:
        body = answer.json()
        text = body.get("error", body).get("message") or answer.text
    except (ValueError, AttributeError):
        text = answer.text
    words = " ".join(str(text).split()).rstrip(".")
    return words if len(words) <= ENGINE_TEXT_MAX else f"{words[: ENGINE_TEXT_MAX - 1]}…"
