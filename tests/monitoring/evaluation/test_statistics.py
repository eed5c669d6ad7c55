"""The figures of an evaluation against values from tables, and against each other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.evaluation.statistics import (
    Paired,
    adjust_by_holm,
    bound_by_bootstrap,
    compute_class_figures,
    compute_macro_f1,
    compute_mcnemar,
    find_quantile,
    lower_bounds,
    pair_rows,
    score_bound,
    share_of,
)


def alone(rows: int, first_only: int, second_only: int) -> Paired:
    """Pairs of which each row is a group of its own."""
    ties = rows - first_only - second_only
    counts = {(1, 1): first_only, (1, -1): second_only, (1, 0): ties}
    return Paired(rows, ties, first_only, second_only, Counter({kind: n for kind, n in counts.items() if n}))


def test_a_share_has_wilsons_interval() -> None:
    found = share_of(81, 263)  # Newcombe 1998, table I
    assert (found.low, found.high) == (pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert share_of(0, 20).low == 0.0
    assert share_of(0, 20).high == pytest.approx(0.1611, abs=5e-5)
    assert share_of(1, 29).low == pytest.approx(0.0061, abs=5e-5)


def test_of_no_rows_no_share_is_known() -> None:
    assert share_of(0, 0).share is None
    assert find_quantile([], 0.5) is None
    assert lower_bounds(alone(0, 0, 0), 0).lower is None


def test_mcnemars_test_is_the_exact_binomial_one() -> None:
    def p_value(first_only: int, second_only: int) -> float:
        return compute_mcnemar(alone(300, first_only, second_only))

    assert p_value(0, 0) == 1.0
    assert p_value(5, 0) == pytest.approx(2 / 32)
    assert p_value(9, 1) == pytest.approx(2 * 11 / 1024)
    assert p_value(1, 9) == p_value(9, 1)
    assert p_value(10, 10) == 1.0
    assert p_value(86, 150) == pytest.approx(3.716e-05, rel=1e-3)  # Agresti: approval of a prime minister


def test_copies_of_rows_tell_no_more_than_the_rows() -> None:
    draw = np.random.default_rng(2)
    first, second = (draw.random(400) < 0.9).tolist(), (draw.random(400) < 0.93).tolist()
    once = pair_rows(first, second)
    copied = pair_rows(
        np.repeat(first, 5).tolist(), np.repeat(second, 5).tolist(), np.repeat(np.arange(400), 5).tolist()
    )
    assert (copied.difference, copied.spread) == (once.difference, pytest.approx(5.0 * 400 / 399 * 1.0046, rel=1e-4))
    assert compute_mcnemar(copied) == pytest.approx(compute_mcnemar(once))
    of_copies, of_rows = lower_bounds(copied, 0).lower or 0.0, lower_bounds(once, 0).lower or 0.0
    assert of_rows - 0.0002 < of_copies <= of_rows + 1e-9, "a variance that groups tell is itself not quite known"
    equal = pair_rows([True] * 400, [True] * 400, np.repeat(np.arange(80), 5).tolist())
    assert lower_bounds(equal, 0).lower == pytest.approx(lower_bounds(alone(80, 0, 0), 0).lower)


def test_rows_of_one_group_alone_show_nothing() -> None:
    draw = np.random.default_rng(2)
    first, second = (draw.random(1000) < 0.93).tolist(), (draw.random(1000) < 0.9).tolist()
    found = lower_bounds(pair_rows(first, second, [0] * 1000), 0).lower
    assert found is not None
    assert found < -0.5


@pytest.mark.parametrize(("groups", "unequal"), [(5, 0.0), (10, 0.0), (10, 1.0), (20, 1.0)])
def test_few_or_unequal_groups_pass_no_more_often_than_stated(groups: int, unequal: float) -> None:
    draw = np.random.default_rng(groups)
    passed = 0
    for _ in range(1000):
        sizes = np.exp(unequal * draw.standard_normal(groups))
        sizes = np.maximum(1, np.round(1000 * sizes / sizes.sum())).astype(int)
        better, worse = (draw.beta(9 * share, 9 * (1 - share), groups) for share in (0.03, 0.05))
        lost = draw.binomial(sizes, worse)
        won = draw.binomial(sizes - lost, np.minimum(1.0, better / (1 - worse)))
        counts = Counter(zip(sizes.tolist(), (won - lost).tolist(), strict=True))
        pairs = Paired(int(sizes.sum()), 0, int(won.sum()), int(lost.sum()), counts)
        passed += (score_bound(pairs) or 0.0) > -0.02
    assert passed < 75, "5%, and three and a half standard errors of 1,000 draws"


def test_holm_adjusts_in_order_and_never_below_the_one_before() -> None:
    assert adjust_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_by_holm([]) == []
    assert adjust_by_holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_lower_bound_is_near_the_normal_one_where_that_holds() -> None:
    found = alone(2000, 150, 100)
    difference, spread = 0.025, ((250 / 2000 - 0.025**2) / 2000) ** 0.5
    assert found.difference == pytest.approx(difference)
    assert lower_bounds(found, seed=1).lower == pytest.approx(difference - 1.6449 * spread, abs=0.001)
    assert lower_bounds(found, seed=1).lower == lower_bounds(found, seed=1).lower


def test_arms_that_never_differ_are_not_shown_to_be_equal() -> None:
    z = 1.6448536
    for rows in (5, 30, 1000):
        found = alone(rows, 0, 0)
        assert bound_by_bootstrap(found, 0) == 0.0
        assert lower_bounds(found, 0).lower == pytest.approx(-(z**2) / (rows + z**2))


@pytest.mark.parametrize(("rows", "better"), [(200, 0.0), (200, 0.005), (200, 0.02), (1000, 0.0), (1000, 0.02)])
def test_the_bound_lies_over_the_truth_no_more_often_than_stated(rows: int, better: float) -> None:
    shares = [better, better + 0.02, 0.98 - 2 * better]
    drawn, times = np.unique(
        np.random.default_rng(1).multinomial(rows, shares, size=1500)[:, :2], axis=0, return_counts=True
    )
    over = [(lower_bounds(alone(rows, int(a), int(b)), seed=0).lower or 0.0) > -0.02 + 1e-12 for a, b in drawn]
    assert np.average(over, weights=times) < 0.065, "5%, and two and a half standard errors of 1,500 draws"


def test_pairs_are_counted_by_who_was_right() -> None:
    assert pair_rows([True, True, False, False], [True, False, True, False]) == replace(alone(4, 1, 1), both=1)
    assert pair_rows([], []).difference is None


def test_f1_counts_what_was_told_of_a_class_that_has_no_rows() -> None:
    pairs: list[tuple[str, str | None]] = [("a", "a"), ("a", "b"), ("b", "b"), ("b", None), ("a", "a")]
    found = compute_class_figures(pairs, ["a", "b", "c"])
    assert (found["a"].precision, found["a"].recall) == (1.0, pytest.approx(2 / 3))
    assert found["a"].f1 == pytest.approx(0.8)
    assert found["b"].f1 == pytest.approx(0.5)
    assert found["c"].f1 is None
    assert compute_macro_f1(found) == pytest.approx(0.65)


def test_a_quantile_lies_between_its_neighbours() -> None:
    assert find_quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert find_quantile([1.0, 2.0], 0.95) == pytest.approx(1.95)
    assert find_quantile([7.0], 0.95) == 7.0


@given(st.lists(st.floats(0, 1), max_size=30))
def test_adjusted_p_values_keep_their_order_and_are_none_smaller(values: list[float]) -> None:
    adjusted = adjust_by_holm(values)
    assert all(after >= before for before, after in zip(values, adjusted, strict=True))
    assert sorted(range(len(values)), key=lambda at: (values[at], at)) == sorted(
        range(len(values)), key=lambda at: (adjusted[at], values[at], at)
    )
