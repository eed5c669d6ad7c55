"""Rewrites of Redis's append-only file. Until a rewrite it still holds deleted data, such as texts of reviews."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from gateway.services import Services

log = logging.getLogger(__name__)
KEY = "apprentice:rewritten"
"""Set while no further rewrite is due, whichever gateway asked for the last one."""
LOAD_SHARE_MAX = 0.01
"""Share of the time that Redis may spend on rewrites. A large file is rewritten less often."""
REWRITE_SECONDS_MAX = 120.0
REWRITE_LOOK_SECONDS = 0.05
FileState = Literal["rewritten", "none", "forbidden", "unfinished"]
"""The state of deleted texts in the append-only file. After `rewritten` and with `none` (no file) they are gone."""
LOOKS = 5
"""Number of looks of each gateway in an interval."""


async def keep_rewriting(services: Services) -> None:
    """Let Redis rewrite its append-only file once an interval; one of the gateways asks for it. Raises RedisError."""
    interval_seconds = services.settings.redis.rewrite_interval_seconds
    while interval_seconds:
        await asyncio.sleep(interval_seconds / LOOKS)
        try:
            await rewrite(services.redis, interval_seconds)
        except NoPermissionError:
            log.warning("Redis forbids to rewrite its append-only file: deleted texts stay in it until it does so")
            break
    await asyncio.Event().wait()  # a job that returns would start again


async def rewrite(redis: Redis, interval_seconds: float) -> None:
    """Let Redis rewrite its append-only file, unless it has done so within the interval. Raises RedisError."""
    persistence: dict[str, Any] = await redis.info("persistence")
    if not persistence.get("aof_enabled"):
        return
    last_seconds = max(0, int(persistence.get("aof_last_rewrite_time_sec", 0)))
    pause_seconds = max(interval_seconds, last_seconds / LOAD_SHARE_MAX)
    if await redis.set(KEY, b"", nx=True, px=round(1000 * pause_seconds)):
        try:
            await redis.bgrewriteaof()
        except ResponseError as error:
            if isinstance(error, NoPermissionError):
                raise
            log.info("Redis does not rewrite its append-only file now: %s", error)  # Redis is rewriting it already


async def rewrite_now(redis: Redis) -> FileState:
    """Let Redis rewrite its append-only file, and wait for the end. Raises RedisError."""
    is_begun, until = False, time.monotonic() + REWRITE_SECONDS_MAX
    while time.monotonic() < until:
        persistence: dict[str, Any] = await redis.info("persistence")
        if not persistence.get("aof_enabled"):
            return "none"
        if not persistence["aof_rewrite_in_progress"] and not persistence.get("aof_rewrite_scheduled"):
            if is_begun:
                return "rewritten" if persistence["aof_last_bgrewrite_status"] == "ok" else "unfinished"
            try:
                is_begun = bool(await redis.bgrewriteaof())
            except NoPermissionError:
                return "forbidden"
            except ResponseError as error:
                log.info("Redis does not rewrite its append-only file now: %s", error)
        await asyncio.sleep(REWRITE_LOOK_SECONDS)
    return "unfinished"
