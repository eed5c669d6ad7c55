"""The test that may be looked at at any time: what it claims, that it stays finite, that JSON does not change it."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import sequential
from monitoring.quality.detectors.rising_errors import Side
from monitoring.quality.detectors.sequential import STAKES, WEIGHTS, Bets, start

sides = st.sampled_from(["above", "below"])
margins = st.floats(min_value=-0.9, max_value=0.9)
differences = st.floats(min_value=-1, max_value=1)


def after(test: Bets, seen: list[float]) -> Bets:
    for difference in seen:
        test = sequential.observe(test, difference)
    return test


def ever_rejected(test: Bets, worse: float, better: float, pairs: int, seed: str) -> bool:
    draw = random.Random(seed)
    for _ in range(pairs):
        place = draw.random()
        test = sequential.observe(test, 1.0 if place < worse else -1.0 if place < worse + better else 0.0)
    return test.log_e_max >= -math.log(0.05)


def test_a_new_test_has_an_e_value_of_one_and_no_mean() -> None:
    test = start("above", 0.02)
    assert sequential.log_e(test) == pytest.approx(0.0)
    assert sequential.find_mean(test) is None
    assert sum(WEIGHTS) == pytest.approx(1.0)
    assert all(0 < stake < 1 for stake in STAKES)


def test_the_e_value_is_the_weighted_mean_of_what_each_stake_made_of_its_capital() -> None:
    seen = [1.0, 0.0, -1.0, 0.25]
    test = after(start("above", 0.02), seen)
    wanted = sum(
        weight * math.prod(1 + stake / 1.02 * (difference - 0.02) for difference in seen)
        for weight, stake in zip(WEIGHTS, STAKES, strict=True)
    )
    assert math.exp(sequential.log_e(test)) == pytest.approx(wanted)
    assert sequential.find_mean(test) == pytest.approx(0.0625)


@given(sides, margins)
def test_no_stake_makes_money_on_average_at_the_bound(side: Side, margin: float) -> None:
    """The whole claim: at the bound the expected e-value after one more difference is the e-value before it."""
    up = (1 + margin) / 2
    test = after(start(side, margin), [1.0, -0.5])
    expected = sum(p * math.exp(sequential.log_e(sequential.observe(test, x))) for p, x in ((up, 1), (1 - up, -1)))
    assert expected == pytest.approx(math.exp(sequential.log_e(test)))


@pytest.mark.parametrize(
    ("side", "margin", "worse", "better"),
    [("above", 0.0, 0.05, 0.05), ("above", 0.02, 0.07, 0.05), ("below", 0.02, 0.07, 0.05), ("above", 0.0, 0.5, 0.5)],
)
def test_at_its_bound_it_ever_rejects_no_more_often_than_alpha(
    side: Side, margin: float, worse: float, better: float
) -> None:
    rejected = sum(ever_rejected(start(side, margin), worse, better, 600, f"{side} {margin} {n}") for n in range(400))
    assert rejected <= 400 * 0.05 + 3.1 * math.sqrt(400 * 0.05 * 0.95)


def test_harm_and_its_absence_are_found() -> None:
    assert all(ever_rejected(start("above", 0.02), 0.3, 0.1, 600, f"harm {n}") for n in range(20))
    assert all(ever_rejected(start("below", 0.02), 0.0, 0.0, 300, f"equal {n}") for n in range(3))


@given(sides, margins, st.lists(differences, max_size=40))
def test_json_gives_back_the_same_test_to_the_last_bit(side: Side, margin: float, seen: list[float]) -> None:
    test = after(start(side, margin), seen)
    assert msgspec.json.decode(msgspec.json.encode(test), type=Bets, strict=True) == test


@given(sides, margins, differences, st.integers(1, 200), st.lists(differences, max_size=5))
def test_so_many_in_a_row_are_the_same_as_one_after_the_other(
    side: Side, margin: float, difference: float, times: int, before: list[float]
) -> None:
    test = after(start(side, margin), before)
    at_once, singly = sequential.observe(test, difference, times), after(test, [difference] * times)
    assert at_once.observed == singly.observed
    assert sequential.log_e(at_once) == pytest.approx(sequential.log_e(singly), abs=1e-8)
    assert at_once.log_e_max == pytest.approx(singly.log_e_max, abs=1e-8)


@given(sides, margins, st.lists(differences, max_size=60))
def test_the_largest_e_value_is_the_largest_that_anybody_could_have_seen(
    side: Side, margin: float, seen: list[float]
) -> None:
    test, largest = start(side, margin), 0.0
    for difference in seen:
        test = sequential.observe(test, difference)
        largest = max(largest, sequential.log_e(test))
    assert test.log_e_max == pytest.approx(largest, abs=1e-9)
    assert test.log_e_max >= -math.log(0.05) or sequential.log_e(test) < -math.log(0.05)


@pytest.mark.parametrize("side", ["above", "below"])
@pytest.mark.parametrize("margin", [-0.9, 0.0, 0.02, 0.9])
@pytest.mark.parametrize("difference", [-1.0, 0.0, 1.0])
def test_a_million_of_the_same_overflow_nothing(side: Side, margin: float, difference: float) -> None:
    test = sequential.observe(start(side, margin), difference, 1_000_000)
    figures = [
        *test.log_capitals,
        test.log_e_max,
        test.total,
        sequential.log_e(test),
        sequential.round_e_value(test.log_e_max),
    ]
    assert all(math.isfinite(figure) for figure in figures)
    assert msgspec.json.decode(msgspec.json.encode(test), type=Bets) == test


def test_a_million_one_by_one_stay_finite_and_small() -> None:
    draw, test = random.Random(7), start("above", 0.02)
    for _ in range(1_000_000):
        test = sequential.observe(test, draw.choice((-1.0, 0.0, 0.0, 1.0)))
    assert test.observed == 1_000_000
    assert all(math.isfinite(capital) for capital in test.log_capitals)
    assert len(msgspec.json.encode(test)) < 400


@pytest.mark.parametrize("difference", [1.0001, -1.5, math.nan, math.inf])
def test_what_is_no_difference_is_refused(difference: float) -> None:
    with pytest.raises(ValueError, match="must lie within -1 and 1"):
        sequential.observe(start("above", 0.0), difference)


def test_no_times_and_margins_out_of_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least once"):
        sequential.observe(start("above", 0.0), 0.0, 0)
    for margin in (0.91, -1.0, math.nan):
        with pytest.raises(ValueError, match="must lie within"):
            start("below", margin)


def test_what_people_are_told_of_an_e_value_is_never_infinite() -> None:
    assert sequential.round_e_value(0.0) == 1.0
    assert sequential.round_e_value(math.log(123.456)) == 123.5
    assert sequential.round_e_value(1e9) == 1e12
    assert sequential.round_e_value(-1e9) == 0.0
