"""The best version that has led a task, by comparisons on the same rows alone. Pure.

Shares of right answers on different data say nothing of each other: a leader that no such comparison ranks is named.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.gate import NEWEST, WHOLE, Comparison


class DataAccuracy(NamedTuple):
    """The share of rows that a version got right in its last evaluation, and the digest of the data."""

    data_digest: str
    share: float


class Ranking(NamedTuple):
    """The best leader (None: there is none), and those of which it is not known whether they were better."""

    best: str | None
    unranked: list[str]


class LeaderEvidence(NamedTuple):
    """The comparisons of leaders with others, by their name, and their last accuracies."""

    comparisons: Mapping[str, Mapping[str, Comparison]]
    accuracies: Mapping[str, DataAccuracy]


def rank_leaders(leaders: Sequence[EvaluationArm], evidence: LeaderEvidence) -> Ranking:
    """The leader that none is shown to be better than; of several the one that leads, which stands first. The newer of
    two equal ones counts as better."""
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
    """The one that is the most above the leading one."""
    gaps = [_difference(leader, leading, evidence) for leader in unbeaten]
    ranked = [(gap if gap is not None else -1.0, -at) for at, gap in enumerate(gaps)]
    return unbeaten[-max(ranked)[1]] if ranked else leading


def _difference(first: EvaluationArm, second: EvaluationArm, evidence: LeaderEvidence) -> float | None:
    """The first one's share of right rows less the second one's, on the same rows; None where none has both."""
    paired: list[tuple[bool, float, float]] = []
    for arm, other, sign in ((first, second, 1), (second, first, -1)):
        for comparison in evidence.comparisons.get(str(arm.version), {}).values():
            difference, is_whole = comparison.pair["difference"], comparison.suite in WHOLE
            if is_whole and difference is not None and (comparison.version, comparison.reference) == (arm, other):
                paired.append((comparison.suite == NEWEST, comparison.ended_at, sign * difference))
    if paired:
        return max(paired)[2]
    own, others = (evidence.accuracies.get(str(arm.version)) for arm in (first, second))
    same_data = own is not None and others is not None and own.data_digest == others.data_digest
    return own.share - others.share if same_data and own is not None and others is not None else None
