"""Scaling the mix of a scope score, and which training prompts are held back for it."""

from __future__ import annotations

import numpy as np
import pytest

from router.fitting.scope_mix import FOLDS, MISSED_SHARE, SINGLE_LESS, choose_mix, draw_folds, find_bars, number_groups
from router.scope_model import Mix, ScoreParts


def parts(first: float = 0.0, frame: float = 0.0, echo: float = 0.0, sentence: float | None = None) -> ScoreParts:
    """The parts of a text, whose second window is a sentence that may be foreign where its echo is given."""
    rows = [(first, echo), *([(first, sentence)] if sentence is not None else [])]
    firsts, echoes = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    nothing = np.zeros(len(rows), np.float32)
    return ScoreParts(
        first=firsts,
        second=nothing,
        background=nothing,
        frame=nothing + frame,
        nearest=echoes,
        echo=echoes,
        sentences=np.arange(len(rows)) == 1,
        extracts=np.zeros(len(rows), np.bool_),
        singles=np.zeros(len(rows), np.bool_),
    )


def spread(count: int = 400, sentence: float | None = None) -> list[ScoreParts]:
    draw = np.random.default_rng(1)
    return [parts(first=float(draw.normal()), echo=float(draw.normal()), sentence=sentence) for _ in range(count)]


def test_zero_is_the_score_that_one_in_twenty_prompts_misses_and_one_the_middle() -> None:
    inside = spread()
    mix = choose_mix(inside, [], Mix())
    scores = [mix.of(one) for one in inside]
    assert np.quantile(scores, 0.05) == np.float32(0.0) or abs(np.quantile(scores, 0.05)) < 1e-3
    assert abs(np.quantile(scores, 0.5) - 1.0) < 1e-3


def test_sentences_that_prompts_usually_have_are_not_foreign_and_worse_ones_are() -> None:
    mix = choose_mix([*spread(), *spread(100, sentence=-4.0)], [], Mix())
    assert mix.slack > 0.0
    usual, worse = (mix.of(parts(first=1.0, echo=1.0, sentence=echo)) for echo in (-4.0, -20.0))
    assert worse < 0.0 < mix.of(parts(first=1.0, echo=1.0))
    assert worse < usual


def test_a_request_within_a_sentence_counts_half_a_unit_less() -> None:
    mix = choose_mix(spread(), [], Mix())
    poor, good = parts(first=-2.0, echo=-2.0), parts(first=2.0, echo=2.0)
    both = ScoreParts(*(np.concatenate(pair) for pair in zip(poor, good, strict=True)))
    within = both._replace(singles=np.array([False, True]))
    assert mix.of(both) == mix.of(good)
    assert mix.of(poor) < mix.of(within)
    assert abs(mix.of(good) - mix.of(within) - SINGLE_LESS) < 0.05


def test_bars_are_those_that_most_prompts_and_most_frames_reach() -> None:
    steps = np.linspace(0.0, 1.0, 101)
    found = find_bars([parts(first=one) for one in steps], [parts(frame=one - 5.0) for one in steps])
    assert abs(found.lead_usual - MISSED_SHARE) < 1e-6
    assert abs(found.frame_usual - (MISSED_SHARE - 5.0)) < 1e-6


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


@pytest.mark.parametrize("seed", range(8))
def test_no_group_of_most_prompts_is_held_back_where_others_are(seed: int) -> None:
    """A model that was fitted without most of what it is to know says nothing of the threshold of the whole."""
    groups = number_groups(["most"] * 2_000 + [str(at) for at in range(500)])
    (part,) = draw_folds(np.arange(2_500), groups, np.random.default_rng(seed))
    assert len(part) == 250
    assert part.min() >= 2_000
    (mixed,) = draw_folds(np.arange(2_005), groups[:2_005], np.random.default_rng(seed))
    assert len(mixed) == 1_000, "five others are too few to tell anything"


def test_one_group_alone_or_none_at_all_is_held_back_row_by_row() -> None:
    for names in (["a"] * 100, [None] * 100):
        parts = draw_folds(np.arange(100), number_groups(names), np.random.default_rng(1))
        assert [len(part) for part in parts] == [20] * FOLDS
