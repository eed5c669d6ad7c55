"""Complaints against what was to be expected: the claim, its accounts, clumps and pauses; JSON changes nothing."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import complaint_delays, complaints, leave_one_out
from monitoring.quality.detectors.complaint_delays import AGES, CELLS, TICK_SECONDS, Delays
from monitoring.quality.detectors.complaints import RATIOS, Cohort, Complaints
from monitoring.quality.signals import complaint_signal
from monitoring.quality.signals.complaint_signal import ComplaintSignal
from monitoring.quality.signals.labelled import ReportTerms
from monitoring.time_units import DAY_SECONDS

NOON = 20_000 * DAY_SECONDS
HOUR = 3600.0


def known(rate: float = 0.05, hours: float = 2.0, weight: float = 4_000.0) -> Delays:
    """Delays of this mean, exponential, as a long reference would teach them."""
    hazard, left, found = TICK_SECONDS / (hours * HOUR), 1.0, []
    begin = 0.0
    for age in range(AGES):
        end = 1.0 if age == 0 else float(1 << age)
        gone = left * -math.expm1(-hazard * (end - begin))
        found.append(rate * gone / (end - begin))
        left, begin = left - gone, end
    tested = [one if one > 1e-9 else 0.0 for one in found]
    return Delays(
        hazards=tuple(tested),
        weights=tuple(weight if one else 0.0 for one in tested),
        hours=(1.0,) * CELLS,
        rhythm_variance=0.0,
        began=0.0,
        ended=NOON,
        day_variance=1e-4,
        day_evidence=40.0,
    )


def traffic(
    draw: random.Random, hours: float, per_hour: float, rate: float, delay_hours: float = 2.0, begins: float = NOON
) -> Iterator[tuple[float, float | None]]:
    """Requests (a time) and complaints (a time, with the time of the request) in order."""
    now, due = begins, list[tuple[float, float]]()
    while (now := now + draw.expovariate(per_hour / HOUR)) < begins + hours * HOUR:
        while due and due[0][0] <= now:
            yield heapq.heappop(due)
        yield now, None
        if draw.random() < rate:
            heapq.heappush(due, (now + draw.expovariate(1 / (delay_hours * HOUR)), now))


def after(state: Complaints, events: Iterator[tuple[float, float | None]]) -> Complaints:
    for now, about in events:
        state = complaints.take_requests(state, now) if about is None else complaints.take_complaint(state, about, now)
    return state


def tracked() -> ComplaintSignal:
    """A stream of one caller's, whose delays are known."""
    return complaint_signal.start("returns@v3", NOON, known())


def heard(track: ComplaintSignal, events: Iterator[tuple[float, float | None]]) -> ComplaintSignal:
    alone = leave_one_out.make_digest(track.complainers, "only")
    for now, about in events:
        track = track.take_request("only", now) if about is None else track.take_complaint("only", about, now, alone)
    return track


def test_nothing_alarms_before_anything_is_known() -> None:
    state = complaints.start(NOON)
    assert complaints.learns(state)
    for _ in range(30):
        state = complaints.take_complaint(complaints.take_requests(state, NOON), NOON, NOON)
    assert complaints.log_e(state) == -700.0
    assert state.learning is not None
    assert state.learning.complaints == 30


def test_json_gives_back_the_same_and_goes_on_the_same() -> None:
    state = after(complaints.start(NOON, known()), traffic(random.Random(1), 30, 200, 0.1))
    back = msgspec.json.decode(msgspec.json.encode(state), type=Complaints)
    assert back == state
    late = state.at + 10 * HOUR
    assert complaints.take_complaint(back, state.at, late) == complaints.take_complaint(state, state.at, late)


def test_its_size_does_not_grow_with_time() -> None:
    state = complaints.start(NOON, known())
    for day in range(40):
        state = complaints.take_requests(state, NOON + day * DAY_SECONDS, 1_200)
    assert len(state.cohorts) <= 60
    assert len(msgspec.json.encode(state)) < 8_000
    assert sum(cohort.requests for cohort in state.cohorts) >= 1_200 * 30


@given(st.integers(1, 2_000))
def test_cohorts_are_at_most_a_third_as_long_as_they_are_old(ticks: int) -> None:
    begins = [0]
    for tick in range(1, ticks + 1):
        begins.append(tick)
        for at in complaints.choose_joins(begins):
            del begins[at + 1]
    assert begins == sorted(set(begins))
    for begin, end in pairwise(begins):
        assert end - begin <= 1 + (ticks - end) / 3


def test_what_is_expected_of_a_request_over_its_life_is_the_complaint_rate() -> None:
    state = complaints.start(NOON, known(0.05, 2.0, 1e9))
    for tick in range(288):
        state = complaints.take_requests(state, NOON + tick * TICK_SECONDS, 100)
    state = complaints.advance(state, NOON + 5 * DAY_SECONDS)
    assert state.expected == pytest.approx(288 * 100 * 0.05, rel=0.05)
    assert complaint_delays.get_complaint_rate(known(0.05)) == pytest.approx(0.05, rel=0.03)


@given(st.lists(st.floats(1, 10_000), min_size=1, max_size=6))
def test_what_is_expected_does_not_depend_on_how_often_one_looks(steps: list[float]) -> None:
    often = once = complaints.take_requests(complaints.start(NOON, known()), NOON, 100)
    for step in steps:
        often = complaints.advance(often, often.at + step)
    once = complaints.take_complaint(complaints.advance(once, often.at), 0.0, often.at)
    often = complaints.take_complaint(often, 0.0, often.at)
    assert often.expected == pytest.approx(once.expected)
    assert [one.requests for one in often.cohorts] == [one.requests for one in once.cohorts]


@given(st.floats(0.0001, 3.0), st.floats(1e-4, 1.0), st.sampled_from(RATIOS))
def test_no_bet_makes_money_on_average_at_the_bound(mu: float, variance: float, ratio: float) -> None:
    """Where as many complain on a day as were expected, times a readiness of gamma distribution, it wins 1 at most.

    So it is for complaints in fives, which count as a fifth each.
    """
    for size in (1, 5):
        learned = msgspec.structs.replace(known(), day_variance=variance, dispersion=float(size))
        shape, at = learned.day_shape, RATIOS.index(ratio)
        mean = 0.0
        for n in range(400):
            log = math.lgamma(n + shape) - math.lgamma(n + 1) - math.lgamma(shape)
            log += shape * math.log(shape / (shape + mu)) + n * math.log(mu / (shape + mu))
            stands = complaints._stand(Cohort(0, 0.0, (0.0,) * 4, size * n, size * mu), learned)
            mean += math.exp(log + stands[at])
        assert 0.0 < mean < 1.001


def test_the_bets_stand_as_reckoned_by_hand() -> None:
    taught = msgspec.structs.replace(known(weight=1e12), day_variance=1e-9)
    state = complaints.take_requests(complaints.start(NOON, taught), NOON, 1_000)
    state = complaints.advance(state, NOON + TICK_SECONDS)
    first = state.expected
    state = complaints.take_requests(state, NOON + TICK_SECONDS, 500)
    state = complaints.take_complaint(state, NOON + TICK_SECONDS, NOON + 1.5 * TICK_SECONDS)
    state = complaints.take_complaint(state, NOON, NOON + 1.5 * TICK_SECONDS)
    mu = state.cohorts[0], state.cohorts[1]
    behind, whole = complaint_delays.find_expected(taught, [1, 0], [500.0, 250.0], int(NOON // TICK_SECONDS) + 1)
    young = taught.hazards[0] * 250
    assert behind == pytest.approx([taught.hazards[1] * 500 + young, young], rel=1e-4)
    assert whole == pytest.approx(behind, rel=1e-4)
    for ratio, log in zip(RATIOS, complaints._stand(mu[1], taught), strict=True):
        assert log == pytest.approx(math.log(first) + math.log(ratio) - (ratio - 1) * behind[1])
    assert max(complaints._stand(mu[0], taught)) < -690.0
    assert (mu[0].requests, mu[1].requests, state.seen) == (999, 499, 2)


def test_versions_that_do_not_change_alarm_as_rarely_as_stated() -> None:
    alarmed = sum(
        heard(tracked(), traffic(random.Random(seed), 72, 60, 0.05)).alarms(60 * 72 * 0.055, 0.05) for seed in range(30)
    )
    assert alarmed <= 4


def test_more_complaints_alarm_and_it_is_told_since_when() -> None:
    track = heard(tracked(), traffic(random.Random(2), 48, 100, 0.05))
    assert not track.alarms(3_600, 0.01)
    worse = heard(track, traffic(random.Random(3), 24, 100, 0.12, begins=track.last))
    assert worse.alarms(3_600, 0.01)
    begins = worse.evidence_since
    assert begins is not None
    assert abs(begins - track.last) < 6 * HOUR
    assert worse.detectors.whole.seen > worse.detectors.whole.expected


def test_its_evidence_stands_no_more_once_complaints_are_as_few_as_they_were() -> None:
    track = heard(tracked(), traffic(random.Random(2), 48, 100, 0.05))
    worse = heard(track, traffic(random.Random(3), 24, 100, 0.12, begins=track.last))
    assert (track.has_strong_evidence, worse.has_strong_evidence) == (False, True)
    silent = [(worse.last + number * 36.0, None) for number in range(1, 4_800)]
    later = heard(worse, iter(silent))
    assert later.alarms(3_600, 0.01)
    assert not later.has_strong_evidence


def test_what_an_outage_of_the_feedback_held_back_is_no_alarm() -> None:
    track = heard(tracked(), traffic(random.Random(5), 48, 100, 0.05))
    now = track.last
    events = list(traffic(random.Random(6), 24, 100, 0.05, begins=now))
    held = [(now + 24 * HOUR, about) for _, about in events if about is not None]
    assert len(held) > 80
    asked = [(at, about) for at, about in events if about is None]
    assert not heard(track, iter([*asked, *held])).alarms(3_600, 0.05)


def test_a_version_with_few_requests_does_not_alarm_by_a_few_complaints() -> None:
    few = [(NOON, None)] * 8 + [(NOON + 60.0 * minute, NOON) for minute in range(8)]
    track = heard(tracked(), iter(few))
    assert track.detectors.whole.expected < complaints.EXPECTED_MIN
    assert track.detectors.whole.seen >= complaints.SEEN_MIN
    assert not track.alarms(100, 0.05)


def test_complaints_about_what_is_not_waited_for_are_set_aside() -> None:
    state = complaints.take_requests(complaints.start(NOON, known()), NOON)
    state = complaints.take_complaint(state, NOON - DAY_SECONDS, NOON + 1)
    state = complaints.take_complaint(complaints.take_complaint(state, NOON, NOON + 2), NOON, NOON + 3)
    assert (state.set_aside, state.seen) == (2, 1)


def test_after_a_pause_nothing_is_expected_of_what_was_asked_before() -> None:
    state = complaints.take_requests(complaints.start(NOON, known()), NOON, 1_000)
    state = complaints.advance(state, NOON + 40 * DAY_SECONDS)
    seen = state.expected
    state = complaints.take_complaint(complaints.advance(state, state.at + DAY_SECONDS), NOON, state.at + DAY_SECONDS)
    assert state.expected == seen
    assert state.set_aside == 1


def test_times_that_go_back_count_as_the_last_one() -> None:
    state = complaints.take_requests(complaints.start(NOON, known()), NOON + HOUR)
    assert complaints.take_requests(state, NOON).at == NOON + HOUR
    with pytest.raises(ValueError, match="at least 1"):
        complaints.take_requests(state, NOON, 0)


def test_the_reference_teaches_rate_and_delay_although_many_are_still_to_complain() -> None:
    """Growth: half of all requests came in the last six hours, and a mean delay of six hours hides most of theirs."""
    state, draw = complaints.start(NOON), random.Random(8)
    now, due = NOON, list[tuple[float, float]]()
    while complaints.learns(state):
        now += draw.expovariate(20 * 2 ** ((now - NOON) / (6 * HOUR) % 6) / HOUR)
        while due and due[0][0] <= now:
            at, about = heapq.heappop(due)
            state = complaints.take_complaint(state, about, at)
        state = complaints.take_requests(state, now)
        if draw.random() < 0.05:
            heapq.heappush(due, (now + draw.expovariate(1 / (6 * HOUR)), now))
    assert state.learned is not None
    assert complaint_delays.get_complaint_rate(state.learned) == pytest.approx(0.05, rel=0.2)
    median = complaint_delays.find_delay_quantile(state.learned, 0.5)
    assert median is not None
    assert median == pytest.approx(6 * HOUR * math.log(2), rel=0.25)


def test_state_of_an_earlier_release_goes_on_and_learning_begins_again() -> None:
    state = complaints.begin_reverse_test(
        after(complaints.start(NOON, known()), traffic(random.Random(1), 30, 99, 0.1)), NOON
    )
    raw = msgspec.to_builtins(state)
    raw["cohorts"] = [cohort[:3] for cohort in raw["cohorts"]]
    raw["back"] = raw["back"][:2]
    for name in ("day_seen", "day_expected", "learning"):
        del raw[name]
    for name in ("dispersion", "day_variance", "day_evidence"):
        del raw["learned"][name]
    raw["learned"]["hours"] = raw["learned"]["hours"][:8]
    earlier = msgspec.convert(raw, Complaints)
    later = after(earlier, traffic(random.Random(2), 30, 99, 0.1, begins=state.at))
    assert later.learned is not None
    assert later.expected > state.expected + 120
    assert (later.learned.hazards, later.learned.day_variance) == (known().hazards, complaint_delays.DAY_VARIANCE)
    learning = msgspec.to_builtins(complaints.start(NOON))
    learning["reference"] = {"began": NOON, "ended": NOON, "watched": [0.0] * 120, "events": [0] * 15}
    del learning["learning"]
    again = after(msgspec.convert(learning, Complaints), traffic(random.Random(3), 30, 99, 0.1))
    assert again.learning is not None
    assert 0 < again.learning.ended - again.learning.began <= 30 * HOUR


def test_learning_takes_seven_days_and_says_how_many_are_over() -> None:
    track = heard(complaint_signal.start("returns@v3", NOON, None), traffic(random.Random(1), 80, 60, 0.2))
    terms = ReportTerms(at=track.last, labels_min=30, threshold=200.0, roll=track.complainers)
    told = track.report("complaints", None, terms)
    assert told.baseline["learning"]
    assert (int(told.baseline["days"]), told.baseline["days_wanted"]) == (3, 7.0)
    later = heard(track, traffic(random.Random(2), 96, 60, 0.2, begins=track.last))
    learned = later.report("complaints", None, terms._replace(at=later.last)).baseline
    assert not learned["learning"]
    assert learned["dispersion"] == pytest.approx(1.0, abs=0.2)
    assert 0.0 < learned["day_deviation"] < 0.2
