"""The health of replicas: every gateway checks every replica itself, and adopts the adapters that are loaded there. One
process of a gateway checks at a time, and informs the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable

import msgspec
from redis.exceptions import RedisError

from gateway.services import Services
from serving.fleet import PoolConfig
from serving.health import Observation, look, note_observation
from serving.replica import Replica

NO_REPLICA_SECONDS = 1.0
"""Time between two looks while there is no replica."""


async def keep_discovering(services: Services) -> None:
    """Apply the replicas that sources name after each change. Ends with its task."""
    changed = services.control.discovery.changed
    async with asyncio.TaskGroup() as looks:
        while True:
            await changed.wait()
            changed.clear()
            apply_pools(services, services.fleet.pools.values())
            looks.create_task(_look_at(services, _due(services)))  # a slow engine does not delay a change


async def find_replicas(services: Services) -> None:
    """Follow the sources of all pools, and apply their first answers."""
    services.control.discovery.follow(services.fleet.pools.values())
    await services.control.discovery.first_answers()
    apply_pools(services, services.fleet.pools.values())


def apply_pools(services: Services, pools: Iterable[PoolConfig]) -> None:
    """Use these pools with their discovered replicas from now on, and drop all other replicas and connections."""
    pools = list(pools)
    services.control.discovery.follow(pools)
    services.fleet.set_pools(services.control.discovery.fill(pools), time.monotonic())
    configs = [replica.config for replica in services.fleet.replicas.values()]
    services.engines.keep({address for config in configs for address in (config.url, config.base_url)})


async def keep_checking_health(services: Services) -> None:
    """Check each replica once in its pool's interval, and at once if a new version should be there. Ends with its task.

    A slow check continues beside later ones, which skip its replica meanwhile.
    """
    replicas = services.fleet.replicas.values()
    services.control.siblings.answers["looked"] = lambda observation: _note_observation(services, observation)
    looks: dict[Replica, asyncio.Task[None]] = {}
    async with asyncio.TaskGroup() as group:
        while True:
            began_at = services.snapshot.current.generation
            now = time.monotonic()
            more = _with_more_than_seen(services)
            for checked in replicas:
                due = _due_at(services, checked) <= now
                if checked not in looks and (
                    checked.name in more or (due and checked.may_look(now, _interval_of(services, checked)))
                ):
                    looks[checked] = group.create_task(_look_and_adopt(services, checked))
            if looks:
                shortest = min((_interval_of(services, each) for each in replicas), default=NO_REPLICA_SECONDS)
                await asyncio.wait(looks.values(), timeout=shortest)
            looks = {checked: task for checked, task in looks.items() if not task.done()}
            if looks:
                continue
            until = min((_due_at(services, replica) for replica in replicas), default=now + NO_REPLICA_SECONDS)
            while (left := until - time.monotonic()) > 0:
                if services.snapshot.current.generation != began_at and _with_more_than_seen(services):
                    break  # another gateway has loaded a version, and an alias may move to it at once
                await services.snapshot.next(left)


def _due(services: Services) -> list[Replica]:
    now = time.monotonic()
    return [replica for replica in services.fleet.replicas.values() if _due_at(services, replica) <= now]


def _due_at(services: Services, replica: Replica) -> float:
    """The time of a replica's next look, in monotonic seconds."""
    return replica.looked_at + _interval_of(services, replica)


def _interval_of(services: Services, replica: Replica) -> float:
    return services.fleet.pools[replica.config.pool].health_interval_seconds


def _with_more_than_seen(services: Services) -> set[str]:
    """Replicas that are up and have a ready version by the state, which this gateway has not seen there yet."""
    up = {replica.name: replica.seen for replica in services.fleet.replicas.values() if replica.up}
    placements = services.snapshot.current.placements.values()
    return {p.replica for p in placements if p.state == "ready" and p.replica in up and p.version not in up[p.replica]}


async def check_health(services: Services) -> None:
    """Check every replica once, and adopt its loaded adapters. A replica without adapters is checked only if due."""
    due, replicas = {*_due(services)}, services.fleet.replicas.values()
    await _look_at(services, [each for each in replicas if each.config.traits.adapter_api is not None or each in due])


async def _look_at(services: Services, replicas: Iterable[Replica]) -> None:
    """Check these replicas in parallel, so that a slow one does not delay others."""
    await asyncio.gather(*(_look_and_adopt(services, replica) for replica in replicas))


async def _look_and_adopt(services: Services, replica: Replica) -> None:
    replica.looked_at = time.monotonic()
    placed = services.snapshot.current.placements_by_replica.get(replica.name, {})
    is_new_life = any(placement.life not in ("", replica.life) for placement in placed.values())
    observation = await look(services.fleet, replica, services.engines, identify=is_new_life)
    services.control.siblings.tell("looked", msgspec.msgpack.encode(observation))
    await _adopt(services, replica)


async def _note_observation(services: Services, observation: bytes) -> bytes:
    """Apply another process's observation of a replica."""
    result = msgspec.msgpack.decode(observation, type=Observation)
    replica = services.fleet.replicas.get(result.name)
    if replica is not None:
        replica.looked_at = time.monotonic()
        note_observation(services.fleet, replica, result)
        await _adopt(services, replica)
    return b""


async def _adopt(services: Services, replica: Replica) -> None:
    snapshot = services.snapshot.current
    if replica.up and (replica.seen.keys() & snapshot.versions.keys()) - replica.loaded:
        with contextlib.suppress(RedisError, OSError):  # without Redis, use the state as last read
            # a newly listed version may still be in its probe: read its present state
            snapshot = await services.snapshot.refresh()
    services.control.adapters.reconciler.adopt(replica, snapshot.versions, snapshot.placements)
