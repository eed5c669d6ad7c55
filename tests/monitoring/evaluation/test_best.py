"""The best version that has led: ranked on the same rows alone."""

from __future__ import annotations

import pytest

from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.best import DataAccuracy, LeaderEvidence, Ranking, rank_leaders
from monitoring.evaluation.gate import Comparison

V1, V2, V3 = (EvaluationArm(f"returns@v{n}", f"sha256:{n}", f"manifest:{n}") for n in (1, 2, 3))
LEADERS = [V3, V2, V1]
"""The one that leads stands first."""


def pair(
    first: EvaluationArm,
    second: EvaluationArm,
    difference: float,
    at: float = 1.0,
    suite: str = "",
    rows: int = 100,
    failed: tuple[int, int] = (0, 0),
    agreement_low: float | None = None,
) -> Comparison:
    """One of 100 rows; each arm alone `failed` at so many, and a model judged if people agree with it in so many."""
    return Comparison(
        evaluation="e",
        ended_at=at,
        data_digest="d",
        suite=suite,
        version=first,
        reference=second,
        pair={"difference": difference, "rows": rows, "unanswered": failed[1]},
        figures={"failed": failed[0] + 3},
        reference_figures={"failed": failed[1] + 3},
        judge=None if agreement_low is None else {"agreement_low": agreement_low},
    )


def evidence(*pairs: Comparison, **accuracies: tuple[str, float]) -> LeaderEvidence:
    comparisons: dict[str, dict[str, Comparison]] = {}
    for at, one in enumerate(pairs):
        comparisons.setdefault(str(one.version.version), {})[str(at)] = one
    return LeaderEvidence(comparisons, {f"returns@{name}": DataAccuracy(*of) for name, of in accuracies.items()})


OTHER_BYTES = EvaluationArm("returns@v2", "sha256:other", "manifest:2")
CASES: dict[str, tuple[LeaderEvidence, Ranking]] = {
    "nothing is known": (evidence(), Ranking("returns@v3", ["returns@v2", "returns@v1"])),
    "other data": (
        evidence(v3=("a", 0.9), v2=("b", 0.95), v1=("c", 0.99)),
        Ranking("returns@v3", ["returns@v2", "returns@v1"]),
    ),
    "the same data": (evidence(v3=("a", 0.9), v2=("a", 0.95), v1=("a", 0.8)), Ranking("returns@v2", [])),
    "the newer of equals": (evidence(v3=("a", 0.9), v2=("a", 0.9), v1=("a", 0.9)), Ranking("returns@v3", [])),
    "pairs": (evidence(pair(V3, V2, 0.1), pair(V2, V1, 0.0)), Ranking("returns@v3", [])),
    "a pair before shares": (
        evidence(pair(V3, V2, -0.1), v3=("a", 0.9), v2=("a", 0.8), v1=("a", 0.1)),
        Ranking("returns@v2", []),
    ),
    "a chain": (evidence(pair(V3, V2, -0.1), pair(V2, V1, -0.2)), Ranking("returns@v1", [])),
    "some are unknown": (evidence(pair(V3, V2, -0.1)), Ranking("returns@v2", ["returns@v1"])),
    "the newer pair": (
        evidence(pair(V3, V2, -0.1, 1), pair(V2, V3, -0.1, 2), pair(V2, V1, 0.1)),
        Ranking("returns@v3", []),
    ),
    "the newest suite before a file": (
        evidence(pair(V3, V2, -0.1, 1, "newest"), pair(V3, V2, 0.1, 2), pair(V2, V1, 0.1)),
        Ranking("returns@v2", []),
    ),
    "other suites do not rank": (
        evidence(pair(V3, V2, -0.1, 1, "hard")),
        Ranking("returns@v3", ["returns@v2", "returns@v1"]),
    ),
    "other bytes": (
        evidence(pair(V3, OTHER_BYTES, -0.1)),
        Ranking("returns@v3", ["returns@v2", "returns@v1"]),
    ),
    "each is beaten": (
        evidence(pair(V3, V2, -0.1), pair(V2, V1, -0.1), pair(V1, V3, -0.1)),
        Ranking("returns@v3", []),
    ),
    "rows that one alone did not answer": (
        evidence(pair(V3, V2, -0.1, failed=(10, 0)), pair(V2, V1, 0.1, failed=(0, 10))),
        Ranking("returns@v3", ["returns@v2", "returns@v1"]),
    ),
    "rows not answered, and worse all the same": (
        evidence(pair(V3, V2, -0.1, failed=(9, 50)), pair(V2, V1, 0.1, failed=(50, 9))),
        Ranking("returns@v2", []),
    ),
    "all rows are left out": (
        evidence(pair(V3, V2, 0.0, rows=0)),
        Ranking("returns@v3", ["returns@v2", "returns@v1"]),
    ),
    "a judge that people do not agree with": (
        evidence(pair(V3, V2, -0.1, agreement_low=0.5), pair(V3, V1, 0.1, agreement_low=0.9)),
        Ranking("returns@v3", ["returns@v2"]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_leaders_are_ranked_on_the_same_rows_alone(case: str) -> None:
    known, ranking = CASES[case]
    assert rank_leaders(LEADERS, known) == ranking


def test_a_task_without_leaders_has_no_best() -> None:
    assert rank_leaders([], evidence()) == Ranking(None, [])
