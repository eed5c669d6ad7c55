"""Walks that look at limits a minute: nothing that they see counts where their minute is over before their end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from gateway.limits.quotas import number_window


async def in_one_minute(redis: Redis, walk: Callable[[], Awaitable[None]]) -> None:
    """Run the walk, and again where its minute was over before its end: nothing that it saw of limits counts then."""
    while True:
        began = number_window("minute", (await redis.time())[0])
        try:
            await walk()
        except (Exception, pytest.fail.Exception):  # a quota of the minute that ended may be gone, too
            if number_window("minute", (await redis.time())[0]) == began:
                raise
        else:
            return
