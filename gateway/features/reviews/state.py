"""The state of reviews: requests that were drawn so that people judge them."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.reviews.gold import GoldStore
from gateway.features.reviews.store import ReviewStore
from gateway.features.reviews.unsaved_reviews import ReviewQueue
from gateway.features.texts.state import Texts
from gateway.services import Services
from monitoring.texts import Resealing


@dataclass(frozen=True)
class Reviews:
    """`store` keeps reviews in Redis; `queue` holds those on their way there; `gold` has the gold questions. Keys and
    redactions are those of `texts`."""

    services: Services
    texts: Texts
    store: ReviewStore
    queue: ReviewQueue
    gold: GoldStore

    async def reseal(self, resealing: Resealing) -> None:
        """Seal reviews, gold questions and reasons of skips under the present key, if their former key is known. Raises
        RedisError."""
        await self.gold.reseal(resealing)
        for task in self.services.settings.tasks:
            await self.store.reseal(task, resealing)
