from __future__ import annotations

from typing import Any

import pytest

from monitoring.metric_values import Metric, is_bad, measure_badness

CORRECT = Metric(kind="boolean")
COMPLAINT = Metric(kind="boolean", better="lower")
STARS = Metric(kind="float", minimum=1, maximum=5)
MINUTES = Metric(kind="float", better="lower", minimum=0, maximum=60)


@pytest.mark.parametrize(
    ("metric", "value", "bad"),
    [
        (CORRECT, True, 0.0),
        (CORRECT, False, 1.0),
        (COMPLAINT, True, 1.0),
        (STARS, 5, 0.0),
        (STARS, 2.0, 0.75),
        (STARS, -3, 1.0),
        (STARS, 9, 0.0),
        (MINUTES, 15, 0.25),
    ],
)
def test_how_bad_a_value_is_follows_from_its_metric(metric: Metric, value: Any, bad: float) -> None:
    assert measure_badness(metric, value) == pytest.approx(bad)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        (CORRECT, 1),
        (CORRECT, "true"),
        (CORRECT, None),
        (STARS, "5"),
        (STARS, [5]),
        (Metric(kind="float"), 0.5),
        (Metric(kind="float", minimum=1, maximum=1), 1),
        (Metric(kind="category"), "good"),
    ],
)
def test_what_has_no_order_or_is_of_another_kind_says_nothing(metric: Metric, value: Any) -> None:
    assert measure_badness(metric, value) is None


@pytest.mark.parametrize(("found", "bad"), [(None, False), (0.0, False), (0.49, False), (0.5, True), (1.0, True)])
def test_from_half_of_it_on_an_answer_is_bad_and_where_nothing_is_said_it_is_not(
    found: float | None, bad: bool
) -> None:
    assert is_bad(found) is bad
