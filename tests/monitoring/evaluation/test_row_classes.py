"""The classes of a data set's rows, and the class of an answer."""

from __future__ import annotations

import json

import msgspec
import pytest

from monitoring.evaluation.dataset import DatasetError, Row
from monitoring.evaluation.row_classes import ClassFinder
from tests.monitoring.evaluation.test_answer_metrics import DENY, row


def found(*rows: Row, field: str = "") -> ClassFinder:
    finder = ClassFinder(field)
    for one in rows:
        finder.add(one)
    return finder


def test_the_values_of_the_named_field_are_classes() -> None:
    classes = found(row(DENY), row('{"decision":"approve"}'), row('{"decision":true}'), field="decision").found()
    assert (classes.source, classes.names) == ("field", ("approve", "deny", "true"))
    assert classes.of_row(row(DENY)) == "deny"
    assert classes.of_answer('{"decision": "approve"}') == "approve"
    assert classes.of_answer('{"decision":"escalate"}') is None
    assert classes.of_answer("deny") is None
    with pytest.raises(DatasetError, match=r"Line 2: .*no field 'decision'"):
        found(row(DENY), row("deny", line=2), field="decision")


def test_rows_labels_are_classes_and_answers_get_theirs_where_that_is_clear() -> None:
    clear = found(row("yes", "fair"), row("no", "risky"), row(" yes", "fair")).found()
    assert (clear.source, clear.of_answer("yes "), clear.of_answer("perhaps")) == ("label", "fair", None)
    assert "yes" not in str(clear), "no expected answer is part of it"
    unclear = found(row("yes", "fair"), row("yes", "risky")).found()
    assert (unclear.names, unclear.by_digest, unclear.of_answer("yes")) == (("fair", "risky"), None, None)


def test_few_different_texts_are_classes_and_many_are_none() -> None:
    few = found(*(row(f"{number % 3}") for number in range(100))).found()
    assert (few.source, few.names, few.of_answer(" 1 ")) == ("text", ("0", "1", "2"), "1")
    assert found(*(row(f"{number}") for number in range(100))).found().source == "none"
    assert found(row("x " * 500)).found().source == "none"


def test_a_field_with_too_many_values_is_no_class() -> None:
    with pytest.raises(DatasetError, match="more than 200 values"):
        found(*(row(f'{{"id":{number}}}', line=number + 1) for number in range(300)), field="id")


def offering(expected: str, calls: bool = True) -> Row:
    """A row with a tool, whose answer calls tools or not."""
    return msgspec.structs.replace(row(expected), tools=[{}], calling={} if calls else None)


def test_classes_of_calls_are_the_tools_that_are_called() -> None:
    def answer(*names: str, order: object = 7) -> str:
        return json.dumps({"tool_calls": [{"name": name, "arguments": {"order": order}} for name in names]})

    finder = ClassFinder()
    for number in range(100):  # so many different arguments are not classes
        finder.add(offering(answer(("find", "cancel")[number % 2], order=number)))
    finder.add(offering("Which order?", calls=False))
    finder.add(offering(answer("find", "cancel")))
    classes = finder.found()
    assert (classes.source, classes.names) == ("calls", ("cancel", "cancel, find", "find", "no tool call"))
    assert classes.of_row(offering(answer("find"))) == "find"
    assert classes.of_answer('{"tool_calls":[{"arguments":"broken","name":"cancel"}]}') == "cancel"
    assert classes.of_answer("I can't do that.") == "no tool call"
    assert classes.of_answer(answer("refund")) is None


def test_texts_that_look_like_calls_are_texts_where_no_tool_is_offered() -> None:
    finder = ClassFinder()
    finder.add(row('{"tool_calls":[{"arguments":{},"name":"find"}]}'))
    assert finder.found().source == "text"
