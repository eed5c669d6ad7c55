"""Redis's clock. It gives all times that gateways compare with each other, since their own clocks may differ."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis


async def read_redis_time(redis: Redis) -> float:
    """Redis's time in Unix seconds. Raises RedisError."""
    moment: Any = await redis.time()  # not all of it has types
    return convert_time(moment)


def convert_time(moment: tuple[int, int]) -> float:
    """Convert Redis's answer to TIME (seconds and microseconds) to Unix seconds."""
    seconds, microseconds = moment
    return float(seconds) + float(microseconds) / 1e6
