"""Whoever is left out: what each detector has seen, who may be left out, and that JSON gives back the same."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import leave_one_out
from monitoring.quality.detectors.leave_one_out import GiverRoll, LeaveOneOut

GROUPS = 4
names = st.sampled_from([f"caller-{n}" for n in range(9)])


class Counter(msgspec.Struct, frozen=True):
    """A detector whose evidence is what it has seen."""

    seen: float = 0.0


def with_more(counter: Counter, by: float) -> Counter:
    return Counter(counter.seen + by)


def evidence_of(counter: Counter) -> float:
    return counter.seen


def roll(*callers: str) -> GiverRoll:
    found = GiverRoll(salt="returns@v3", groups=GROUPS)
    for caller in callers:
        found = leave_one_out.add_request(found, caller)
    return found


@given(st.lists(st.tuples(st.sets(names, max_size=2), st.integers(0, 9)), max_size=40))
def test_each_detector_has_seen_what_all_but_its_group_gave(seen: list[tuple[set[str], int]]) -> None:
    found, who = leave_one_out.start(Counter(), GROUPS), roll()
    for givers, value in seen:
        for one in sorted(givers):
            who = leave_one_out.meet(who, one)
        own = {leave_one_out.get_group(who, one) for one in givers}
        found = leave_one_out.move(found, lambda counter, by=value: with_more(counter, by), own)  # type: ignore[misc]
    assert found.whole.seen == sum(value for _, value in seen)
    for place, left in enumerate(found.without):
        theirs = [value for givers, value in seen if place in {leave_one_out.get_group(who, one) for one in givers}]
        assert (left is None) == (not theirs)
        assert left is None or left.seen == found.whole.seen - sum(theirs)


@given(st.lists(st.tuples(names, st.floats(-9, 9)), max_size=30))
def test_the_evidence_is_the_least_and_the_largest_of_it_stays(seen: list[tuple[str, float]]) -> None:
    found, who, most = leave_one_out.start(Counter(), GROUPS), roll(), -700.0
    for name, value in seen:
        who = leave_one_out.meet(who, name)
        own = (leave_one_out.get_group(who, name),)
        moved = leave_one_out.move(found, lambda counter, by=value: with_more(counter, by), own)  # type: ignore[misc]
        found = leave_one_out.judge(moved, evidence_of, ())
        least = min(one.seen for one in (found.whole, *found.without) if one is not None)
        assert leave_one_out.find_least(found, evidence_of, ()) == least
        most = max(most, least)
        assert found.log_max == most
        assert found.log_now == least
        assert leave_one_out.reaches_now(found, 100) == (least >= math.log(100))


def _judged(
    found: LeaveOneOut[Counter], by: float, own: tuple[int, ...], believed: tuple[int, ...]
) -> LeaveOneOut[Counter]:
    moved = leave_one_out.move(found, lambda counter: with_more(counter, by), own)
    return leave_one_out.judge(moved, evidence_of, believed)


def test_what_rested_on_one_who_was_alone_is_void_once_that_one_may_be_left_out() -> None:
    alone = _judged(leave_one_out.start(Counter(), GROUPS), 9.0, (1,), (1,))
    assert alone.log_max == 9.0
    assert _judged(alone, -8.0, (1,), (1,)).log_max == 9.0, "while it is alone the largest stays"
    assert _judged(alone, 2.0, (2,), ()).log_max == 2.0
    assert msgspec.json.decode(msgspec.json.encode(alone), type=LeaveOneOut[Counter]) == alone


def test_of_one_who_has_given_nothing_nothing_was_believed() -> None:
    """As where reviewers give all labels, whoever uses the version."""
    found = _judged(_judged(leave_one_out.start(Counter(), GROUPS), 9.0, (), (1,)), -8.0, (), ())
    assert (found.log_max, found.log_now) == (9.0, 1.0)


def test_a_state_of_before_is_read_and_nothing_of_it_is_void() -> None:
    known = msgspec.to_builtins(_judged(leave_one_out.start(Counter(), GROUPS), 9.0, (1,), (1,)))
    del known["believed"]
    assert _judged(msgspec.convert(known, LeaveOneOut[Counter]), 2.0, (2,), ()).log_max == 9.0


def test_who_is_believed_is_left_out_by_nobody() -> None:
    found = leave_one_out.move(leave_one_out.start(Counter(), GROUPS), lambda counter: with_more(counter, 5.0), (1,))
    assert leave_one_out.find_least(found, evidence_of, ()) == 0.0
    assert leave_one_out.find_least(found, evidence_of, {1}) == 5.0


def test_one_beside_whom_others_have_less_than_a_twentieth_may_not_be_left_out() -> None:
    few = roll(*["only"] * 150, "another")
    assert leave_one_out.find_alone(few) == leave_one_out.make_digest(few, "only")
    assert leave_one_out.get_group(few, "only") in set(leave_one_out.find_believed(few))
    assert leave_one_out.get_group(few, "another") not in set(leave_one_out.find_believed(few))
    several = roll(*["only"] * 10, "another")
    assert leave_one_out.find_alone(several) is None
    assert leave_one_out.get_group(several, "only") not in set(leave_one_out.find_believed(several))
    assert leave_one_out.find_alone(roll()) is None


@pytest.mark.parametrize("count", [1, 60])
def test_nobody_is_alone_before_requests_or_labels_show_it(count: int) -> None:
    assert leave_one_out.find_alone(roll(*["only"] * count)) is None
    assert leave_one_out.find_alone(roll(*["only"] * 70)) is not None


def test_labels_of_others_ask_for_them_as_requests_do() -> None:
    found = roll(*["only"] * 100)
    for _ in range(2):
        found = leave_one_out.add_label(found, "another")
    for _ in range(20):
        found = leave_one_out.add_label(found, "only")
    assert leave_one_out.find_alone(found) is None


def test_no_flood_makes_its_sender_the_only_one() -> None:
    found = roll(*["shop-1", "shop-2"] * 40)
    for _ in range(30):
        found = leave_one_out.add_label(found, "shop-1")
    for _ in range(20_000):
        found = leave_one_out.add_label(leave_one_out.add_request(found, "flood"), "flood")
    assert leave_one_out.find_alone(found) is None
    assert not [*leave_one_out.find_believed(found)]


def test_who_is_left_by_all_others_is_believed_once_they_are_gone_for_weeks() -> None:
    day, found = 86_400.0, roll()
    for number in range(300):
        found = leave_one_out.add_request(found, "shop", 1000.0 + number)
    for number in range(3000):
        found = leave_one_out.add_request(found, "stays", 2000.0 + number)
    assert leave_one_out.find_alone(found) is None
    for days, alone in ((7, False), (21, True)):
        for number in range(1000):
            found = leave_one_out.add_request(found, "stays", 2000.0 + days * day + number)
        assert (leave_one_out.find_alone(found) is not None) == alone
    assert msgspec.json.decode(msgspec.json.encode(found), type=GiverRoll) == found


def test_counts_of_an_older_release_fade_from_now_on() -> None:
    known = msgspec.to_builtins(leave_one_out.add_request(roll("shop"), "stays", 5.0))
    del known["aged_at"]
    found = leave_one_out.add_request(msgspec.convert(known, GiverRoll), "stays", 1e9)
    assert (found.requests[:2], found.aged_at) == ((1.0, 1.999), 1e9)


@given(st.lists(names, max_size=40))
def test_the_first_have_a_group_each_and_its_size_is_bounded(callers: list[str]) -> None:
    found = roll(*callers)
    first = list(dict.fromkeys(callers))
    assert [leave_one_out.get_group(found, one) for one in first[:GROUPS]] == list(range(min(GROUPS, len(first))))
    assert all(0 <= leave_one_out.get_group(found, one) < GROUPS for one in callers)
    assert len(found.known) <= GROUPS
    detectors = leave_one_out.move(
        leave_one_out.start(Counter(), GROUPS), lambda counter: with_more(counter, 1.0), (2,)
    )
    for one, kind in ((found, GiverRoll), (detectors, LeaveOneOut[Counter])):
        assert msgspec.json.decode(msgspec.json.encode(one), type=kind) == one
