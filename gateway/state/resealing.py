"""Lists in Redis whose elements are sealed under a key of texts: they are sealed again under the present key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monitoring.texts import Resealing

AT_ONCE = 50
RESEAL = "if redis.call('LINDEX', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('LSET', KEYS[1], ARGV[1], ARGV[3]) end"
"""An element that has moved or was removed meanwhile is left until the next time."""


async def seal_list(redis: Any, key: str, reseal: Callable[[bytes], bytes], resealing: Resealing) -> None:
    """Write each element of a list as `reseal` makes it, where it can be read. Raises RedisError."""
    at = 0
    while raws := await redis.lrange(key, at, at + AT_ONCE - 1):
        for place, raw in enumerate(raws, at):
            if (after := resealing.change(raw, reseal)) is not raw:
                await redis.eval(RESEAL, 1, key, place, raw, after)
        at += len(raws)
