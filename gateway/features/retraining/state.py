"""The state of retraining: requests to train a task's adapter again."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.retraining.store import RetrainingStore
from gateway.features.reviews.state import Reviews
from gateway.services import Services


@dataclass(frozen=True)
class RetrainingRequests:
    """`store` keeps the requests to train in Redis; examples come from `reviews`."""

    services: Services
    store: RetrainingStore
    reviews: Reviews
