"""The order in which rows are given to who compares answers."""

from __future__ import annotations

import itertools
import time

from gateway.features.evaluations.preference_endpoints import draw_numbers


def test_each_row_is_drawn_once_in_an_order_of_the_seed() -> None:
    for count in (0, 1, 2, 7, 500):
        drawn = list(draw_numbers(count, "a"))
        assert sorted(drawn) == list(range(count))
        assert drawn == list(draw_numbers(count, "a"))
    assert drawn != list(draw_numbers(500, "b"))
    firsts = [next(draw_numbers(10, str(seed))) for seed in range(2000)]
    assert all(140 < firsts.count(number) < 260 for number in range(10))


def test_first_rows_of_many_take_no_longer_than_those_of_few() -> None:
    since = time.perf_counter()
    assert len(set(itertools.islice(draw_numbers(1_000_000_000, "a"), 100))) == 100
    assert time.perf_counter() - since < 0.5
