"""When an answer is right, by each metric."""

from __future__ import annotations

import pytest

from monitoring.evaluation.answer_metrics import MetricError, choose_metric, metric_of, normalize
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
    with pytest.raises(MetricError, match="is not a metric"):
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


@pytest.mark.parametrize("metric", ["normal", "fields:usd"])
def test_the_form_of_a_number_does_not_count(metric: str) -> None:
    right = metric_of(metric).right
    assert all(right('{"usd":25}', f'{{"usd":{number}}}') for number in ("25.0", "2.5e1", "2500E-2"))
    assert right('{"usd":[0]}', '{"usd":[-0.0]}')
    assert not any(right('{"usd":25}', f'{{"usd":{value}}}') for value in ("25.5", '"25"', '"25.0"', "1e999"))
    assert right('{"usd":1e300}', '{"usd":10.0E299}')
    assert not right('{"usd":1}', '{"usd":true}')


def test_white_space_and_the_order_of_fields_do_not_count() -> None:
    assert normalize("a  b\n c ") == normalize("a b c")
    assert normalize('{"b": 1, "a": [2]}') == normalize('{"a":[2],"b":1}')
