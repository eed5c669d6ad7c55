"""The monitor and requests of several reviewers: a label counts once, when all answers have decided it."""

from __future__ import annotations

from typing import Any

import msgspec

from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.entries import FeedbackEntry
from tests.monitoring.quality.traffic import MORNING, PLAN, V3, served, step


def said(request: str, rater: str, value: bool, **more: Any) -> FeedbackEntry:
    return FeedbackEntry(metric="correct", value=value, caller=rater, reviewed=True, request=request, **more)


def judge(*given: FeedbackEntry, agreed_only: bool = False) -> tuple[int, float]:
    """Reviewed labels that counted, and how many of them were wrong."""
    plan = msgspec.structs.replace(PLAN, reviews_per_week=10, agreed_only=agreed_only)
    watches = Watches("test")
    watches.begin(step(plan), {})
    for one in given:
        watches.take_feedback(one, served(one.request), MORNING)
    signal = watches.by_version[V3].reviewed if V3 in watches.by_version else None
    return (signal.labels, signal.first_wrong) if signal is not None else (0, 0.0)


def test_a_label_of_several_reviewers_counts_once_when_most_have_decided_it() -> None:
    three = [said("a", "x", False, reviewers=3), said("a", "y", True, reviewers=3), said("a", "z", False, reviewers=3)]
    assert judge(*three[:2]) == (0, 0)
    assert judge(*three) == (1, 1)
    assert judge(*three, said("a", "w", True, reviewers=3)) == (1, 1)


def test_a_tie_counts_when_it_is_resolved() -> None:
    tie = [said("a", "x", False, reviewers=2), said("a", "y", True, reviewers=2)]
    assert judge(*tie) == (0, 0)
    assert judge(*tie, said("a", "admin", True, reviewers=2, resolves=True)) == (1, 0)


def test_where_only_agreed_labels_count_a_single_reviewer_moves_nothing() -> None:
    both = [said("a", "x", False, reviewers=2), said("a", "y", False, reviewers=2)]
    assert judge(said("b", "x", False)) == (1, 1)
    assert judge(said("b", "x", False), *both, agreed_only=True) == (1, 1)
