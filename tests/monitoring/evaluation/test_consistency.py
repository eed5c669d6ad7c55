"""Flips, slices and confusion: what a report counts of repeated rows, and what it does not count twice."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.evaluation.answer_metrics import metric_of
from monitoring.evaluation.dataset import DatasetError, DatasetLimits, DatasetReader, Row
from monitoring.evaluation.report import report
from monitoring.evaluation.results import RowAnswer, RowResult, judge_row
from monitoring.evaluation.row_classes import ClassFinder

LIMITS = DatasetLimits(100, 1 << 20, 1 << 16)
DATA = b"""{"text": "May I return it?", "expected": "yes", "paraphrase": "a", "language": "English", "source": "mail"}
{"text": "Darf ich das behalten?", "expected": "yes", "paraphrase": "a", "language": "German", "source": "mail"}
{"text": "Is it too late?", "expected": "no", "paraphrase": "b", "source": "chat"}
{"text": "Am I too late?", "expected": "no", "paraphrase": "b", "source": "chat"}
{"text": "Too late, or not?", "expected": "yes", "paraphrase": "b", "source": "chat"}
"""


def rows_of(data: bytes) -> list[Row]:
    reader = DatasetReader(LIMITS)
    return [*reader.feed(data), *reader.end()]


def reported(answers: list[list[str]]) -> dict[str, Any]:
    """The report on the rows, each asked as often as there are answers to it."""
    rows, metric, finder = rows_of(DATA), metric_of("normal"), ClassFinder()
    for row in rows:
        finder.add(row)
    results: list[RowResult] = []
    for row, texts in zip(rows, answers, strict=True):
        for repeat, text in enumerate(texts):
            number = row.number * len(texts) + repeat
            asked = Row(number, row.id, row.line, row.expected, row.messages, None, None, row.group, row.slices, repeat)
            results.append(judge_row(asked, RowAnswer(text=text), metric, finder.found(), b"secret"))
    return report({"adapter": results}, finder.found(), [], seed=0)


def test_a_row_that_is_repeated_counts_once_and_its_flips_are_told() -> None:
    told = reported([["yes", "no"], ["yes", "yes"], ["no", " no"], ["yes", "yes"], ["maybe", "yes"]])
    adapter = told["arms"]["adapter"]
    assert (told["rows"], adapter["accuracy"]["right"], adapter["accuracy"]["of"]) == (5, 3, 5)
    repeats, paraphrases = adapter["consistency"]["repeats"], adapter["consistency"]["paraphrases"]
    assert (repeats["right"], repeats["of"], repeats["differ"]) == (2, 5, 0.4)
    assert (paraphrases["right"], paraphrases["of"]) == (1, 2), "a row of the group that expects another is not a flip"
    assert adapter["confusion"] == {"yes": {"yes": 2, "": 1}, "no": {"no": 1, "yes": 1}}
    assert {name: item["of"] for name, item in adapter["slices"]["source"].items()} == {"chat": 3, "mail": 2}
    assert adapter["slices"]["language"]["German"]["right"] == 1
    assert adapter["slices"]["length"]["up to 200 characters"]["of"] == 5


def test_rows_asked_once_have_no_flips_of_repeats() -> None:
    told = reported([["yes"], ["yes"], ["no"], ["no"], ["yes"]])["arms"]["adapter"]["consistency"]
    assert told["repeats"] is None
    assert told["paraphrases"]["right"] == 0


def test_a_slice_that_is_no_text_is_refused_with_its_line() -> None:
    with pytest.raises(DatasetError, match="Line 1: its source is a text"):
        rows_of(b'{"text": "x", "expected": "y", "source": ["a"]}\n')
