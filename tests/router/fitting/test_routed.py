"""Routing by confidence, on rows whose truth is known."""

from __future__ import annotations

import random

import pytest

from router.fitting.confidence import CalibrationRow
from router.fitting.errors import FittingError
from router.fitting.routed import STEPS, route_rows


def rows(count: int, telling: bool, seed: int = 1) -> list[CalibrationRow]:
    """A fifth of them wrong; with `telling` the wrong ones are less sure."""
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        right = chance.random() > 0.2
        sure = chance.uniform(0.0, 0.2) if right or not telling else chance.uniform(0.3, 2.0)
        found.append(CalibrationRow([-sure, -sure / 2], None, None, right))
    return found


def test_where_confidence_tells_the_wrong_answers_go_first() -> None:
    points = route_rows(rows(500, telling=True), None, seed=0)
    assert len(points) == STEPS + 1
    assert points[0].general_share == 0.0
    assert points[0].adapter_wrong_share == pytest.approx(0.2, abs=0.04)
    fifth = points[STEPS // 4]
    assert (fifth.general_share, fifth.wrong_share) == (pytest.approx(0.25, abs=0.01), None)
    assert fifth.adapter_wrong_share < 0.01
    assert points[-1] == (1.0, 0.0, None)


def test_where_it_tells_nothing_no_share_of_general_is_a_better_one() -> None:
    for point in route_rows(rows(2000, telling=False), None, seed=0):
        assert point.adapter_wrong_share == pytest.approx(0.2 * (1 - point.general_share), abs=0.03)


def test_the_whole_is_wrong_where_the_adapter_is_kept_and_wrong_or_general_is() -> None:
    answers = rows(500, telling=True)
    points = route_rows(answers, [False] * 500, seed=0)
    assert points[0].wrong_share == points[0].adapter_wrong_share
    assert points[-1].wrong_share == 1.0
    best = route_rows(answers, [True] * 500, seed=0)
    assert all(point.wrong_share == point.adapter_wrong_share for point in best)
    assert route_rows(answers, [True] * 500, seed=0) == best


def test_answers_without_logprobs_go_before_all_others() -> None:
    silent = [CalibrationRow([], None, None, right=True)] * 50
    points = route_rows([*rows(450, telling=True), *silent], None, seed=0)
    assert points[2].general_share == pytest.approx(0.1, abs=0.01)
    assert points[2].adapter_wrong_share == pytest.approx(points[0].adapter_wrong_share, abs=0.01)


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(FittingError, match="calibration rows"):
        route_rows(rows(20, telling=True), None, seed=0)
