"""The state of shadows: requests that a second arm answers, too."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.features.reviews.state import Reviews
from gateway.features.shadows.draws import ShadowDraws
from gateway.services import Services


@dataclass(frozen=True)
class Shadows:
    """`draws` draws requests and holds those that wait for a shadow; drawn reviews go to `reviews`."""

    services: Services
    draws: ShadowDraws
    reviews: Reviews
