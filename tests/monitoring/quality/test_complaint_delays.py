"""Learned delays: hazards, their bound, the rhythm of the day."""

from __future__ import annotations

import math
import random
from collections import Counter, deque

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import complaint_delays
from monitoring.quality.detectors.complaint_delays import (
    AGES,
    CELLS,
    HOUR_SECONDS,
    TICK_SECONDS,
    Delays,
    Reference,
    Stretch,
)
from monitoring.quality.detectors.complaint_learning import learn
from monitoring.time_units import DAY_SECONDS

MONDAY = 4 * DAY_SECONDS


def plain(weights: list[float], **other: object) -> Delays:
    """Delays of a hazard of 0.01 at the first ages, from so many complaints each."""
    whole = [*weights, *[0.0] * (AGES - len(weights))]
    found = Delays(
        hazards=tuple(0.01 if weight else 0.0 for weight in whole),
        weights=tuple(whole),
        hours=(1.0,) * CELLS,
        rhythm_variance=0.0,
        began=0.0,
        ended=7 * DAY_SECONDS,
        day_variance=1e-9,
    )
    return msgspec.structs.replace(found, **other)


def simulated(
    days: int,
    per_hour: int = 40,
    rate: float = 0.2,
    delay_ticks: float = 6.0,
    open_hours: range | None = None,
    is_quiet: bool = False,
    days_differ: float = 0.0,
    size: int = 1,
    seed: int = 1,
    begins: float = MONDAY,
    reference: Reference | None = None,
) -> Reference:
    """A reference of even traffic, with exponential delays. While closed nobody complains; what would come then comes
    within the hour after it opens. It goes on with another reference, if there is one."""
    draw, begin = random.Random(seed), int(begins // TICK_SECONDS)
    reference = reference or complaint_delays.start_reference(begins)
    ready = [max(0.0, draw.gauss(1.0, days_differ)) for _ in range(days)]
    asked: Counter[int] = Counter()
    found: list[tuple[int, int]] = []
    for hour in range(24 * days):
        for number in range(0 if is_quiet and hour // 24 % 7 >= 5 else per_hour):
            tick = hour * 12 + number * 12 // per_hour
            asked[tick] += 1
            if draw.random() < rate * ready[hour // 24] / size:
                comes = tick + 1 + int(draw.expovariate(1 / delay_ticks))
                while open_hours is not None and not _is_open(comes, open_hours, is_quiet):
                    comes = (comes // 12 + 1) * 12 + draw.randrange(12)
                found += [(comes, tick)] * size
    due = deque(sorted(found))
    for tick in range(days * 288):
        if asked[tick]:
            reference = complaint_delays.add_requests(reference, begin + tick, asked[tick])
        while due and due[0][0] <= tick:
            reference = complaint_delays.add_complaint(reference, begin + due.popleft()[1], begin + tick)
    return complaint_delays.add_watched(reference, begins + days * DAY_SECONDS)


def _is_open(tick: int, open_hours: range, is_quiet: bool) -> bool:
    return tick // 12 % 24 in open_hours and not (is_quiet and tick // 288 % 7 >= 5)


def test_age_buckets_double() -> None:
    assert [complaint_delays.get_age_bucket(n) for n in (0, 1, 2, 3, 4, 7, 8, 8640, 10**9)] == [
        0,
        1,
        2,
        2,
        3,
        3,
        4,
        14,
        14,
    ]


def test_rate_and_delay_are_learned_though_complained_requests_leave() -> None:
    found = learn(simulated(7, rate=0.6, delay_ticks=24.0))
    assert complaint_delays.get_complaint_rate(found) == pytest.approx(0.6, abs=0.02)
    assert complaint_delays.find_delay_quantile(found, 0.5) == pytest.approx(25 * math.log(2) * TICK_SECONDS, rel=0.15)
    assert found.hours == pytest.approx((1.0,) * CELLS, abs=0.1)
    assert found.dispersion < 1.2
    assert found.day_variance < complaint_delays.DAY_VARIANCE


def test_ages_of_which_too_little_is_known_are_not_tested() -> None:
    begin = int(MONDAY // TICK_SECONDS)
    reference = complaint_delays.add_requests(complaint_delays.start_reference(MONDAY), begin, 500)
    for age, count in ((0, 10), (3, 8), (5, 4), (9, 1)):
        for _ in range(count):
            reference = complaint_delays.add_complaint(reference, begin, begin + age)
    found = learn(complaint_delays.add_watched(reference, MONDAY + DAY_SECONDS))
    assert [hazard > 0 for hazard in found.hazards[:5]] == [True, True, True, False, False]
    assert found.weights[1] == 0.5
    assert learn(simulated(1, rate=0.0)).hazards == (0.0,) * AGES


@pytest.mark.parametrize("is_quiet", [False, True])
def test_office_hours_are_learned_and_requests_age_only_while_open(is_quiet: bool) -> None:
    found = learn(simulated(14, open_hours=range(9, 17), delay_ticks=12.0, is_quiet=is_quiet))
    week = complaint_delays.list_week(found.hours)
    assert max(*week[:9], *week[17:24]) < 0.3
    assert min(week[9:17]) > 1.2
    assert (week[5 * 24 + 12] < 0.5) == is_quiet
    friday, begin = 4 * 288, int(MONDAY // TICK_SECONDS)
    closes, opens = begin + friday + 17 * 12, begin + friday + (24 + 9 if not is_quiet else 72 + 9) * 12
    assert complaint_delays.find_ages(found.hours, [closes - 6], opens)[0] <= 7
    assert complaint_delays.find_ages(found.hours, [begin + 9 * 12], begin + 17 * 12)[0] >= 8


def test_clusters_and_days_that_differ_are_learned_apart() -> None:
    alike, fives, ready = (
        learn(simulated(14, **other)) for other in ({}, {"size": 5}, {"days_differ": 0.3, "per_hour": 80})
    )
    assert (fives.dispersion > 3.5, ready.dispersion < 1.4, alike.dispersion < 1.2) == (True, True, True)
    assert ready.day_variance > 1.5 * alike.day_variance
    assert fives.day_shape > ready.day_shape


def test_unusual_day_teaches_that_days_differ_but_not_much() -> None:
    found = plain([400.0], day_variance=0.01, day_evidence=10.0)
    less, more, most = (complaint_delays.learn_day(found, seen, 100.0) for seen in (100.0, 130.0, 400.0))
    assert less.day_variance < 0.01 < more.day_variance < most.day_variance
    assert most.day_variance < 0.015
    assert less.day_evidence > 10.0


def test_what_is_watched_in_two_stretches_is_learned_as_of_one() -> None:
    """A pause of three days: nothing of it is learned, and no request from before is watched after it."""
    paused = simulated(4, per_hour=20, rate=0.3)
    later = complaint_delays.resume(paused, MONDAY + 7 * DAY_SECONDS)
    assert later.ended - later.began == 4 * DAY_SECONDS
    later = simulated(4, per_hour=20, rate=0.3, begins=later.ended, reference=later, seed=2)
    found = learn(later)
    assert complaint_delays.get_complaint_rate(found) == pytest.approx(0.3, abs=0.03)
    assert found.ended - found.began == pytest.approx(8 * DAY_SECONDS)


def test_of_many_complaints_all_are_counted_and_some_kept_by_age() -> None:
    reference = simulated(7, per_hour=60, rate=0.5)
    assert reference.complaints > 4_000
    assert len(reference.pairs) <= complaint_delays.PAIRS_MAX
    assert complaint_delays.get_complaint_rate(learn(reference)) == pytest.approx(0.5, abs=0.03)


def test_of_a_long_reference_the_latest_hours_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = simulated(6, per_hour=20, rate=0.5)
    monkeypatch.setattr(complaint_delays, "HOURS_MAX", 72)
    found = simulated(6, per_hour=20, rate=0.5)
    assert [len(stretch.requests) for stretch in found.stretches] == [72]
    assert found.stretches[0].complaints == whole.stretches[0].complaints[-72:]
    assert found.ended - found.began == 3 * DAY_SECONDS
    assert complaint_delays.get_complaint_rate(learn(found)) == pytest.approx(0.5, abs=0.05)
    resumed = complaint_delays.resume(found, found.ended + DAY_SECONDS)
    later = complaint_delays.add_requests(resumed, int((resumed.ended + 2 * DAY_SECONDS) // TICK_SECONDS), 1)
    assert [len(stretch.requests) for stretch in later.stretches] == [23, 49]


def test_delays_of_an_earlier_release_keep_their_rhythm_and_plain_ages() -> None:
    raw = msgspec.to_builtins(plain([400.0, 50.0], hours=(0.1, 0.1, 1.0, 2.0, 2.0, 1.5, 1.0, 0.3)))
    for name in ("dispersion", "day_variance", "day_evidence"):
        del raw[name]
    found = msgspec.convert(raw, Delays)
    noon = int((MONDAY + 12 * HOUR_SECONDS) // TICK_SECONDS)
    assert [complaint_delays.get_hour_factor(found, noon + hour * 12) for hour in (-1, 0, 3, 13)] == [
        2.0,
        2.0,
        1.5,
        0.1,
    ]
    assert complaint_delays.find_ages(found.hours, [noon - 20, noon - 200], noon) == (5, 8)
    assert found.day_variance == complaint_delays.DAY_VARIANCE


@given(st.floats(20, 5_000))
def test_the_bound_is_that_of_a_poisson_rate(count: float) -> None:
    """At the bound so few complaints come in 2.5% of all cases (checked on whole counts)."""
    count = round(count)
    mean = count * complaint_delays.find_widening(count)
    logs = [n * math.log(mean) - mean - math.lgamma(n + 1) for n in range(int(count) + 1)]
    assert math.fsum(math.exp(one) for one in logs) == pytest.approx(0.025, rel=0.03)


def test_the_bound_is_wider_where_most_are_of_an_age_of_which_little_is_known() -> None:
    found = plain([400.0, 5.0])
    young, old = (
        complaint_delays.find_expected(found, [age], [100.0], 0)[0][0] / found.hazards[age] / 100 for age in (0, 1)
    )
    assert young == pytest.approx(complaint_delays.find_widening(400), rel=1e-4)
    assert old == pytest.approx(complaint_delays.find_widening(5), rel=1e-4)
    assert complaint_delays.find_expected(found, [3], [100.0], 0) == ([0.0], [0.0])
    (both, youngest), (mean, _) = complaint_delays.find_expected(found, [1, 0], [100.0, 1.0], 0)
    assert youngest == pytest.approx(found.hazards[0] * young)
    assert mean == pytest.approx(found.hazards[1] * 100 + found.hazards[0])
    assert mean < both < mean * old


def test_the_bound_is_wider_where_complaints_come_in_clusters_or_days_differ() -> None:
    found = plain([400.0])
    usual, *wider = (
        complaint_delays.find_expected(one, [0], [100.0], 0)[0][0]
        for one in (found, plain([400.0], dispersion=5.0), plain([400.0], day_variance=0.04))
    )
    assert min(wider) > 1.05 * usual


def test_quantiles_and_rate_are_those_of_the_hazards() -> None:
    found = msgspec.structs.replace(plain([0.5, 0.5, 0.5, 500.0]), hazards=(0.0, 0.0, 0.0, 0.005, *[0.0] * (AGES - 4)))
    assert complaint_delays.get_complaint_rate(found) == pytest.approx(1 - math.exp(-4 * 0.005))
    median = complaint_delays.find_delay_quantile(found, 0.5)
    assert median is not None
    assert 5.5 * 300 < median < 6.5 * 300
    assert complaint_delays.find_delay_quantile(plain([]), 0.5) is None


def test_json_gives_back_the_same() -> None:
    reference = simulated(3)
    assert msgspec.json.decode(msgspec.json.encode(reference), type=Reference) == reference
    found = learn(reference)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Delays) == found
    assert isinstance(reference.stretches[0], Stretch)
