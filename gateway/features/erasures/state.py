"""The state of erasures, which delete texts of requests."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.features.erasures.store import ErasureStore
from gateway.features.fitting.state import Fitting
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.state import Reviews
from gateway.features.training.state import Trainings
from gateway.services import Services


@dataclass(frozen=True)
class Erasures:
    """`store` keeps erasures in Redis. Texts are also in `reviews`, in the examples of `retraining`, in `trainings`,
    and in the prompts that wait for `fitting`."""

    services: Services
    store: ErasureStore
    reviews: Reviews
    retraining: RetrainingRequests
    trainings: Trainings
    fitting: Fitting
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when one was entered here."""
