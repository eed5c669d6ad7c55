"""Caps on what a task sends to its exit: the share that is counted, and the fact that the router decides by."""

from __future__ import annotations

import pytest

from gateway.limits.exits import REQUESTS_MIN, Tally


def test_the_share_of_all_requests_in_the_window_opens_and_closes_the_exit() -> None:
    tally = Tally(0.25, 100.0)
    for _ in range(100):
        tally.count(10.0, 1, 0)
    for _ in range(25):
        assert tally.has_room(10.0)
        tally.count(10.0, 0, 1)
    assert not tally.has_room(10.0)
    tally.count(20.0, 4, 0)
    assert tally.has_room(20.0)


def test_what_is_older_than_the_window_counts_no_more() -> None:
    tally = Tally(0.5, 100.0)
    for _ in range(10):
        tally.count(0.0, 1, 1)
    assert not tally.has_room(90.0)
    assert tally.has_room(101.0)


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.2, 4), (1.0, 20)])
def test_few_requests_count_as_if_they_were_more(share: float, first: int) -> None:
    tally = Tally(share, 100.0)
    sent = 0
    while tally.has_room(1.0) and sent < REQUESTS_MIN:
        tally.count(1.0, 0, 1)
        sent += 1
    assert sent == first
