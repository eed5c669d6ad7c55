"""Overlap of answers: the same as the textbook's table, and bounded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from monitoring.evaluation.answer_metrics import measure_overlap, metric_of

WORDS = st.lists(st.sampled_from("abcdef"), max_size=80)


def by_table(first: list[str], second: list[str]) -> int:
    """The longest common subsequence by dynamic programming."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for at, other in enumerate(second, 1):
            before, lengths[at] = lengths[at], before + 1 if word == other else max(lengths[at], lengths[at - 1])
    return lengths[-1]


@given(WORDS, WORDS)
def test_overlap_equals_that_of_the_table_of_subsequences(first: list[str], second: list[str]) -> None:
    common = by_table(first, second)
    wanted = 2 * common / (len(first) + len(second)) if common else 0.0
    assert measure_overlap(" ".join(first), " ".join(second)) == wanted


def test_an_answer_is_right_from_the_wanted_overlap_on() -> None:
    expected = "The cat sat on the mat."
    assert measure_overlap(expected, "the CAT sat on the mat") == 1.0
    assert measure_overlap(expected, "The mat sat on the cat.") == 4 / 6
    assert metric_of("overlap").right(expected, "The mat sat on the cat.")
    assert not metric_of("overlap:0.7").right(expected, "The mat sat on the cat.")
    assert not metric_of("overlap").right(expected, "")
