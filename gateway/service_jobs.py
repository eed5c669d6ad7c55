"""The jobs of what all features share: snapshot, fleet, presence, quotas, records, and looks at oneself."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from redis.exceptions import RedisError

from gateway.fleet_health import keep_checking_health
from gateway.services import Services

PRESENCE_INTERVAL_SECONDS = 0.5
LAG_INTERVAL_SECONDS = 0.1
STATE_INTERVAL_SECONDS = 30.0


async def _follow_snapshot(services: Services) -> None:
    await services.snapshot.follow(services.settings.snapshot_interval_seconds)


async def _tell_presence(services: Services) -> None:
    try:
        while True:
            await services.presence.tell()
            await asyncio.sleep(PRESENCE_INTERVAL_SECONDS)
    except asyncio.CancelledError:  # not where Redis failed for a moment: what is under way here still counts
        with contextlib.suppress(RedisError, OSError):  # it is forgotten by itself
            await services.presence.leave()
        raise


async def _lease_quotas(services: Services) -> None:
    await services.limits.quotas.keep(services.fallback_caps.look)


async def _flush_records(services: Services) -> None:
    await services.flow.run()


async def _watch_lag(services: Services) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        lag = time.monotonic() - began - LAG_INTERVAL_SECONDS
        services.meters.event_loop_lag_seconds.observe(max(0.0, lag))


async def _watch_state(services: Services) -> None:
    while True:
        await asyncio.sleep(STATE_INTERVAL_SECONDS)
        await services.durability.look()


SERVICE_JOBS: Mapping[str, Callable[[Services], Awaitable[None]]] = MappingProxyType(
    {
        "follow_snapshot": _follow_snapshot,
        "check_health": keep_checking_health,
        "tell_presence": _tell_presence,
        "lease_quotas": _lease_quotas,
        "flush_records": _flush_records,
        "watch_lag": _watch_lag,
        "watch_state": _watch_state,
    }
)
