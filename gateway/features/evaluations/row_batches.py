"""Rows of a list in Redis, some at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec

from monitoring.evaluation.dataset import Row

BATCH = 50


async def read_batches(redis: Any, key: str) -> AsyncIterator[list[Row]]:
    """The rows of a list in Redis, some at a time. None is passed over where others are erased meanwhile. Raises
    RedisError."""
    at, length, ids = 0, 0, set[tuple[str, int]]()
    while True:
        async with redis.pipeline(transaction=True) as both:
            both.llen(key)
            both.lrange(key, at, at + BATCH - 1)
            now, raw = await both.execute()
        before, length = length, now
        if now < before:  # those that follow may have moved up
            at = max(0, at - (before - now))
            continue
        if not raw:
            return
        at += len(raw)
        rows = [msgspec.json.decode(value, type=Row) for value in raw]
        if new := [row for row in rows if (row.id, row.repeat) not in ids]:
            ids.update((row.id, row.repeat) for row in new)
            yield new
