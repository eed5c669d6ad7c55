"""The detector of a rate that degrades: what it claims, enumerated and simulated, and that JSON changes nothing."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import rising_errors, shiryaev_roberts
from monitoring.quality.detectors.rising_errors import RateDetector, Side, start

sides = st.sampled_from(["above", "below"])
baselines = st.floats(min_value=0.001, max_value=0.999)
shares = st.floats(min_value=0, max_value=1)
weights = st.floats(min_value=0.01, max_value=1)
labels = st.lists(shares, max_size=40)


def after(detector: RateDetector, seen: list[float]) -> RateDetector:
    for badness in seen:
        detector = rising_errors.observe(detector, badness)
    return detector


def sums(detector: RateDetector) -> list[float]:
    return [math.expm1(one) for one in detector.logs]


def alarm_at(detector: RateDetector, rate: float, count: int, threshold: float, seed: str) -> int | None:
    draw = random.Random(seed)
    for n in range(count):
        detector = rising_errors.observe(detector, float(draw.random() < rate))
        if rising_errors.log_e(detector) >= threshold:
            return n + 1
    return None


def test_a_new_detector_has_seen_nothing_and_claims_nothing() -> None:
    detector = start(0.05)
    assert rising_errors.log_e(detector) == shiryaev_roberts.LOG_FLOOR
    assert rising_errors.find_mean(detector) is None
    assert rising_errors.find_change(detector) == 0
    assert rising_errors.log_e(detector) < rising_errors.find_threshold(1, 0.99)
    assert sum(rising_errors.WEIGHTS) == pytest.approx(1.0)
    assert all(weight > 0 for weight in rising_errors.WEIGHTS)


@given(sides, baselines)
def test_alternatives_are_rates_on_their_side_each_farther_than_the_one_before(side: Side, baseline: float) -> None:
    rates = rising_errors.list_alternatives(baseline, side)
    away = [rate - baseline if side == "above" else baseline - rate for rate in rates]
    assert all(0 < rate < 1 for rate in rates)
    assert away[0] > 0
    assert all(nearer < farther for nearer, farther in itertools.pairwise(away))


@given(sides, baselines, weights, st.lists(st.tuples(shares, st.floats(0.001, 1)), min_size=1, max_size=6))
def test_no_bet_gains_on_average_while_the_mean_keeps_to_the_null_hypothesis(
    side: Side, baseline: float, weight: float, support: list[tuple[float, float]]
) -> None:
    """The whole claim, for any badness of a few values: where their mean is too large (small), 0 (1) is mixed in."""
    mass = sum(p for _, p in support)
    mean = sum(x * p for x, p in support) / mass
    harmless = 0.0 if side == "above" else 1.0
    over = mean > baseline if side == "above" else mean < baseline
    keep = (baseline - harmless) / (mean - harmless) if over else 1.0
    whole = [(x, keep * p / mass) for x, p in support] + [(harmless, 1 - keep)]
    for at in range(len(rising_errors.WEIGHTS)):
        expected = sum(p * math.exp(rising_errors.find_gains(baseline, side, x, weight)[at]) for x, p in whole)
        assert expected <= 1 + 1e-9


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("baseline", [0.01, 0.05, 0.3, 0.9])
def test_at_the_baseline_the_sum_grows_by_one_a_label_on_average_whatever_was_seen(side: Side, baseline: float) -> None:
    """Over all sequences of 0 and 1 of a length n, each with its probability, every sum is n on average."""
    n = 9
    expected = [0.0] * len(rising_errors.WEIGHTS)
    for seen in itertools.product((0.0, 1.0), repeat=n):
        probability = math.prod(baseline if x else 1 - baseline for x in seen)
        for at, one in enumerate(sums(after(start(baseline, side), list(seen)))):
            expected[at] += probability * one
    assert expected == pytest.approx([n] * len(expected))


def test_a_label_that_depends_on_all_before_it_gains_nothing_either() -> None:
    """Whoever picks each rate by what the detector shows, at most the baseline, comes to no more than n on average."""
    n, baseline = 10, 0.2
    total = 0.0

    def walk(detector: RateDetector, probability: float, depth: int) -> float:
        if depth == n:
            return probability * math.exp(rising_errors.log_e(detector))
        sure = depth > 0 and rising_errors.log_e(detector) > math.log(depth)
        rate = baseline if sure else baseline / 2
        return walk(rising_errors.observe(detector, 1.0), probability * rate, depth + 1) + walk(
            rising_errors.observe(detector, 0.0), probability * (1 - rate), depth + 1
        )

    total = walk(start(baseline), 1.0, 0)
    assert 0 < total <= n + 1e-9


@given(sides, baselines, st.lists(st.tuples(shares, weights), max_size=30))
def test_the_sums_are_those_of_the_definition(side: Side, baseline: float, seen: list[tuple[float, float]]) -> None:
    detector, plain = start(baseline, side), [0.0] * len(rising_errors.WEIGHTS)
    for x, weight in seen:
        detector = rising_errors.observe(detector, x, weight)
        plain = [
            (s + 1) * (1 + weight * (x * p / baseline + (1 - x) * (1 - p) / (1 - baseline) - 1))
            for s, p in zip(plain, rising_errors.list_alternatives(baseline, side), strict=True)
        ]
    assert sums(detector) == pytest.approx(plain, rel=1e-9)
    mean = sum(w * s for w, s in zip(rising_errors.WEIGHTS, plain, strict=True))
    assert rising_errors.log_e(detector) == pytest.approx(
        math.log(mean) if seen else shiryaev_roberts.LOG_FLOOR, abs=1e-9
    )


@given(sides, baselines, labels, shares, shares)
def test_a_worse_label_is_never_less_evidence(
    side: Side, baseline: float, seen: list[float], one: float, other: float
) -> None:
    detector = after(start(baseline, side), seen)
    better, worse = sorted((one, other), reverse=side == "below")
    assert (
        rising_errors.log_e(rising_errors.observe(detector, worse))
        >= rising_errors.log_e(rising_errors.observe(detector, better)) - 1e-12
    )


@given(baselines, baselines, labels)
def test_a_higher_baseline_is_never_easier_to_slip_from(one: float, other: float, seen: list[float]) -> None:
    """For the nearest alternatives, at the same distance in points."""
    low, high = sorted((min(one, 0.6), min(other, 0.6)))
    on_low, on_high = after(start(low), seen), after(start(high), seen)
    assert all(a >= b - 1e-9 for a, b in zip(on_low.logs[:3], on_high.logs[:3], strict=True))


@given(sides, baselines, st.lists(st.tuples(shares, weights), max_size=40))
def test_json_gives_back_the_same_detector_to_the_last_bit(
    side: Side, baseline: float, seen: list[tuple[float, float]]
) -> None:
    detector = start(baseline, side)
    for x, weight in seen:
        detector = rising_errors.observe(detector, x, weight)
    assert msgspec.json.decode(msgspec.json.encode(detector), type=RateDetector, strict=True) == detector


@pytest.mark.parametrize("baseline", [0.01, 0.05, 0.15, 0.3])
def test_at_its_baseline_it_alarms_no_more_often_than_alpha(baseline: float) -> None:
    bar, runs = rising_errors.find_threshold(500, 0.2), 300
    alarms = sum(alarm_at(start(baseline), baseline, 500, bar, f"{baseline} {n}") is not None for n in range(runs))
    assert alarms <= runs * 0.2 + 3.1 * math.sqrt(runs * 0.2 * 0.8)


def test_a_slip_is_found_soon_and_the_more_so_the_larger_it_is() -> None:
    bar = rising_errors.find_threshold(10_000, 0.05)
    found = {
        rate: sorted(alarm_at(start(0.05), rate, 5_000, bar, f"{rate} {n}") or 5_000 for n in range(31))[15]
        for rate in (0.10, 0.15, 0.25)
    }
    assert found[0.25] < found[0.15] < found[0.10] < 600


def test_a_recovery_is_found_by_the_same_test_the_other_way_round() -> None:
    bar = rising_errors.find_threshold(10_000, 0.05)
    assert all((alarm_at(start(0.25, "below"), 0.05, 400, bar, f"back {n}") or 999) < 300 for n in range(20))
    still_bad = [alarm_at(start(0.25, "below"), 0.25, 400, bar, f"still {n}") for n in range(20)]
    assert still_bad == [None] * 20


def test_since_when_it_slips_is_about_where_the_change_was() -> None:
    draw, begun = random.Random(5), []
    for _ in range(15):
        detector = after(start(0.05), [float(draw.random() < 0.05) for _ in range(300)])
        detector = after(detector, [float(draw.random() < 0.30) for _ in range(60)])
        begun.append(rising_errors.find_change(detector))
    assert sorted(begun)[7] == pytest.approx(300, abs=10)


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("baseline", [1e-4, 0.05, 0.5, 0.9999])
@pytest.mark.parametrize("badness", [0.0, 0.5, 1.0])
def test_thousands_of_the_same_overflow_nothing(side: Side, baseline: float, badness: float) -> None:
    detector = after(start(baseline, side), [badness] * 5_000)
    assert all(math.isfinite(one) for one in (*detector.logs, *detector.rises, rising_errors.log_e(detector)))
    assert msgspec.json.decode(msgspec.json.encode(detector), type=RateDetector) == detector
    assert len(msgspec.json.encode(detector)) < 600


@pytest.mark.parametrize("badness", [-0.01, 1.01, math.nan, math.inf])
def test_what_is_no_badness_is_refused(badness: float) -> None:
    with pytest.raises(ValueError, match="within 0 and 1"):
        rising_errors.observe(start(0.05), badness)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1.5, math.nan])
def test_what_is_no_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        rising_errors.observe(start(0.05), 1.0, weight)


@pytest.mark.parametrize("baseline", [0.0, 1.0, -0.5, math.nan])
def test_baselines_that_nothing_can_be_held_against_are_refused(baseline: float) -> None:
    with pytest.raises(ValueError, match="must lie within"):
        start(baseline)


@pytest.mark.parametrize(("count", "alpha"), [(0, 0.05), (math.inf, 0.05), (100, 0.0), (100, 1.0), (math.nan, 0.5)])
def test_thresholds_without_labels_or_without_an_alpha_are_refused(count: float, alpha: float) -> None:
    with pytest.raises(ValueError, match="at least 1 label"):
        rising_errors.find_threshold(count, alpha)
