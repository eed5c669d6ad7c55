"""The latest judgements, as every gateway reads them from Redis, where the one that monitors writes them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from msgspec.structs import replace
from redis.exceptions import RedisError

if TYPE_CHECKING:
    from gateway.features.quality.quality import Quality


async def follow_judgements(quality: Quality) -> None:
    """Read what was judged, again and again. Runs until cancelled; while Redis is away what was read last stands."""
    while True:
        with contextlib.suppress(RedisError, OSError):
            summary = await quality.store.told()
            if summary is not None and summary.writing != quality.monitored.summary.writing:
                whole = await quality.store.summary()
                quality.monitored.summary = whole if whole is not None else summary
            elif summary is not None:
                quality.monitored.summary = replace(summary, judgements=quality.monitored.summary.judgements)
        await asyncio.sleep(quality.services.settings.monitor.interval_seconds)
