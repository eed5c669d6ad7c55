"""The erasures feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.erasures import endpoints
from gateway.features.erasures.job import keep_erasing
from gateway.features.erasures.state import Erasures
from gateway.features.erasures.store import ErasureStore
from gateway.features.fitting.state import Fitting
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.reviews.state import Reviews
from gateway.features.training.state import Trainings
from gateway.services import Services


def _open(services: Services, features: Features) -> Erasures:
    store = ErasureStore(services.redis)
    reviews, retraining, trainings = features[Reviews], features[RetrainingRequests], features[Trainings]
    return Erasures(services, store, reviews, retraining, trainings, features[Fitting])


ERASURES = Feature(Erasures, _open, (endpoints.router,), {"keep_erasing": keep_erasing})
