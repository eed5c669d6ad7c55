from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.replica import Replica, ReplicaConfig


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


def test_rests_grow_with_each_fault_up_to_a_limit_and_start_anew_after_an_answer() -> None:
    there = replica()
    rests = []
    for _ in range(7):
        there.resting_until = 0.0
        there.rest(100.0, 1.0)
        rests.append(there.resting_until - 100.0)
    assert rests == [1, 2, 4, 8, 16, 30, 30]
    there.wake()
    assert there.resting_until == 0.0
    there.rest(100.0, 1.0)
    assert there.resting_until == 101.0


def test_a_later_fault_never_shortens_a_rest() -> None:
    there = replica()
    there.rest(100.0, 20.0)
    there.rest(100.0, 0.5)
    assert there.resting_until == 120.0


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
