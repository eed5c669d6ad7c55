from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.breaker import UNASKED_SECONDS
from serving.fleet_view import CircuitView, FaultKind
from serving.replica import BACK_SECONDS_MAX, OUTAGE_SECONDS_UNKNOWN, Replica, ReplicaConfig


def replica() -> Replica:
    return Replica(ReplicaConfig("small-0", "http://127.0.0.1:8101", "small"))


def test_a_lease_is_counted_until_it_is_given_back() -> None:
    there = replica()
    one, other = there.lease(1.0, "base"), there.lease(1.0, "base")
    assert there.in_flight == 2
    one.give_back(2.0)
    assert there.in_flight == 1
    other.give_back(2.0)
    assert there.in_flight == 0


@pytest.mark.invariant("A lease is given back once.")
def test_a_lease_that_is_given_back_twice_is_a_fault_and_is_counted_once() -> None:
    there = replica()
    first, _ = there.lease(1.0, "base"), there.lease(1.0, "base")
    first.give_back(2.0)
    with pytest.raises(RuntimeError, match="given back twice"):
        first.give_back(3.0)
    assert there.in_flight == 1


def test_a_lease_that_was_never_taken_is_a_fault_and_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="never taken"):
        replica().give_back(1.0, "base")


def test_a_request_alone_pays_for_all_its_time() -> None:
    lease = replica().lease(10.0, "base")
    assert lease.share(12.5) == pytest.approx(2.5)


def test_requests_beside_one_another_share_the_time() -> None:
    there = replica()
    first = there.lease(0.0, "base")
    second = there.lease(4.0, "base")
    assert first.share(10.0) == pytest.approx(4 + 6 / 2)
    assert second.share(10.0) == pytest.approx(6 / 2)


@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 10)), min_size=1, max_size=20))
def test_the_shares_add_up_to_the_time_in_which_the_replica_was_busy(spans: list[tuple[float, float]]) -> None:
    there = replica()
    events = sorted(
        [(start, True, number) for number, (start, _) in enumerate(spans)]
        + [(start + length, False, number) for number, (start, length) in enumerate(spans)],
        key=lambda event: (event[0], not event[1]),
    )
    leases, shares, busy, since = {}, 0.0, 0.0, 0.0
    for at, begins, number in events:
        busy += at - since if there.in_flight else 0.0
        since = at
        if begins:
            leases[number] = there.lease(at, "base")
        else:
            shares += leases[number].share(at)
            leases[number].give_back(at)
    assert shares == pytest.approx(busy, abs=1e-6)
    assert there.in_flight == 0


def fail(there: Replica, at: float, kind: FaultKind = "unreachable", model: str = "base", **more: Any) -> None:
    there.failed(at, model, kind, 0.0, **more)


def test_one_fault_lets_it_rest_and_three_in_a_row_open_it() -> None:
    there = replica()
    fail(there, 100.0)
    assert (there.resting_until, there.breaker_state(100.0)) == (101.0, "closed")
    fail(there, 101.0)
    fail(there, 102.0)
    assert (there.resting_until, there.breaker_state(102.5)) == (103.0, "open")
    assert there.breaker_state(103.0) == "half_open"


def test_doubtful_faults_let_a_model_rest_and_never_open_it() -> None:
    there = replica()
    for number in range(9):
        fail(there, 100.0 + number, "failed", is_doubtful=True)
    assert there.view().circuits["base"] == CircuitView(109.0)
    for _ in range(3):
        fail(there, 110.0, "failed")
    fail(there, 110.5, "failed", is_doubtful=True)
    assert there.view().circuits["base"] == CircuitView(111.0, open=True)


def test_open_rests_grow_to_fifteen_seconds_and_an_answer_starts_anew() -> None:
    there = replica()
    now, rests = 100.0, []
    for _ in range(3):
        fail(there, now)
    for _ in range(6):
        rests.append(there.resting_until - now)
        now = there.resting_until
        fail(there, now)
    assert rests == [1, 2, 4, 8, 15, 15]
    there.answered(now, "base")
    assert (there.resting_until, there.breaker_state(now)) == (0.0, "closed")


def test_faults_of_requests_that_were_sent_before_it_opened_do_not_lengthen_its_rest() -> None:
    there = replica()
    for _ in range(50):
        fail(there, 100.0)
    assert there.resting_until == 101.0


def test_chance_shortens_an_open_rest_by_at_most_a_quarter() -> None:
    there = replica()
    for _ in range(3):
        there.failed(100.0, "base", "silent", 0.999)
    assert 100.75 <= there.resting_until < 100.76


def test_half_of_what_a_short_window_saw_opens_it_too() -> None:
    there = replica()
    for number in range(5):
        assert there.breaker_state(100.0 + number) == "closed"
        fail(there, 100.0 + number)
        if number < 4:
            there.answered(100.5 + number, "base")
    assert there.breaker_state(104.0) == "open"


def test_answers_that_begin_well_and_all_break_open_it() -> None:
    there = replica()
    for number in range(5):
        there.answered(100.0 + number, "returns@v1")
        fail(there, 100.5 + number, "truncated", "returns@v1", had_answered=True)
    assert there.breaker_state(104.5) == "open"


def test_a_fault_now_and_then_among_many_answers_opens_nothing() -> None:
    there = replica()
    for number in range(200):
        now = 100.0 + number / 10
        if number % 10:
            there.answered(now, "base")
        else:
            fail(there, now)
        assert there.breaker_state(now) == "closed"


def test_half_open_lets_exactly_one_request_through_and_frees_it_if_cancelled() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0)
    probe = there.lease(101.0, "base")
    other = there.lease(101.0, "base")
    assert there.view().circuits[""].probing
    other.give_back(101.1)
    assert there.view().circuits[""].probing
    probe.give_back(102.0)
    assert not there.view().circuits[""].probing
    assert there.breaker_state(102.0) == "half_open"


def test_a_probe_that_ends_takes_no_later_one_with_it() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0)
    first = there.lease(101.0, "base")
    there.answered(101.1, "base")
    for _ in range(3):
        fail(there, 102.0)
    second = there.lease(110.0, "base")
    first.give_back(110.1)
    assert there.view().circuits[""].probing
    second.give_back(110.2)
    assert not there.view().circuits[""].probing


def test_a_lease_that_tells_nothing_of_what_came_of_it_is_no_probe() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0)
    silent = there.lease(101.0, "base", probes=False)
    assert not there.view().circuits[""].probing
    probe = there.lease(101.0, "base")
    silent.give_back(101.1)
    assert there.view().circuits[""].probing
    probe.give_back(101.2)


@pytest.mark.parametrize("kind", ["refused", "too_long", "late", "oversize"])
def test_what_a_caller_got_wrong_counts_against_nobody(kind: FaultKind) -> None:
    there = replica()
    for _ in range(10):
        fail(there, 100.0, kind)
    assert not there.view().circuits


def test_what_one_version_fails_at_is_its_own_and_a_silent_engine_is_all_of_theirs() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0, "failed", "returns@v2")
    assert there.resting_until == 0.0
    assert there.view().circuits["returns@v2"].open
    there.answered(100.1, "returns@v1")
    assert there.view().circuits["returns@v2"].open
    fail(there, 100.2, "silent", "returns@v2")
    assert there.resting_until == 101.2


def test_retry_after_of_the_engine_pauses_it_and_a_later_fault_never_shortens_it() -> None:
    there = replica()
    fail(there, 100.0, "overloaded", rest_seconds=20.0)
    fail(there, 100.0, "overloaded")
    assert there.resting_until == 120.0
    fail(there, 100.0, "overloaded", rest_seconds=3600.0)
    assert there.resting_until == 130.0


def test_a_breaker_of_what_nobody_asks_any_more_is_forgotten() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0, "failed", "returns@v1")
    fail(there, 100.0, "failed", "returns@v2")
    there.forget_faults(100.0 + UNASKED_SECONDS)
    assert there.breaker_state(100.0 + UNASKED_SECONDS) == "half_open"
    there.forget_faults(102.0 + UNASKED_SECONDS)
    assert (there.breaker_state(102.0 + UNASKED_SECONDS), there.view().circuits) == ("closed", {})


def test_a_breaker_outlasts_a_long_outage_and_a_probe_under_way() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0)
    there.came_up(5000.0)
    there.forget_faults(5000.0)
    probe = there.lease(5000.0, "base")
    there.forget_faults(9000.0)
    assert there.view().circuits[""].probing
    probe.give_back(9000.0)
    there.forget_faults(9000.0)
    assert not there.view().circuits


def test_an_engine_that_was_seen_to_come_up_is_tried_at_once() -> None:
    there = replica()
    for _ in range(3):
        fail(there, 100.0)
    there.came_up(100.2)
    assert there.breaker_state(100.2) == "half_open"


def test_time_until_it_is_back_is_what_its_last_outages_took_less_what_is_over() -> None:
    there = replica()
    there.went_down(100.0)
    assert there.back_in_seconds(110.0) == OUTAGE_SECONDS_UNKNOWN - 10
    there.came_up(180.0)
    for at, outage in ((200.0, 90.0), (400.0, 100.0)):
        there.went_down(at)
        there.went_down(at + 1)  # still down
        there.came_up(at + outage)
    there.went_down(600.0)
    assert there.back_in_seconds(610.0) == 80.0  # the median is 90 s
    assert there.back_in_seconds(690.0) == 45.0  # longer than ever: half as long again
    assert there.back_in_seconds(9999.0) == BACK_SECONDS_MAX


def test_replica_that_rests_is_back_when_its_rest_is_over() -> None:
    there = replica()
    there.up = True
    fail(there, 100.0, "overloaded", rest_seconds=20.0)
    assert [there.back_in_seconds(at) for at in (100.0, 119.5, 130.0)] == [20.0, 1.0, 1.0]


def test_a_fault_is_forgotten_after_answers_and_a_while() -> None:
    there = replica()
    fail(there, 100.0)
    there.answered(101.0, "base")
    assert there.view().circuits
    there.answered(111.5, "base")
    assert not there.view().circuits


def test_the_picture_is_frozen_and_does_not_follow_the_replica() -> None:
    there = replica()
    there.up = True
    there.loaded = frozenset({"returns@v1"})
    picture = there.view()
    there.up = False
    there.loaded |= {"returns@v2"}
    assert (picture.name, picture.pool, picture.up, picture.loaded) == ("small-0", "small", True, {"returns@v1"})
    with pytest.raises(AttributeError):
        picture.up = True  # type: ignore[misc]
