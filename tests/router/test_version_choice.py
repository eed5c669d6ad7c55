"""A request's own places, beside those of its arms: even, each for itself, and nobody else's to tell."""

from __future__ import annotations

import math
import random

import pytest

from router.version_choice import PLACES, list_places_beside, place_for_arm

pytestmark = pytest.mark.invariant("Draws depend on neither session, routing nor answer.")

REQUESTS = 20_000
SECRET = b"a secret of this installation"


def seen(secret: bytes = SECRET) -> list[tuple[float, ...]]:
    """The places of many requests."""
    return [list_places_beside(f"request {number}", secret) for number in range(REQUESTS)]


def correlation(first: list[float], second: list[float]) -> float:
    """Pearson's, of two that are even in [0, 1)."""
    return 12 * sum((a - 0.5) * (b - 0.5) for a, b in zip(first, second, strict=True)) / len(first)


def test_places_are_spread_evenly() -> None:
    for at in range(PLACES):
        found = [places[at] for places in seen()]
        assert all(0.0 <= one < 1.0 for one in found)
        for share in (0.001, 0.01, 0.1, 0.5, 0.9):
            spread = math.sqrt(REQUESTS * share * (1 - share))
            assert abs(sum(one < share for one in found) - REQUESTS * share) < 4 * spread + 1, share


def test_places_say_nothing_of_each_other_nor_of_the_routing_draw() -> None:
    draws = random.Random(3)
    points = [draws.random() for _ in range(REQUESTS)]
    arms = [[place_for_arm(None, "", point, name) for point in points] for name in ("version", "holdout", "explored")]
    columns = [*arms, *([places[at] for places in seen()] for at in range(PLACES))]
    for at, first in enumerate(columns):
        for second in columns[at + 1 :]:
            assert abs(correlation(first, second)) < 4 / math.sqrt(REQUESTS)


def test_places_are_the_same_everywhere_and_others_with_another_secret() -> None:
    assert list_places_beside("request 1", SECRET) == list_places_beside("request 1", SECRET)
    assert not set(seen()) & set(seen(b"another secret"))
