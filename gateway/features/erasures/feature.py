"""Erasures, as the table of features has them."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.erasures import endpoints
from gateway.features.erasures.job import keep_erasing
from gateway.features.erasures.state import Erasures
from gateway.features.erasures.store import ErasureStore
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.state import Reviews
from gateway.features.training.state import Trainings
from gateway.services import Services


def _open(services: Services, features: Features) -> Erasures:
    store = ErasureStore(services.redis)
    return Erasures(services, store, features[Reviews], features[RetrainingRequests], features[Trainings])


ERASURES = Feature(Erasures, _open, (endpoints.router,), {"keep_erasing": keep_erasing})
