"""What was judged, as every gateway knows it: read from Redis, where the one that monitors writes it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import msgspec
from redis.exceptions import RedisError

from monitoring.quality.verdicts.health import Judgement, Summary

if TYPE_CHECKING:
    from gateway.services import Services


async def follow_judgements(services: Services) -> None:
    """Read what was judged, again and again. Runs until cancelled; while Redis is away what was read last stands."""
    while True:
        with contextlib.suppress(RedisError, OSError):
            told = await services.health.told()
            if told is not None and told.writing != services.monitored.summary.writing:
                whole = await services.health.summary()
                services.monitored.summary = whole if whole is not None else told
            elif told is not None:
                judgements = services.monitored.summary.judgements
                services.monitored.summary = _with(told, judgements)
        await asyncio.sleep(services.settings.monitor.interval_seconds)


def _with(told: Summary, judgements: dict[str, Judgement]) -> Summary:
    return msgspec.structs.replace(told, judgements=judgements)
