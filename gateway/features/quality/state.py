"""The state of quality: verdicts on versions, and the actions that follow."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from msgspec.structs import replace
from redis.exceptions import RedisError

from gateway.features.evaluations.state import Evaluations
from gateway.features.quality.waiting_actions import ActionOutbox
from gateway.features.quality.webhooks import Webhooks
from gateway.features.releases.state import Releases
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.state import Reviews
from gateway.services import Services
from gateway.state.quality_store import Monitored, QualityStore


@dataclass(frozen=True)
class Quality:
    """`store` keeps verdicts in Redis, `monitored` the latest judgements in memory, `outbox` the waiting actions."""

    services: Services
    store: QualityStore
    monitored: Monitored
    outbox: ActionOutbox
    webhooks: Webhooks
    reviews: Reviews
    retraining: RetrainingRequests
    evaluations: Evaluations
    releases: Releases


async def follow_judgements(quality: Quality) -> None:
    """Read the judgements of the gateway with the monitor's job at an interval. Runs until cancelled.

    While Redis is away, the judgements that were read last stay in use.
    """
    while True:
        with contextlib.suppress(RedisError, OSError):
            summary = await quality.store.read_last_summary()
            if summary is not None and summary.writing != quality.monitored.summary.writing:
                whole = await quality.store.summary()
                quality.monitored.summary = whole if whole is not None else summary
            elif summary is not None:
                quality.monitored.summary = replace(summary, judgements=quality.monitored.summary.judgements)
        await asyncio.sleep(quality.services.settings.monitor.interval_seconds)
