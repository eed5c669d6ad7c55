"""Learned delays: hazards, their bound, the rhythm of the day."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import delays
from monitoring.quality.detectors.delays import AGES, HOURS, Delays, Reference


def reference(events: list[int], watched: float = 1_000.0, by_hour: list[int] | None = None) -> Reference:
    whole = [*events, *[0] * (AGES - len(events))]
    return Reference(
        began=0.0,
        ended=86400.0,
        watched=(watched / HOURS,) * (AGES * HOURS),
        events=tuple(whole),
        by_hour=tuple(by_hour or [sum(events) // HOURS] * HOURS),
    )


def test_age_buckets_double() -> None:
    assert [delays.get_age_bucket(n) for n in (0, 1, 2, 3, 4, 7, 8, 8640, 10**9)] == [0, 1, 2, 2, 3, 3, 4, 14, 14]


def test_a_hazard_is_complaints_by_the_time_that_requests_were_watched() -> None:
    found = delays.learn(reference([10, 20, 40]))
    assert found.hazards[:4] == pytest.approx((0.01, 0.02, 0.04, 0.0))
    assert found.hours == (1.0,) * HOURS
    assert found.rhythm_variance == 0.0


def test_ages_of_which_too_little_is_known_are_not_tested() -> None:
    found = delays.learn(reference([10, 0, 8, 4, 1]))
    assert [hazard > 0 for hazard in found.hazards[:6]] == [True, True, True, False, False, False]
    assert found.weights[1] == 0.5
    assert delays.learn(reference([1, 2, 3])).hazards == (0.0,) * AGES


def test_a_rhythm_that_chance_explains_is_none_and_a_plain_one_is_kept() -> None:
    even = delays.learn(reference([400], by_hour=[52, 48, 55, 45, 50, 49, 51, 50]))
    assert even.hours == (1.0,) * HOURS
    plain = delays.learn(reference([400], by_hour=[0, 0, 100, 100, 100, 100, 0, 0]))
    assert max(plain.hours) == pytest.approx(2.0, rel=0.1)
    assert min(plain.hours) < 0.1
    assert plain.rhythm_variance > 0


@given(st.lists(st.integers(0, 60), min_size=HOURS, max_size=HOURS).filter(lambda seen: sum(seen) > 20))
def test_the_rhythm_leaves_what_is_expected_in_a_day_as_it_is(seen: list[int]) -> None:
    found = delays.learn(reference([sum(seen)], by_hour=seen))
    assert sum(found.hours) / HOURS == pytest.approx(1.0, abs=delays.HOUR_MIN)
    assert min(found.hours) > 0


@given(st.floats(20, 5_000))
def test_the_bound_is_that_of_a_poisson_rate(count: float) -> None:
    """At the bound so few complaints come in 2.5% of all cases (checked on whole counts)."""
    count = round(count)
    mean = count * delays.find_widening(count)
    logs = [n * math.log(mean) - mean - math.lgamma(n + 1) for n in range(int(count) + 1)]
    assert math.fsum(math.exp(one) for one in logs) == pytest.approx(0.025, rel=0.03)


def test_the_bound_is_wider_where_most_are_of_an_age_of_which_little_is_known() -> None:
    found = delays.learn(reference([400, 5]))
    young, old = (delays.find_expected(found, [age], [100.0], 0)[0] / found.hazards[age] / 100 for age in (0, 1))
    assert young == pytest.approx(delays.find_widening(400))
    assert old == pytest.approx(delays.find_widening(5))
    assert delays.find_expected(found, [3], [100.0], 0) == [0.0]
    both, youngest = delays.find_expected(found, [1, 0], [100.0, 1.0], 0)
    assert youngest == pytest.approx(found.hazards[0] * young)
    mean = found.hazards[1] * 100 + found.hazards[0]
    assert mean < both < mean * old


def test_quantiles_and_rate_are_those_of_the_hazards() -> None:
    found = delays.learn(reference([0, 0, 0, 500], watched=100_000.0))
    assert delays.get_complaint_rate(found) == pytest.approx(1 - math.exp(-4 * 0.005 - 0.5 / 100_000 * 4), rel=0.01)
    median = delays.find_delay_quantile(found, 0.5)
    assert median is not None
    assert 5.5 * 300 < median < 6.5 * 300
    assert delays.find_delay_quantile(delays.learn(reference([])), 0.5) is None


def test_json_gives_back_the_same() -> None:
    found = delays.learn(reference([7, 9, 11], by_hour=[9, 9, 9, 0, 0, 0, 0, 0]))
    assert msgspec.json.decode(msgspec.json.encode(found), type=Delays) == found
    seen = delays.add_complaint(delays.add_watched(reference([3]), 5, [0, 4], [1.5, 2.5], 90_000.0), 5, 4)
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Reference) == seen
    assert seen.events[4] == 1
    assert sum(seen.watched) == pytest.approx(sum(reference([3]).watched) + 4)
