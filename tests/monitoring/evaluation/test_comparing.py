"""When an answer is right, and of which class it is."""

from __future__ import annotations

import json

import msgspec
import pytest

from monitoring.evaluation.comparing import ClassFinder, MetricError, choose_metric, metric_of, normalize
from monitoring.evaluation.dataset import DatasetError, Row

DENY = '{"decision":"deny","rule":"used"}'
SCHEMA = {"json_schema": {"type": "object", "required": ["decision", "rule"]}}


def row(expected: str, label: str | None = None, line: int = 1) -> Row:
    return Row(line - 1, f"row-{line}", line, expected, None, "Once", label)


@pytest.mark.parametrize(
    ("metric", "answer", "right"),
    [
        ("exact", DENY, True),
        ("exact", DENY + " ", False),
        ("normal", '{ "rule": "used", "decision": "deny" }', True),
        ("normal", '{"decision":"deny","rule":"used","more":1}', False),
        ("fields:decision", '{"decision":"deny","rule":"hygiene"}', True),
        ("fields:decision,rule", '{"decision":"deny","rule":"hygiene"}', False),
        ("fields:decision", '{"decision":"Deny"}', False),
        ("fields:decision", "deny", False),
        ("fields:decision", "[" * 5000, False),
        ("fields:decision", f"Sure: {DENY}", False),
        ("normal", "\ud800", False),
    ],
)
def test_an_answer_is_right_as_its_metric_says(metric: str, answer: str, right: bool) -> None:
    assert metric_of(metric).right(DENY, answer) is right


def test_a_field_that_is_missing_in_both_is_not_equal() -> None:
    assert not metric_of("fields:rule").right('{"decision":1}', '{"decision":1}')


@pytest.mark.parametrize("said", ["", "fields:", "fields", "f1", "fields: , ", "exact:a"])
def test_there_is_no_other_metric(said: str) -> None:
    with pytest.raises(MetricError, match="is no metric"):
        metric_of(said)


def test_without_a_metric_the_fields_that_the_contract_requires_are_compared() -> None:
    assert str(choose_metric(SCHEMA, row(DENY))) == "fields:decision,rule"
    assert str(choose_metric(SCHEMA, row('{"decision":"deny"}'))) == "normal"
    assert str(choose_metric(SCHEMA, row("deny"))) == "normal"
    assert str(choose_metric({"choices": ["deny"]}, row(DENY))) == "normal"
    assert str(choose_metric(None, row(DENY))) == "normal"


def test_a_row_that_lacks_a_compared_field_is_named() -> None:
    with pytest.raises(DatasetError, match=r"Line 4: .*without the field 'rule'"):
        metric_of("fields:rule").check(row('{"decision":"deny"}', line=4))
    with pytest.raises(DatasetError, match=r"Line 4: .*no JSON object"):
        metric_of("fields:rule").check(row("deny", line=4))


def test_white_space_and_the_order_of_fields_do_not_count() -> None:
    assert normalize("a  b\n c ") == normalize("a b c")
    assert normalize('{"b": 1, "a": [2]}') == normalize('{"a":[2],"b":1}')


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
    for number in range(100):  # so many different arguments are no classes
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
