"""The state of quality: verdicts on versions, and the actions that follow."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.evaluations.evaluations import Evaluations
from gateway.features.quality.waiting_actions import ActionOutbox
from gateway.features.quality.webhooks import Webhooks
from gateway.features.releases.releases import Releases
from gateway.features.retraining.retraining import RetrainingRequests
from gateway.features.reviews.reviews import Reviews
from gateway.services import Services
from gateway.state.quality_store import Monitored, QualityStore


@dataclass(frozen=True)
class Quality:
    """`store` keeps verdicts in Redis, `monitored` the latest judgements in memory, `outbox` actions not yet done."""

    services: Services
    store: QualityStore
    monitored: Monitored
    outbox: ActionOutbox
    webhooks: Webhooks
    reviews: Reviews
    retraining: RetrainingRequests
    evaluations: Evaluations
    releases: Releases
