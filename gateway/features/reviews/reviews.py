"""The state of reviews: requests that were drawn for people to judge."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.reviews.gold import GoldStore
from gateway.features.reviews.queue import ReviewQueue
from gateway.features.reviews.store import ReviewStore
from gateway.features.texts.texts import Texts
from gateway.services import Services


@dataclass(frozen=True)
class Reviews:
    """`store` keeps reviews in Redis; `queue` holds those on their way there; `gold` has the gold questions. Keys and
    redactions are those of `texts`."""

    services: Services
    texts: Texts
    store: ReviewStore
    queue: ReviewQueue
    gold: GoldStore
