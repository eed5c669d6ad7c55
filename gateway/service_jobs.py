"""The background jobs of the shared services: snapshot, fleet, presence, quotas, records, and checks of the process."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType

from redis.exceptions import RedisError

from gateway.fleet_health import keep_checking_health, keep_discovering
from gateway.services import Services

PRESENCE_INTERVAL_SECONDS = 0.5
LAG_INTERVAL_SECONDS = 0.1
STATE_INTERVAL_SECONDS = 30.0
CERTIFICATES_INTERVAL_SECONDS = 5.0


async def _tell_presence(services: Services) -> None:
    try:
        while True:
            await services.control.presence.tell()
            await asyncio.sleep(PRESENCE_INTERVAL_SECONDS)
            if not services.control.presence.has_news():
                await asyncio.sleep(PRESENCE_INTERVAL_SECONDS)
    except asyncio.CancelledError:  # only at a stop: after a fault of Redis, running requests here still count
        with contextlib.suppress(RedisError, OSError):  # the report expires without it
            await services.control.presence.leave()
        raise


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


async def _renew_certificates(services: Services) -> None:
    while True:
        await asyncio.sleep(CERTIFICATES_INTERVAL_SECONDS)
        await services.renew_certificates()


SERVICE_JOBS: Mapping[str, Callable[[Services], Awaitable[None]]] = MappingProxyType(
    {
        "follow_snapshot": lambda services: services.snapshot.follow(services.settings.snapshot_interval_seconds),
        "check_health": keep_checking_health,
        "discover_replicas": keep_discovering,
        "tell_presence": _tell_presence,
        "lease_quotas": lambda services: services.limits.quotas.keep(services.fallback_caps.look),
        "flush_records": lambda services: services.flow.run(),
        "watch_lag": _watch_lag,
        "watch_state": _watch_state,
        "renew_certificates": _renew_certificates,
    }
)
