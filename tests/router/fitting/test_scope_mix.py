"""Choosing the mix of a scope score: which rows are held out, and when another mix than the usual one is taken."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from router.fitting.scope_mix import (
    FOLDS,
    Groups,
    choose_mix,
    compute_loss,
    compute_usual,
    draw_folds,
    hold_out,
    list_mixes,
    number_groups,
)
from router.scope import Mix, ScoreParts


def parts(count: int, first: float, background: float, nearest: float, echo: float, seed: int) -> Sequence[ScoreParts]:
    """Parts around a middle."""
    noise = np.random.default_rng(seed).normal(0.0, 0.3, (count, 4))
    return [ScoreParts(first + a, -1.0, background + b, nearest + c, echo + d) for a, b, c, d in noise]


def test_whole_classes_and_other_traffic_are_held_out_and_no_row_is_in_two_groups() -> None:
    classes = np.array([n % 9 for n in range(900)] + [-1] * 90)
    groups = hold_out(classes, np.random.default_rng(1))
    fitted, inside, unseen, other = (set(classes[group].tolist()) for group in groups)
    assert inside == fitted - {-1}
    assert len(unseen) == 3
    assert not unseen & fitted
    assert other == {-1}
    everything = np.concatenate(groups)
    assert len(np.unique(everything)) == len(everything)


def test_of_one_class_nothing_is_held_out_but_prompts() -> None:
    _, inside, unseen, _ = hold_out(np.zeros(40, np.intp), np.random.default_rng(1))
    assert (len(inside), len(unseen)) == (10, 0)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("has_deep", [True, False])
def test_the_usual_mix_is_taken_where_no_other_is_clearly_better(is_known: bool, has_deep: bool) -> None:
    groups = Groups(parts(200, 1, -1, 1, 1, 1), parts(200, -20, -1, 1, 1, 2), parts(200, -20, -1, 1, 1, 3))
    found = choose_mix([groups], is_known, has_deep)
    bar = compute_usual(groups.inside)
    first, near, echo = (np.std([getattr(one, part) for one in groups.inside]) for part in ("first", "nearest", "echo"))
    assert found == list_mixes(float(first / near), float(first / echo), bar, is_known, has_deep)[0]


def test_a_part_that_misleads_is_left_out() -> None:
    groups = Groups(parts(300, 1, -1, 0, 0, 1), parts(300, 0, -1, 1, 3, 2), ())
    assert choose_mix([groups], False, False).echo == 0.0


def test_the_loss_is_lower_where_more_pairs_are_in_order() -> None:
    apart = Groups(parts(100, 2, 0, 0, 0, 1), parts(100, 0, 0, 0, 0, 2), ())
    mixed = Groups(parts(100, 0.2, 0, 0, 0, 1), parts(100, 0, 0, 0, 0, 2), ())
    assert compute_loss(Mix(), apart) < compute_loss(Mix(), mixed)


def test_what_is_held_back_shares_no_group_with_what_is_fitted() -> None:
    draw = np.random.default_rng(1)
    groups = number_groups(["a", "b", "a", None, None, "c", "b", "d", "e", None] * 30)
    own = np.arange(300)
    parts = draw_folds(own, groups, draw)
    assert len(parts) == FOLDS
    assert sorted(np.concatenate(parts)) == list(own)
    for part in parts:
        assert not np.intersect1d(groups[part], groups[np.setdiff1d(own, part)]).size


def test_whole_groups_of_prompts_are_held_back_once_and_at_most_half_of_them() -> None:
    groups = number_groups([str(at % 40) for at in range(4_000)])
    (part,) = draw_folds(np.arange(4_000), groups, np.random.default_rng(1))
    assert 1_000 <= len(part) <= 1_200
    assert not np.intersect1d(groups[part], groups[np.setdiff1d(np.arange(4_000), part)]).size
    (few,) = draw_folds(np.arange(4_000), number_groups(["a", "b"] * 2_000), np.random.default_rng(1))
    assert len(few) == 2_000


def test_one_group_alone_or_none_at_all_is_held_back_row_by_row() -> None:
    for names in (["a"] * 100, [None] * 100):
        parts = draw_folds(np.arange(100), number_groups(names), np.random.default_rng(1))
        assert [len(part) for part in parts] == [20] * FOLDS
