"""Admin endpoints for replicas: list them with their load, cordon and uncordon them, recycle their engines."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from gateway.endpoint_parts import Admin, Body, ExpectedGeneration, Operator, conflicts, see_state, services_of
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.releases.recycling import Busy, begin
from gateway.features.releases.state import Releases
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from gateway.services import Services
from monitoring.redis_time import read_redis_time
from serving.adapters.versions_and_aliases import split_version
from serving.object_store import Change, LenientReader, Stale
from serving.replica import Replica

router = APIRouter(prefix="/admin/v1", tags=["admins"])


class CordonIn(Body):
    """Why a replica is to get no requests."""

    reason: str = Field("", max_length=500)


@router.get("/replicas")
async def list_replicas(request: Request, _: Operator) -> dict[str, Any]:
    """The fleet as this gateway sees it. `stale`: Redis can't be reached, and placements and cordons are those of the
    last read. `cordons_left` are of replicas that no longer exist. `discovery` has the pools with discovered replicas.
    After a `fault` a pool keeps the last ones, unless the fault is that none is ready.
    """
    services = services_of(request)
    snapshot, stale = await see_state(services)
    generations = None if stale else await services.objects.cordons.generations([*services.fleet.replicas])
    return {
        "replicas": [_shown(services, replica, generations) for replica in services.fleet.replicas.values()],
        "cordons_left": {
            name: reason for name, reason in snapshot.cordons.items() if name not in services.fleet.replicas
        },
        "discovery": [
            {"pool": pool, "source": str(each.source), "found": len(each.endpoints), "fault": each.fault or None}
            for pool, each in services.control.discovery.followed.items()
        ],
        "stale": stale,
    }


@router.post("/replicas/{name}/cordon", responses=with_errors("not_found"))
async def cordon(request: Request, name: str, admin: Admin, body: CordonIn | None = None) -> dict[str, Any]:
    """Send the replica no new requests, from any gateway. Running requests finish."""
    services = services_of(request)
    replica = _replica(services, name)
    reason = body.reason if body else ""
    before = await _cordon_of(services, name)
    if not before or before.get("recycle") or reason not in ("", before.get("reason")):  # else it stays
        at = await read_redis_time(services.redis)
        value = {"reason": reason or "an admin cordoned it", "by": admin.public, "at": at}
        step = services.begin_step(admin.public)
        step.note("replica.cordon", name, before, {"reason": value["reason"]})
        await step.take([Change(services.objects.cordons, name, value)])
    return await _show(services, replica)


@router.post("/replicas/{name}/uncordon", responses=with_errors("not_found", "stale_generation"))
async def uncordon(
    request: Request, name: str, admin: Admin, expected_generation: ExpectedGeneration = None
) -> dict[str, Any]:
    """Send the replica requests again. Also removes the cordon of a replica that no longer exists."""
    services = services_of(request)
    store = services.objects.cordons
    generation = (await store.generations([name])).get(name, 0)
    before = await _cordon_of(services, name)
    with conflicts():
        if expected_generation not in (None, generation):
            raise Stale(name, generation)
        if before is not None:
            step = services.begin_step(admin.public)
            step.note("replica.uncordon", name, before, None)
            await step.take([Change(store, name, None, expected_generation)])
    if before is not None and name not in services.fleet.replicas:
        await services.snapshot.refresh()
        return {"name": name, "cordoned": None}
    return await _show(services, _replica(services, name))


@router.post("/replicas/{name}/recycle", status_code=202, responses=with_errors(*CHANGE_ERRORS))
async def recycle(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Restart the replica's engine after its answers, then load and probe it again. One replica of a pool at a time."""
    services = services_of(request)
    replica = _replica(services, name)
    if replica.config.recycle_url is None:
        raise Problem(
            "state_conflict", f"{name} has no recycle_url: cordon it, restart its engine yourself, and uncordon it."
        )
    if not replica.life:
        raise Problem("state_conflict", f"{name} is down, or does not say when its process was started: restart it.")
    try:
        with conflicts():
            await begin(feature_of(request, Releases), replica, admin.public, "it is being recycled")
    except Busy as busy:
        raise Problem("state_conflict", str(busy)) from None
    return await _show(services, replica)


async def _cordon_of(services: Services, name: str) -> dict[str, Any] | None:
    """The replica's cordon; None if there is none, empty if it can't be read. Raises RedisError."""
    written = (await services.objects.cordons.written([name])).get(name)
    return None if written is None else LenientReader().read(f"the cordon of {name}", written, dict) or {}


def _replica(services: Services, name: str) -> Replica:
    if name not in services.fleet.replicas:
        raise Problem("not_found", f"There is no replica {name[:80]!r}.")
    return services.fleet.replicas[name]


async def _show(services: Services, replica: Replica) -> dict[str, Any]:
    await services.snapshot.refresh()
    return _shown(services, replica, await services.objects.cordons.generations([replica.name]))


def _shown(services: Services, replica: Replica, generations: Mapping[str, int] | None) -> dict[str, Any]:
    """A replica for the answer. `generations` are the cordons' generations; None if they can't be read."""
    snapshot = services.snapshot.current
    takes_adapters = replica.config.pool in services.control.adapters.bases
    placed = snapshot.placements_by_replica.get(replica.name, {})
    capacity = services.control.adapters.reconciler.capacity(replica, placed)
    return {
        "name": replica.name,
        "pool": replica.config.pool,
        "url": replica.config.url,
        "up": replica.up,
        "trouble": replica.trouble or replica.key_trouble,
        "cordoned": snapshot.cordons.get(replica.name),
        "cordon_generation": None if generations is None else generations.get(replica.name, 0),
        "engine_version": replica.engine_version,
        "in_flight": replica.load,
        "resting_seconds": max(0.0, replica.resting_until - time.monotonic()),
        "loaded": sorted(replica.loaded, key=split_version),
        "capacity": {**asdict(capacity), "loads_left": capacity.loads_left} if takes_adapters else None,
        "placements": [
            {"version": p.version, "state": p.state, "since": p.since, "note": p.note}
            for p in sorted(placed.values(), key=lambda placement: split_version(placement.version))
        ],
    }
