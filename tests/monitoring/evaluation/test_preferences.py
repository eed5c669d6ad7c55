"""Preferences of people, counted by rows."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from monitoring.evaluation.preferences import SKIPPED, Preference, count_preferences


def prefer(number: int, better: str, reviewer: str = "ann") -> Preference:
    return Preference(number, reviewer, "adapter", "general", better)


@pytest.mark.parametrize(("first", "second", "same"), [(9, 1, 2), (0, 5, 0), (3, 3, 4)])
def test_figures_are_those_of_scipy(first: int, second: int, same: int) -> None:
    words = ["adapter"] * first + ["general"] * second + [""] * same
    [found] = count_preferences(prefer(number, better) for number, better in enumerate(words))
    assert (found["rows"], found["first_better"], found["second_better"], found["same"]) == (
        len(words),
        first,
        second,
        same,
    )
    test = binomtest(first, first + second)
    interval = test.proportion_ci(method="wilson")
    assert found["p_value"] == pytest.approx(test.pvalue, abs=1e-4)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-4)


def test_several_reviewers_of_a_row_are_one_word_of_most_of_them() -> None:
    [found] = count_preferences(
        [prefer(0, "adapter"), prefer(0, "adapter", "bea"), prefer(0, "general", "cem"), prefer(1, "", "bea")]
    )
    assert (found["rows"], found["first_better"], found["same"], found["reviewers"]) == (2, 1, 1, 3)


def test_where_nothing_is_better_there_is_no_share() -> None:
    [found] = count_preferences([prefer(0, "")])
    assert (found["share"], found["low"], found["p_value"]) == (None, None, 1.0)


def test_what_a_person_skipped_is_no_judgement() -> None:
    one, both = count_preferences([prefer(0, SKIPPED), prefer(0, "general", "bea")]), [prefer(1, SKIPPED, "cem")]
    assert [(each["rows"], each["second_better"], each["reviewers"], each["skipped"]) for each in one] == [(1, 1, 1, 1)]
    assert [(each["rows"], each["share"], each["reviewers"]) for each in count_preferences(both)] == [(0, None, 0)]
