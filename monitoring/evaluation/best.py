"""The best version that has led a task, by comparisons on the same rows only. Pure.

Shares of right answers on different data can't be compared. A leader that no comparison ranks is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.gate import NEWEST, WHOLE, Comparison, is_judge_trusted


class DataAccuracy(NamedTuple):
    """The share of rows that a version got right in its last evaluation. Two shares are comparable if their
    `measured_on` (digest of the data, and metric) is the same."""

    measured_on: str
    share: float


class Ranking(NamedTuple):
    """The best leader (None: there is none), and the leaders that may have been better."""

    best: str | None
    unranked: list[str]


class LeaderEvidence(NamedTuple):
    """The comparisons of leaders with others by the leaders' names, and their last accuracies."""

    comparisons: Mapping[str, Mapping[str, Comparison]]
    accuracies: Mapping[str, DataAccuracy]


def rank_leaders(leaders: Sequence[EvaluationArm], evidence: LeaderEvidence) -> Ranking:
    """Find a leader that no other is shown to beat; among several, the present leader, which comes first. Of two equal
    leaders, the newer counts as better."""
    if not leaders:
        return Ranking(None, [])
    unbeaten = [
        leader
        for at, leader in enumerate(leaders)
        if not any(
            (gap := _difference(leader, other, evidence)) is not None and (gap < 0 or (gap == 0 and place < at))
            for place, other in enumerate(leaders)
            if other != leader
        )
    ]
    leading = leaders[0]
    best = leading if leading in unbeaten else _best_of(unbeaten, leading, evidence)
    return Ranking(best.version, [str(leader.version) for leader in unbeaten if leader != best])


def _best_of(unbeaten: Sequence[EvaluationArm], leading: EvaluationArm, evidence: LeaderEvidence) -> EvaluationArm:
    """The leader with the largest difference to the leading one."""
    gaps = [_difference(leader, leading, evidence) for leader in unbeaten]
    ranked = [(gap if gap is not None else -1.0, -at) for at, gap in enumerate(gaps)]
    return unbeaten[-max(ranked)[1]] if ranked else leading


def _difference(first: EvaluationArm, second: EvaluationArm, evidence: LeaderEvidence) -> float | None:
    """The first arm's share of right rows minus the second's, on the same rows; None if they share none."""
    paired: list[tuple[bool, float, float]] = []
    for arm, other, sign in ((first, second, 1), (second, first, -1)):
        paired += [
            (comparison.suite == NEWEST, comparison.ended_at, sign * comparison.pair["difference"])
            for comparison in evidence.comparisons.get(str(arm.version), {}).values()
            if (comparison.version, comparison.reference) == (arm, other) and _ranks(comparison)
        ]
    if paired:
        return max(paired)[2]
    own, others = (evidence.accuracies.get(str(arm.version)) for arm in (first, second))
    same = own is not None and others is not None and own.measured_on == others.measured_on
    return own.share - others.share if same and own is not None and others is not None else None


def _ranks(comparison: Comparison) -> bool:
    """Return whether a comparison decides which arm is better, whatever the missing answers would have been."""
    pair, rows = comparison.pair, comparison.pair["rows"]
    if comparison.suite not in WHOLE or not rows or not is_judge_trusted(comparison.judge):
        return False
    second_failed = pair["unanswered"]
    first_failed = comparison.figures["failed"] - comparison.reference_figures["failed"] + second_failed
    gap = round(rows * pair["difference"])
    return bool(first_failed == second_failed == 0 or gap > second_failed or -gap > first_failed)
