"""Complaints that come down again: the claim, how long it takes, and that old requests show no recovery."""

from __future__ import annotations

import copy
import heapq
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import complaint_recovery as fewer
from monitoring.quality.detectors import complaints
from monitoring.quality.detectors.complaint_recovery import Fewer
from monitoring.quality.signals import complaint_signal
from monitoring.quality.signals.complaint_signal import ComplaintSignal
from monitoring.time_units import DAY_SECONDS
from tests.monitoring.quality.reckoned import Told, complained
from tests.monitoring.quality.test_complaints import HOUR, NOON, known
from tests.monitoring.quality.traffic import V3, step

PER_HOUR, RATE, DELAY = 40, 0.03, 4.0


class World:
    """Requests and complaints of one version, an hour at a time: 1.2 complaints an hour while it is well."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.now = NOON
        self.track = complaint_signal.start("returns@v3", NOON, known(RATE, DELAY, 400.0))
        self._due: list[tuple[float, float]] = []

    def hours(self, count: int, ratio: float = 1.0) -> None:
        """Let time pass, with so many times the usual complaints about its requests."""
        for _ in range(count):
            self._hour(ratio)

    def until_recovered(self, ratio: float = 1.0, most: int = 24 * 30) -> int:
        """Hours until a recovery is found."""
        for hour in range(most):
            if self.track.has_recovered:
                return hour
            self._hour(ratio)
        return most

    def _hour(self, ratio: float) -> None:
        for number in range(PER_HOUR):
            at = self.now + (number + 0.5) * HOUR / PER_HOUR
            self._complain(at)
            self.track = self.track.take_request(f"shop{number % 5}", at)
            if self.draw.random() < ratio * RATE:
                heapq.heappush(self._due, (at + self.draw.expovariate(1 / (DELAY * HOUR)), at))
        self.now += HOUR
        self._complain(self.now)
        self.track = self.track.tick(self.now)

    def _complain(self, until: float) -> None:
        while self._due and self._due[0][0] <= until:
            at, about = heapq.heappop(self._due)
            caller = f"shop{self.draw.randrange(5)}"
            self.track = self.track.take_complaint(caller, about, at, None)


def degraded(ratio: float, bad_hours: int, seed: int) -> World:
    """A version that was well for two days, bad for one, found to be so, and bad for so many hours more."""
    world = World(seed)
    world.hours(48)
    world.hours(24, ratio)
    world.track = world.track.begin_reverse_test(world.now)
    world.hours(bad_hours, ratio)
    return world


@pytest.mark.parametrize("ratio", [2.0, 4.0])
def test_a_recovery_takes_as_long_after_a_long_slip_as_after_a_short_one(ratio: float) -> None:
    after_short, after_long = [], []
    for seed in range(3):
        world = degraded(ratio, 24, seed)
        after_short.append(copy.deepcopy(world).until_recovered())
        world.hours(24 * 5, ratio)
        after_long.append(world.until_recovered())
    assert sorted(after_long)[1] <= sorted(after_short)[1] + 12
    assert max(after_long) <= 72


def test_while_there_are_twice_as_many_complaints_no_recovery_is_found() -> None:
    found = [degraded(2.0, 0, seed).until_recovered(2.0, 24 * 14) for seed in range(2)]
    assert found == [24 * 14] * 2


def test_a_recovery_that_is_none_is_found_as_rarely_as_stated() -> None:
    """With 1.5 times as many as expected at most, 200 are reached within 40 expected with probability 0.2 at most."""
    found, learned = 0, known()
    for seed in range(300):
        draw, test, reached = random.Random(seed), Fewer(0), False
        for _ in range(400):
            test = fewer.take_expected(test, 0.1, learned)
            for _ in range(_poisson(draw, 0.15)):
                test = fewer.take_complaint(test, learned)
            reached = reached or fewer.log_e(test) >= math.log(200.0)
        found += reached
    assert found <= 300 * 0.2 + 3.1 * math.sqrt(300 * 0.2 * 0.8)


def test_recovery_is_as_rare_where_days_differ_and_complaints_cluster() -> None:
    """Ten days of 30 expected at most: 1,500 are reached with probability 0.2 at most."""
    learned = msgspec.structs.replace(known(), dispersion=5.0, day_variance=0.04)
    found = 0
    for seed in range(300):
        draw, test, reached = random.Random(seed), Fewer(0), False
        for tick in range(600):
            if tick % 60 == 0:
                test, readiness = fewer.end_day(test), draw.gammavariate(25.0, 1 / 25.0)
            test = fewer.take_expected(test, 0.5, learned)
            for _ in range(5 * _poisson(draw, 1.5 * 0.1 * readiness)):
                test = fewer.take_complaint(test, learned)
            reached = reached or fewer.log_e(test) >= math.log(1500.0)
        found += reached
    assert found <= 300 * 0.2 + 3.1 * math.sqrt(300 * 0.2 * 0.8)


def _poisson(draw: random.Random, mean: float) -> int:
    left, count = draw.random() - math.exp(-mean), 0
    term = math.exp(-mean)
    while left > 0.0:
        count += 1
        term *= mean / count
        left -= term
    return count


@given(st.lists(st.floats(0.01, 0.5), max_size=12), st.integers(0, 3))
def test_it_hardly_matters_in_which_parts_complaints_are_expected(parts: list[float], seen: int) -> None:
    whole = fewer.take_expected(Fewer(0), 2.0, known())
    for _ in range(seen):
        whole = fewer.take_complaint(whole, known())
    cut = whole
    for part in parts:
        whole = fewer.take_expected(whole, part, known())
        for _ in range(8):
            cut = fewer.take_expected(cut, part / 8, known())
    assert cut.log == pytest.approx(whole.log, rel=0.01)


def test_its_sum_stands_as_reckoned_by_hand() -> None:
    alike = msgspec.structs.replace(known(), day_variance=1e-9)
    test = fewer.take_expected(Fewer(0), 2.0, alike)
    assert fewer.log_e(Fewer(0)) == -700.0
    assert math.exp(fewer.log_e(test)) == pytest.approx(1 * math.e + 1, rel=1e-6)
    assert math.exp(fewer.log_e(fewer.take_complaint(test, alike))) == pytest.approx((math.e + 1) / 1.5, rel=1e-6)
    assert math.isfinite(fewer.log_e(fewer.take_expected(test, 1e6, alike)))


def test_what_is_heard_of_requests_from_before_the_verdict_shows_nothing() -> None:
    """Neither that no complaint comes about them, nor those that come."""
    state = complaints.take_requests(complaints.start(NOON, known()), NOON, 5_000)
    state = complaints.begin_reverse_test(complaints.advance(state, NOON + HOUR), NOON + HOUR)
    late = complaints.advance(state, NOON + DAY_SECONDS)
    assert late.expected > state.expected + 50
    assert late.back == state.back
    state = complaints.take_complaint(late, NOON, late.at)
    assert state.seen == 1
    assert state.back == late.back
    young = complaints.take_requests(state, state.at, 100)
    later = complaints.advance(young, young.at + 2 * HOUR)
    assert later.back is not None
    assert later.back.log > 0.0
    assert complaints.take_complaint(later, young.at, later.at).back != later.back


def test_it_does_not_matter_how_often_time_is_told() -> None:
    one, other = (degraded(2.0, 0, 3) for _ in range(2))
    one.track = one.track.tick(one.now + 20 * HOUR)
    for tick in range(1, 20 * 12 + 1):
        other.track = other.track.tick(other.now + 300.0 * tick)
    assert one.track == other.track
    stored = msgspec.json.encode(one.track)
    assert msgspec.json.decode(stored, type=ComplaintSignal) == one.track


def test_a_state_of_before_gets_a_reverse_test_with_the_next_request() -> None:
    told = Told(step=step())
    told.take(complained(0.1))
    told.tell("degraded")
    watched = told.watches.by_version[V3]
    assert watched.complaints is not None
    detectors = watched.complaints.detectors
    bare = msgspec.structs.replace(detectors, whole=complaints.end_reverse_test(detectors.whole))
    known_before = msgspec.structs.replace(watched.complaints, detectors=bare)
    told.watches.by_version[V3] = msgspec.structs.replace(watched, complaints=known_before)
    told.take(complained(0.1))
    after = told.watches.by_version[V3].complaints
    assert after is not None
    assert after.is_tested
