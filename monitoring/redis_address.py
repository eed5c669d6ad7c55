"""Redis by its URL: one server, or the primary that Sentinels name.

`redis+sentinel://[USER:PASSWORD@]HOST:PORT,HOST:PORT/PRIMARY[/DB]`, with `rediss+sentinel` where all of them speak TLS.
`?sentinel_password=` and `sentinel_username=` are for the Sentinels. Each new connection asks them.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from redis import Redis, Sentinel, SentinelConnectionPool
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio import Sentinel as AsyncSentinel
from redis.asyncio import SentinelConnectionPool as AsyncSentinelConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.backoff import ConstantBackoff, NoBackoff
from redis.connection import parse_url
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

SCHEMES: Mapping[str, str] = {"redis+sentinel": "redis", "rediss+sentinel": "rediss"}
SENTINEL_PORT = 26379
SENTINEL_SECONDS_MAX = 1.0
"""The longest wait for one Sentinel, before the next is asked."""
FAILOVER = ConstantBackoff(0.5), 8
"""The wait, and the number of waits, where no Sentinel knows a primary. A client may have its own `retry` for it."""
FORM = "Sentinels are given as redis+sentinel://HOST:PORT,HOST:PORT/PRIMARY"


@dataclass(frozen=True, slots=True)
class _Sentinels:
    addresses: list[tuple[str, int]]
    primary: str
    options: dict[str, Any]
    """Of connections to the primary."""
    own_options: dict[str, Any]
    """Of connections to the Sentinels."""


def open_redis(url: str, **options: Any) -> Redis:
    """A blocking client of the Redis at a URL. Raises ValueError for a wrong one."""
    if (found := _read(url)) is None:
        return Redis.from_url(url, **options)
    own = found.own_options | {"retry": Retry(NoBackoff(), 0)}
    manager = Sentinel(found.addresses, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    options = {"retry": Retry(*FAILOVER, (MasterNotFoundError,))} | options
    pool = SentinelConnectionPool(found.primary, manager, **found.options | options)  # type: ignore[no-untyped-call]
    return Redis.from_pool(pool)


def open_async_redis(url: str, **options: Any) -> AsyncRedis:
    """A client of the Redis at a URL. Raises ValueError for a wrong one."""
    if (found := _read(url)) is None:
        return AsyncRedis.from_url(url, **options)
    own = found.own_options | {"retry": AsyncRetry(NoBackoff(), 0)}
    manager = _AsyncSentinel(found.addresses, sentinel_kwargs=own)  # type: ignore[no-untyped-call]
    options = {"retry": AsyncRetry(*FAILOVER, (AsyncMasterNotFoundError,))} | options
    pool = _Pool(found.primary, manager, **found.options | options)  # type: ignore[no-untyped-call]
    return AsyncRedis.from_pool(pool)


class _AsyncSentinel(AsyncSentinel):
    """Sentinels that several connections ask at once."""

    async def discover_master(self, service_name: str) -> Any:
        own = copy(self)  # redis-py reorders its list after an await: on a shared one an entry would be lost
        own.sentinels = [*self.sentinels]
        address = await AsyncSentinel.discover_master(own, service_name)
        self.sentinels = own.sentinels
        return address


class _Pool(AsyncSentinelConnectionPool):
    """Connections to the primary; those to the Sentinels are closed with them."""

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await super().disconnect(inuse_connections)
        if inuse_connections:
            await self.sentinel_manager.aclose()


def _read(url: str) -> _Sentinels | None:
    """The Sentinels of a URL; None: it leads to Redis itself. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES:
        return None
    user, at, hosts = parts.netloc.rpartition("@")
    primary, _, db = parts.path.strip("/").partition("/")
    found = [urlsplit(f"//{host}") for host in hosts.split(",")]
    addresses = [(host.hostname, host.port or SENTINEL_PORT) for host in found if host.hostname]
    if not primary or len(addresses) < len(found):
        raise ValueError(FORM)
    plain = parts._replace(scheme=SCHEMES[parts.scheme], netloc=f"{user}{at}primary", path=f"/{db}")
    options: dict[str, Any] = parse_url(plain.geturl())  # type: ignore[no-untyped-call]
    options["ssl"] = plain.scheme == "rediss"
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    for name in ("host", "connection_class"):
        options.pop(name, None)
    own |= {name: value for name, value in options.items() if name.startswith("ssl")}
    waits = {"socket_timeout": SENTINEL_SECONDS_MAX, "socket_connect_timeout": SENTINEL_SECONDS_MAX}
    return _Sentinels(addresses, primary, options, own | waits)
