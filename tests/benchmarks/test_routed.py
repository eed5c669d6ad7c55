"""Counts of the routed benchmark, on answers made up here; its run takes real engines and many minutes."""

from __future__ import annotations

import random

import pytest

from benchmarks.routed import Case, Seen, figures_of, held_out, lower_bound, others, split
from benchmarks.scores import DATA

RIGHT = '{"decision":"deny","rule":"used"}'
INSIDE = Case("A used lamp.", {"decision": "deny", "rule": "used"}, "hand")
OUTSIDE = Case("Tell me a joke.", None, "clinc150")


def seen(case: Case, text: str, version: str = "", reason: str = "out_of_scope") -> Seen:
    return Seen(case, 200, text, version, reason, 0.001)


def test_a_decision_on_what_is_out_of_scope_is_wrong_and_words_are_not() -> None:
    assert seen(OUTSIDE, RIGHT, "returns@v1").wrong
    assert not seen(OUTSIDE, "Why did the cat …").wrong
    assert not seen(INSIDE, RIGHT, "returns@v1").wrong
    assert not seen(INSIDE, '{"facts":"used","rule":"used","decision":"deny"}', "returns@v1").wrong
    assert seen(INSIDE, '{"decision":"deny","rule":"defect"}').wrong
    assert seen(INSIDE, "no JSON").wrong


def test_an_arms_figures_are_shares_of_what_is_in_scope_and_of_what_is_not() -> None:
    found = figures_of(
        [
            seen(INSIDE, RIGHT, "returns@v1", "adapter"),
            seen(INSIDE, '{"decision":"approve","rule":"defect"}', "returns@v1", "adapter"),
            seen(INSIDE, "words", reason="low_confidence"),
            seen(INSIDE, "words"),
            seen(OUTSIDE, "words"),
            seen(OUTSIDE, RIGHT, "returns@v1", "adapter"),
        ]
    )
    assert (found["in_scope_right"], found["in_scope_by_adapter"], found["in_scope_kept_and_wrong"]) == (
        0.25,
        0.5,
        0.25,
    )
    assert (found["out_of_scope_by_adapter"], found["out_of_scope_decided"]) == (0.5, 0.5)
    assert found["wrong"] == pytest.approx(4 / 6)
    assert found["usd_per_1000"] == pytest.approx(1.0)
    assert found["reasons"]["in scope: low_confidence"] == 1


def test_rows_of_one_parent_are_asked_or_calibrated_on_and_never_both() -> None:
    rows = held_out()
    for seed in (1, 2, 3):
        test, calibration = split(rows, 200, random.Random(seed))
        assert len(test) == 200
        assert len(calibration) > 250
        assert not {row.parent for row in test} & {row.parent for row in calibration}


def test_what_is_out_of_scope_comes_from_both_sources_and_follows_the_seed() -> None:
    one, same, other = (others(DATA, 40, random.Random(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert {case.source for case in one} == {"clinc150", "bitext"}
    assert all(case.expected is None for case in one)


def test_a_lower_bound_lies_under_its_share_and_not_under_nothing() -> None:
    assert lower_bound(0.0, 200) == 0.0
    assert 0.02 < lower_bound(0.06, 200) < 0.06
