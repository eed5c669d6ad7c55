"""False alarms a month into thresholds, and thresholds into the labels that a change takes."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import detection_delay, rising_errors
from monitoring.quality.detectors.dependence import CAUTION_OF_MANY, find_exponent_of


@given(st.floats(0.01, 100), st.lists(st.floats(0, 1e7), max_size=50))
def test_the_streams_together_raise_at_most_what_was_set(budget: float, streams: list[float]) -> None:
    between = [detection_delay.find_labels_between(budget, len(streams), labels, between_min=1.0) for labels in streams]
    alarms = math.fsum(detection_delay.MONTH_DAYS * labels / one for one, labels in zip(between, streams, strict=True))
    assert alarms <= budget * (1 + 1e-9)


def test_each_stream_has_an_equal_part_of_the_false_alarms() -> None:
    between = [
        detection_delay.find_labels_between(2.0, 3, labels / detection_delay.MONTH_DAYS)
        for labels in (1_000, 30_000, 10)
    ]
    assert between == pytest.approx([1_500, 45_000, detection_delay.BETWEEN_MIN])
    assert detection_delay.find_labels_between(2.0, 0, 0.0) == detection_delay.BETWEEN_MIN


def test_clustered_errors_take_longer_to_find() -> None:
    plain, clustered = (
        detection_delay.find_labels_to_detect(0.05, 0.10, 10_000, 0.05, exponent=find_exponent_of(dispersion))
        for dispersion in (1.0, 2.0)
    )
    assert plain is not None
    assert clustered is not None
    assert 2.5 * plain < clustered < 3.5 * plain
    many = detection_delay.find_labels_to_detect(
        0.05, 0.10, 10_000, 0.05, exponent=find_exponent_of(2.0, CAUTION_OF_MANY)
    )
    assert many is not None
    assert 1.3 * clustered < many < 1.8 * clustered


def test_what_can_not_be_is_refused() -> None:
    for budget in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="nothing could ever alarm"):
            detection_delay.find_labels_between(budget, 1, 1.0)
    with pytest.raises(ValueError, match="labels of a signal"):
        detection_delay.find_labels_between(1.0, 1, -1.0)


def alarm_after(p: float, baseline: float, bar: float, draw: random.Random, most: int) -> int:
    """The detector by its definition, for speed: the factors are the same for every label."""
    p1 = rising_errors.list_alternatives(baseline, "above")
    bad, good = [one / baseline for one in p1], [(1 - one) / (1 - baseline) for one in p1]
    sums = [0.0] * len(p1)
    for at in range(1, most + 1):
        sums = [(s + 1) * factor for s, factor in zip(sums, bad if draw.random() < p else good, strict=True)]
        if sum(w * s for w, s in zip(rising_errors.WEIGHTS, sums, strict=True)) >= bar:
            return at
    return most


def test_false_alarms_come_no_more_often_than_planned() -> None:
    between, labels, alarms = 500.0, 0, 0
    draw = random.Random(3)
    while labels < 60_000:
        labels += alarm_after(0.05, 0.05, between, draw, 60_000 - labels)
        alarms += 1
    assert alarms <= labels / between + 3 * (labels / between) ** 0.5


@pytest.mark.parametrize(("baseline", "points"), [(0.05, 0.05), (0.05, 0.10), (0.05, 0.20), (0.2, 0.1), (0.01, 0.05)])
def test_the_labels_that_a_change_takes_are_about_those_that_it_took(baseline: float, points: float) -> None:
    wanted = detection_delay.find_labels_to_detect(baseline, points, 10_000, 0.05)
    assert wanted is not None
    took = [alarm_after(baseline + points, baseline, 200_000, random.Random(seed), 20_000) for seed in range(120)]
    assert statistics.fmean(took) == pytest.approx(wanted, rel=0.25)


def test_a_change_within_the_bound_is_not_found() -> None:
    assert detection_delay.find_labels_to_detect(0.10, 0.02, 10_000, 0.05, rate=0.05) is None
    within = detection_delay.find_labels_to_detect(0.08, 0.10, 10_000, 0.05, rate=0.05)
    known = detection_delay.find_labels_to_detect(0.05, 0.10, 10_000, 0.05)
    assert within is not None
    assert known is not None
    assert within > known
