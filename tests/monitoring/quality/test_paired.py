"""The detector over paired differences: what it claims, that it stays finite, that JSON does not change it."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import paired, shiryaev_roberts
from monitoring.quality.detectors.paired import PairedDetector
from monitoring.quality.detectors.rising_errors import Side

sides = st.sampled_from(["above", "below"])
margins = st.floats(min_value=-0.9, max_value=0.9)
differences = st.floats(min_value=-1, max_value=1)


def after(detector: PairedDetector, seen: list[float]) -> PairedDetector:
    for difference in seen:
        detector = paired.observe(detector, difference)
    return detector


def alarmed(detector: PairedDetector, worse: float, better: float, pairs: int, seed: str) -> bool:
    draw, bar = random.Random(seed), shiryaev_roberts.find_threshold(pairs, 0.05)
    for _ in range(pairs):
        place = draw.random()
        detector = paired.observe(detector, 1.0 if place < worse else -1.0 if place < worse + better else 0.0)
        if paired.log_e(detector) >= bar:
            return True
    return False


def test_a_new_detector_has_seen_nothing() -> None:
    detector = paired.start(0.02)
    assert paired.log_e(detector) == shiryaev_roberts.LOG_FLOOR
    assert paired.find_change(detector) == 0
    assert sum(paired.WEIGHTS) == pytest.approx(1.0)


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.02, 0.5])
def test_at_the_margin_each_sum_grows_by_one_a_pair_on_average(side: Side, margin: float) -> None:
    """Over all sequences of -1, 0 and 1, whose mean is the margin, each with its probability."""
    n, up = 6, 0.2 + max(margin, 0.0) / 2
    of = {1.0: up + margin / 2, -1.0: up - margin / 2}
    of[0.0] = 1 - sum(of.values())
    assert min(of.values()) >= 0
    expected = [0.0] * len(paired.STAKES)
    for seen in itertools.product(of, repeat=n):
        probability = math.prod(of[d] for d in seen)
        for at, one in enumerate(after(paired.start(margin, side), list(seen)).logs):
            expected[at] += probability * math.expm1(one)
    assert expected == pytest.approx([n] * len(expected))


@given(sides, margins, st.lists(differences, max_size=30), differences, differences)
def test_a_worse_pair_is_never_less_evidence(
    side: Side, margin: float, seen: list[float], one: float, other: float
) -> None:
    detector = after(paired.start(margin, side), seen)
    better, worse = sorted((one, other), reverse=side == "below")
    assert paired.log_e(paired.observe(detector, worse)) >= paired.log_e(paired.observe(detector, better)) - 1e-12


@given(sides, margins, st.lists(differences, max_size=40))
def test_json_gives_back_the_same_detector_to_the_last_bit(side: Side, margin: float, seen: list[float]) -> None:
    detector = after(paired.start(margin, side), seen)
    assert msgspec.json.decode(msgspec.json.encode(detector), type=PairedDetector, strict=True) == detector


@pytest.mark.parametrize(
    ("side", "margin", "worse", "better"), [("above", 0.0, 0.05, 0.05), ("below", 0.1, 0.15, 0.05)]
)
def test_at_its_margin_it_alarms_no_more_often_than_alpha(
    side: Side, margin: float, worse: float, better: float
) -> None:
    alarms = sum(alarmed(paired.start(margin, side), worse, better, 400, f"{side} {n}") for n in range(300))
    assert alarms <= 300 * 0.05 + 3.1 * math.sqrt(300 * 0.05 * 0.95)


def test_harm_is_found_and_since_when_and_its_end_the_other_way_round() -> None:
    assert all(alarmed(paired.start(0.0), 0.2, 0.02, 400, f"harm {n}") for n in range(20))
    assert all(alarmed(paired.start(0.15, "below"), 0.02, 0.02, 600, f"back {n}") for n in range(20))
    detector = after(after(paired.start(0.0), [0.0, -1.0] * 50), [1.0, 0.0] * 20)
    assert paired.find_change(detector) == 100


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("margin", [-0.9, 0.0, 0.9])
@pytest.mark.parametrize("difference", [-1.0, 0.0, 1.0])
def test_thousands_of_the_same_overflow_nothing(side: Side, margin: float, difference: float) -> None:
    detector = after(paired.start(margin, side), [difference] * 5_000)
    assert all(math.isfinite(one) for one in (*detector.logs, paired.log_e(detector)))
    assert msgspec.json.decode(msgspec.json.encode(detector), type=PairedDetector) == detector


def test_what_is_no_difference_or_margin_is_refused() -> None:
    for difference in (1.01, -1.5, math.nan):
        with pytest.raises(ValueError, match="within -1 and 1"):
            paired.observe(paired.start(0.0), difference)
    for margin in (0.91, -1.0, math.nan):
        with pytest.raises(ValueError, match="must lie within"):
            paired.start(margin)
