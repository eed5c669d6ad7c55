"""The report: what it counts, and what it says that it can't see."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from monitoring.evaluation.answer_metrics import ComparisonMetric
from monitoring.evaluation.dataset import Row
from monitoring.evaluation.report import report
from monitoring.evaluation.results import THREAD_CHARACTERS, RowAnswer, RowResult, answer_rows, judge_row
from monitoring.evaluation.row_classes import Classes

LABELS = Classes("text", "", ("no", "yes"))


def results(count: int, right: Any, **more: Any) -> list[RowResult]:
    """So many rows, of the classes yes and no in turn; `right` tells of a number whether it was."""
    found = []
    for number in range(count):
        expected = ("yes", "no")[number % 2]
        answered = expected if right(number) else ("no", "yes")[number % 2]
        found.append(
            RowResult(
                number=number,
                group=number,
                id=f"row-{number}",
                right=right(number),
                outcome="answered",
                expected=expected,
                answered=answered,
                **more,
            )
        )
    return found


def test_each_arm_has_its_figures_and_the_difference_its_bound() -> None:
    arms = {
        "adapter": results(1200, lambda n: n % 10 != 0, seconds=0.1, cost_usd=0.001, prompt_tokens=10),
        "general": results(1200, lambda n: n % 4 != 0, seconds=0.4, cost_usd=0.01, prompt_tokens=60),
    }
    found = report(arms, LABELS, [], seed=1)
    adapter, general = found["arms"]["adapter"], found["arms"]["general"]
    assert (adapter["accuracy"]["right"], adapter["accuracy"]["share"]) == (1080, 0.9)
    assert adapter["accuracy"]["low"] < 0.9 < adapter["accuracy"]["high"]
    assert adapter["f1"]["by_class"]["no"]["recall"] == 1.0
    assert adapter["f1"]["by_class"]["yes"]["recall"] == 0.8
    assert (general["cost_usd"], general["prompt_tokens"], general["latency_seconds"]["p95"]) == (12.0, 72_000, 0.4)
    (pair,) = found["paired"]
    assert (pair["first"], pair["second"], pair["difference"]) == ("adapter", "general", 0.15)
    assert 0.12 < pair["lower_bound"] < 0.15
    assert pair["p_value"] < 1e-6
    assert [one["class"] for one in pair["by_class"] if one["differs"]] == ["yes"]
    assert found["cannot_see"] == []
    assert json.loads(json.dumps(found)) == found
    assert report(arms, LABELS, [], seed=1) == found


def test_a_class_that_is_lost_is_found_at_a_mean_that_hardly_moves() -> None:
    names = tuple(f"class-{number:02}" for number in range(20))
    rows = [(number, names[number % 20]) for number in range(1000)]

    def arm(lost: str) -> list[RowResult]:
        return [
            RowResult(
                number=n, group=n, id=str(n), right=name != lost, outcome="answered", expected=name, answered=name
            )
            for n, name in rows
        ]

    found = report({"adapter": arm("class-07"), "against": arm("")}, Classes("field", "f", names), [], seed=0)
    (pair,) = found["paired"]
    assert [one["class"] for one in pair["by_class"] if one["differs"]] == ["class-07"]


@pytest.mark.parametrize(
    ("rows", "classes", "said"),
    [
        (results(200, bool), LABELS, "There are 200 rows, fewer than 1,000"),
        (results(60, bool), LABELS, "Fewer than 40 rows are of the classes no (30), yes (30)"),
        (results(60, bool), Classes(), "There are no classes"),
        (results(60, bool)[::2], LABELS, "All rows are of one class"),
        (results(60, bool), Classes("label", "", ("no", "yes")), "The labels can't be read off the answers"),
        ([RowResult(number=0, group=0, id="a", right=False, outcome="failed")], LABELS, "1 rows of adapter failed"),
        (results(2, bool, fingerprint="a") + results(2, bool, fingerprint="b"), LABELS, "2 different fingerprints"),
        ([], LABELS, "There are 0 rows"),
    ],
)
def test_what_it_can_not_see_is_said_in_words(rows: list[RowResult], classes: Classes, said: str) -> None:
    found = report({"adapter": rows}, classes, ["As the data say."], seed=0)
    assert any(said in one for one in found["cannot_see"]), found["cannot_see"]
    assert "As the data say." in found["cannot_see"]


def test_labels_that_no_answer_says_have_shares_and_no_f1() -> None:
    found = report({"adapter": results(60, lambda n: n % 3 > 0)}, Classes("label", "", ("no", "yes")), [], seed=0)
    f1 = found["arms"]["adapter"]["f1"]
    assert f1["macro"] is None
    assert f1["by_class"]["yes"]["share"] == pytest.approx(20 / 30, abs=1e-6)


def test_what_costs_nothing_known_costs_null() -> None:
    unknown = results(3, bool, cost_usd=0.1)
    unknown[1].cost_usd = None
    found = report({"adapter": unknown}, LABELS, [], seed=0)["arms"]["adapter"]
    assert (found["cost_usd"], found["prompt_tokens"]) == (None, None)


ROW = Row(3, "row-3", 4, "yes", None, "Once")


@pytest.mark.parametrize(
    ("said", "outcome", "right"),
    [
        (RowAnswer(text="yes "), "answered", True),
        (RowAnswer(text="no"), "answered", False),
        (RowAnswer(text=" "), "empty", False),
        (RowAnswer(text="yes", refused=True), "refused", False),
        (RowAnswer(text=None, fault="failed"), "failed", False),
    ],
)
def test_an_answer_is_judged_once(said: RowAnswer, outcome: str, right: bool) -> None:
    found = judge_row(ROW, said, ComparisonMetric("normal"), LABELS)
    assert (found.outcome, found.right, found.number, found.expected) == (outcome, right, 3, "yes")


def test_rows_of_fewer_groups_are_told() -> None:
    rows = results(1200, bool)
    for one in rows:
        one.group = one.number // 4
    found = report({"adapter": rows}, LABELS, [], seed=0)
    assert (found["rows"], found["groups"]) == (1200, 300)
    assert found["cannot_see"][0].startswith("The 1200 rows are of 300 groups")


async def test_rows_are_asked_a_few_at_a_time_and_each_is_kept_as_it_comes() -> None:
    under_way, most, kept = 0, 0, []

    async def left() -> AsyncIterator[tuple[str, Row]]:
        for number in range(20):
            yield "adapter", Row(number, str(number), number + 1, "yes", None, "Once")

    async def ask(arm: str, row: Row) -> RowAnswer:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return RowAnswer(text="yes")

    async def keep(arm: str, result: RowResult, logprobs: Sequence[float]) -> None:
        kept.append(result.number)

    await answer_rows(left(), ask, keep, ComparisonMetric("normal"), LABELS, 3)
    assert sorted(kept) == list(range(20))
    assert most == 3


async def test_a_long_answer_is_judged_beside_the_event_loop() -> None:
    threads = []

    class Noting(ComparisonMetric):
        def right(self, expected: str, answer: str) -> bool:
            threads.append(threading.current_thread() is threading.main_thread())
            return super().right(expected, answer)

    async def left() -> AsyncIterator[tuple[str, Row]]:
        for number in range(2):
            yield "adapter", Row(number, str(number), number + 1, "yes", None, "Once")

    async def ask(arm: str, row: Row) -> RowAnswer:
        return RowAnswer(text="yes" if row.number == 0 else "y" * (THREAD_CHARACTERS + 1))

    async def keep(arm: str, result: RowResult, logprobs: Sequence[float]) -> None:
        pass

    await answer_rows(left(), ask, keep, Noting("normal"), LABELS, 1)
    assert threads == [True, False]


async def test_what_asking_raises_ends_it_as_it_is() -> None:
    async def left() -> AsyncIterator[tuple[str, Row]]:
        yield "adapter", ROW

    async def ask(arm: str, row: Row) -> RowAnswer:
        raise ConnectionError("gone")

    async def keep(arm: str, result: RowResult, logprobs: Sequence[float]) -> None:
        raise AssertionError

    with pytest.raises(ConnectionError):
        await answer_rows(left(), ask, keep, ComparisonMetric("normal"), LABELS, 2)


@pytest.mark.parametrize("overlaps", [[1.0], [0.4], [0.0, 1.0], [1.0] * 20])
def test_interval_of_few_or_equal_overlaps_is_wide_and_within_a_share(overlaps: list[float]) -> None:
    rows = [RowResult(number=n, group=n, id=str(n), right=True, outcome="answered", overlap=overlap)
            for n, overlap in enumerate(overlaps)]  # fmt: skip
    told = report({"adapter": rows}, Classes(), [], seed=1)["arms"]["adapter"]["overlap"]
    assert 0.0 <= told["low"] <= told["mean"] <= told["high"] <= 1.0
    assert told["high"] - told["low"] > 0.1
