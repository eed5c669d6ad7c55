"""The present kind of a suite, and of the comparisons that were made on it."""

from __future__ import annotations

import msgspec

from monitoring.evaluation.arms import EvaluationArm
from monitoring.evaluation.gate import Comparison
from monitoring.evaluation.suites import KindNow, Suite, kinds_of, name_kinds


def suite(digest: str, created_at: float, kind: KindNow = "newest", erased: int = 0) -> Suite:
    return Suite(task="returns", digest=digest, kind=kind, rows=9, groups=9, created_at=created_at, erased=erased)


def kinds(compared: list[tuple[str, str]], suites: list[Suite]) -> list[str]:
    """The kinds now, of comparisons with a suite's kind and data."""
    comparisons = {
        str(at): Comparison(
            evaluation="e1",
            ended_at=1.0,
            data_digest=digest,
            suite=kind,
            version=EvaluationArm("returns@v2"),
            reference=EvaluationArm("returns@v1"),
            pair={},
            figures={},
            reference_figures={},
        )
        for at, (kind, digest) in enumerate(compared)
    }
    return [one.suite for one in name_kinds(comparisons, suites).values()]


def test_the_newest_suite_makes_comparisons_on_the_last_one_older() -> None:
    suites = [suite("a", 1.0), suite("b", 2.0), suite("h", 3.0, "hard")]
    assert kinds_of(suites) == {"a": "older", "b": "newest", "h": "hard"}
    compared = [("newest", "a"), ("newest", "b"), ("hard", "h"), ("", "a")]
    assert kinds(compared, suites) == ["older", "newest", "hard", ""]
    assert kinds([("older", "a")], suites[:1]) == ["newest"], "the newer one was removed"


def test_comparisons_on_a_removed_suite_stay_unless_another_is_the_newest() -> None:
    compared = [("newest", "a"), ("older", "b"), ("hard", "h")]
    assert kinds(compared, []) == ["newest", "older", "hard"]
    assert kinds(compared, [suite("c", 2.0)]) == ["hard"], "what was removed tells nothing of forgetting"


def test_rows_that_are_erased_from_a_suite_leave_comparisons_on_it() -> None:
    before = suite("a", 1.0)
    once, twice = (msgspec.structs.replace(before, erased=rows) for rows in (2, 5))
    compared = [("newest", one.data_digest) for one in (before, once, twice)]
    assert kinds(compared, [twice]) == ["newest"] * 3
    assert kinds(compared, [twice, suite("b", 2.0)]) == ["older"] * 3
