"""Redis clients by URL: for one server, or for a changing primary (redis_seeds), which each new connection looks up."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import MasterNotFoundError as AsyncMasterNotFoundError
from redis.backoff import ConstantBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from monitoring import redis_cluster, redis_sentinels
from monitoring.redis_seeds import read_seeds

FAILOVER = ConstantBackoff(0.5), 8
"""The wait, and the number of waits, while no primary is known. A client may pass its own `retry` instead."""


def open_redis(url: str, **options: Any) -> Redis:
    """A blocking client of the Redis at a URL. Raises ValueError for a wrong URL."""
    if (seeds := read_seeds(url)) is None:
        return Redis.from_url(url, **options)
    opened = redis_cluster.open_redis if seeds.kind == "cluster" else redis_sentinels.open_redis
    return opened(seeds, {"retry": Retry(*FAILOVER, (MasterNotFoundError,))} | options)


def open_async_redis(url: str, **options: Any) -> AsyncRedis:
    """A client of the Redis at a URL. Raises ValueError for a wrong one."""
    if (seeds := read_seeds(url)) is None:
        return AsyncRedis.from_url(url, **options)
    opened = redis_cluster.open_async_redis if seeds.kind == "cluster" else redis_sentinels.open_async_redis
    return opened(seeds, {"retry": AsyncRetry(*FAILOVER, (AsyncMasterNotFoundError,))} | options)
