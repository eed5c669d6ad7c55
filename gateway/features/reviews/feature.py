"""The reviews feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.reviews import endpoints, label_endpoints, reviewer_endpoints
from gateway.features.reviews.gold import GoldStore
from gateway.features.reviews.job import keep_reviewing
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import ReviewStore
from gateway.features.reviews.unsaved_reviews import ReviewQueue
from gateway.features.texts.state import Texts
from gateway.services import Services


def _open(services: Services, features: Features) -> Reviews:
    texts = features[Texts]
    store = ReviewStore(services.redis, seals=lambda: texts.seals)
    reviews = Reviews(services, texts, store, ReviewQueue(), GoldStore(services.redis, lambda: texts.seals))
    services.control.resealing.append(reviews.reseal)
    return reviews


def _read_gauges(reviews: Reviews) -> None:
    waiting = reviews.queue.waiting
    reviews.services.meters.reviews_waiting.read_from(lambda: {(task,): float(n) for task, n in waiting.items()})


REVIEWS = Feature(
    Reviews,
    _open,
    (reviewer_endpoints.router, label_endpoints.router, endpoints.router),
    {"keep_reviews": keep_reviewing},
    _read_gauges,
)
