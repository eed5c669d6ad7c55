"""Redis behind Sentinels: each new connection asks them for the primary."""

from __future__ import annotations

from copy import copy
from typing import Any

from redis import Redis, Sentinel, SentinelConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import Sentinel as AsyncSentinel
from redis.asyncio import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from monitoring.redis_seeds import Seeds

SENTINEL_SECONDS_MAX = 1.0
"""The longest wait for one Sentinel, before the next is asked."""


def open_redis(seeds: Seeds, options: dict[str, Any]) -> Redis:
    """A blocking client of the primary."""
    own, options = _options(seeds, options)
    own |= {"retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(seeds.addresses, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    pool = SentinelConnectionPool(seeds.primary, manager, **options)  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def open_async_redis(seeds: Seeds, options: dict[str, Any]) -> AsyncRedis:
    """A client of the primary."""
    own, options = _options(seeds, options)
    own |= {"retry": AsyncRetry(NoBackoff(), 0)}
    manager = _AsyncSentinel(seeds.addresses, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    pool = _Pool(seeds.primary, manager, **options)  # type: ignore[no-untyped-call]
    return AsyncRedis.from_pool(pool)


class _AsyncSentinel(AsyncSentinel):
    """Sentinels that several connections may ask at the same time."""

    async def discover_master(self, service_name: str) -> Any:
        own = copy(self)  # redis-py reorders the list after an await: a shared list would lose an entry
        own.sentinels = [*self.sentinels]
        address = await AsyncSentinel.discover_master(own, service_name)
        self.sentinels = own.sentinels
        return address


class _Pool(AsyncSentinelConnectionPool):
    """Connections to the primary. The connections to the Sentinels are closed together with them."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def _options(seeds: Seeds, options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of connections to the Sentinels, and to the primary."""
    found = {"ssl": seeds.secure, **seeds.options}
    own = {name: found.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    own |= {name: value for name, value in found.items() if name.startswith("ssl")}
    waits = {"socket_timeout": SENTINEL_SECONDS_MAX, "socket_connect_timeout": SENTINEL_SECONDS_MAX}
    return own | waits, found | options
