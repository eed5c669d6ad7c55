"""Recycling of engines: a restart, one replica of a pool at a time, to free them of unloaded versions.

A recycled replica gets no new requests, and finishes its answers. A call to its `recycle_url` restarts its engine. The
reconciler loads and probes its versions again; then the replica gets requests again. Redis holds the progress in the
replica's cordon, so that another gateway can continue.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Any

import httpx
import msgspec

from gateway.features.releases.state import Releases
from monitoring.redis_time import read_redis_time
from serving.adapters.placement import HELD, Placement, may_be_one_life
from serving.object_store import UNREADABLE, Change, Stale, Unchanged
from serving.replica import Replica

log = logging.getLogger(__name__)
RESTART_TIMEOUT_SECONDS = 30.0
UNHEARD_SECONDS = 120.0
"""Time after which an engine that has not restarted is told again: the gateway may have died before it told it."""
TRIES_MAX = 3
BACK_SECONDS_MAX = 900.0
"""Time after which a replica that lacks one of its versions stays cordoned, for people to look at."""


class Cordon(msgspec.Struct, frozen=True, kw_only=True):
    """A replica's cordon: the reason why it gets no requests, its author, and its time (Unix seconds).

    During a recycling also: `life` is the engine process to end, `restarted_at` and `tries` the time and number of the
    calls, and `was` the reason of an earlier cordon.
    """

    reason: str = ""
    by: str = ""
    at: float = 0.0
    recycle: bool = False
    life: str = ""
    restarted_at: float = 0.0
    tries: int = 0
    was: str = ""
    stuck: bool = False


class Busy(Exception):
    """Another replica of the pool gets no requests; only one may at a time."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{', '.join(names)} gets no requests already: one replica of a pool at a time.")


async def recycle_some(releases: Releases) -> None:
    """Take one step for each replica that is being recycled. Begin the recycling of a replica whose last room is taken
    by ghosts. Raises RedisError."""
    store, replicas = releases.services.objects.cordons, releases.services.fleet.replicas
    cordons, generations, generation = dict[str, Cordon](), dict[str, int](), 0
    if releases.services.snapshot.current.cordons:
        generations, raw = await store.generations(), await store.written()
        cordons = {name: _read(cordon) for name, cordon in raw.items() if name in replicas}
        generation = (await releases.services.snapshot.refresh()).generation  # not older than the cordons
    for name, cordon in cordons.items():
        if cordon.recycle and not cordon.stuck:
            with contextlib.suppress(Stale):  # an admin has changed it meanwhile
                await _go_on(releases, generation, replicas[name], cordon, generations.get(name, 0))
    for pool in releases.services.control.adapters.bases:
        in_pool = releases.services.fleet.in_pool(pool)
        if not any(replica.name in cordons for replica in in_pool):
            full = _fullest(releases, in_pool)
            if full is not None:
                with contextlib.suppress(Stale, Busy):  # an admin was faster
                    await begin(releases, full, "system", "ghosts take its last room: it is being recycled")


async def begin(releases: Releases, replica: Replica, by: str, reason: str) -> None:
    """Begin the recycling of a replica. Raises Busy if another replica of its pool gets no requests, also if that
    begins at this moment, Stale if the replica's own cordon changes, RedisError."""
    store = releases.services.objects.cordons
    generations, cordons = await store.generations(), await store.written()
    others = [other.name for other in releases.services.fleet.in_pool(replica.config.pool) if other is not replica]
    if busy := [name for name in others if name in cordons]:
        raise Busy(busy)
    before = _read(cordons.get(replica.name, b"{}"))
    was = before.was if before.recycle else before.reason
    now = await read_redis_time(releases.services.redis)
    cordon = Cordon(reason=reason, by=by, at=now, recycle=True, was=was)
    changes: list[Change | Unchanged] = [
        Change(store, replica.name, msgspec.to_builtins(cordon), generations.get(replica.name, 0)),
        *(Unchanged(store, name, generations.get(name, 0)) for name in others),
    ]
    step = releases.services.begin_step(by)
    step.note("replica.recycle", replica.name, after={"reason": reason})
    try:
        await step.take(changes)
    except Stale as stale:
        if stale.name == replica.name:
            raise
        raise Busy([stale.name]) from None


def _read(cordon: bytes) -> Cordon:
    """Read a cordon. An unreadable one stays, and its replica is not touched, until an admin removes the cordon."""
    try:
        return msgspec.json.decode(cordon, type=Cordon)
    except UNREADABLE:
        return Cordon(reason="its cordon can't be read", stuck=True)


def _fullest(releases: Releases, replicas: list[Replica]) -> Replica | None:
    """A replica that can't load more because of ghosts, if others of its pool serve all its versions; else None."""
    placed = releases.services.snapshot.current.placements_by_replica
    for replica in replicas:
        full = releases.services.control.adapters.reconciler.capacity(replica, placed.get(replica.name, {}))
        if not replica.up or replica.config.recycle_url is None or full.loads_left or not full.ghosts:
            continue
        others = [other for other in replicas if other is not replica and other.up]
        if others and replica.loaded <= frozenset().union(*(other.loaded for other in others)):
            return replica
    return None


async def _go_on(releases: Releases, generation: int, replica: Replica, cordon: Cordon, revision: int) -> None:
    """Restart the engine once no gateway has requests there. Uncordon the replica once all its versions are ready."""
    services = releases.services
    now = await read_redis_time(services.redis)
    unheard = replica.up and replica.life == cordon.life and now - cordon.restarted_at > UNHEARD_SECONDS
    if not cordon.restarted_at or (unheard and cordon.tries < TRIES_MAX):
        overdue = now - cordon.at > services.fleet.pools[replica.config.pool].drain_seconds_max
        roll = await services.control.presence.present()
        if roll.idle(replica.name, None, generation) or overdue:
            restarted = msgspec.structs.replace(cordon, life=replica.life, restarted_at=now, tries=cordon.tries + 1)
            revision = await _note(releases, replica.name, restarted, revision)
            if why := await _restart(releases, replica):
                await _give_up(releases, replica, restarted, revision, f"the call to its recycle_url failed ({why})")
    elif (
        replica.up
        and replica.life != cordon.life
        and _is_whole(services.snapshot.current.placements, replica, cordon.life)
    ):
        was = msgspec.to_builtins(Cordon(reason=cordon.was, by=cordon.by, at=now)) if cordon.was else None
        step = services.begin_step("system")
        step.note("replica.recycled", replica.name, after={"seconds": round(now - cordon.at, 1)})
        await step.take([Change(services.objects.cordons, replica.name, was, revision)])
    elif now - cordon.restarted_at > BACK_SECONDS_MAX:
        await _give_up(releases, replica, cordon, revision, "it did not come back from being recycled")


async def _give_up(releases: Releases, replica: Replica, cordon: Cordon, revision: int, why: str) -> None:
    reason = f"{why}: look at its engine, then uncordon it"
    log.error("replica %s: %s", replica.name, reason)
    await _note(releases, replica.name, msgspec.structs.replace(cordon, reason=reason, stuck=True), revision)


def _is_whole(placements: Mapping[tuple[str, str], Placement], replica: Replica, former_life: str) -> bool:
    """Return whether all wanted versions are ready on the engine process after the former one."""
    placed = [p for (on, _), p in placements.items() if on == replica.name and p.state in HELD | {"failed"}]
    return all(p.state == "ready" and p.life != former_life and may_be_one_life(p.life, replica.life) for p in placed)


async def _restart(releases: Releases, replica: Replica) -> str:
    """The reason why the call failed; empty if it did not, also if the answer is late."""
    try:
        answer = await releases.services.control.http.post(
            replica.config.recycle_url or "", timeout=RESTART_TIMEOUT_SECONDS
        )
        answer.raise_for_status()
    except httpx.ReadTimeout:
        return ""
    except httpx.HTTPError as error:
        return str(error).split("\n")[0][:200] or type(error).__name__
    return ""


async def _note(releases: Releases, name: str, cordon: Cordon, revision: int) -> int:
    fields: dict[str, Any] = msgspec.to_builtins(cordon)
    return await releases.services.objects.cordons.put(name, fields, revision)
