"""The retraining feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.retraining import endpoints
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.retraining.store import RetrainingStore
from gateway.features.reviews.state import Reviews
from gateway.services import Services


def _open(services: Services, features: Features) -> RetrainingRequests:
    reviews = features[Reviews]
    store = RetrainingStore(services.redis, services.settings.records.retention_seconds, lambda: reviews.texts.seals)
    services.control.resealing.append(store.reseal)
    return RetrainingRequests(services, store, reviews)


RETRAINING = Feature(RetrainingRequests, _open, (endpoints.router,))
