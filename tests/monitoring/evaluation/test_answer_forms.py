"""The forms in which judges compare answers, and that they judge as the metrics of evaluations do."""

from __future__ import annotations

import json
from itertools import product

import pytest

from monitoring.evaluation.answer_forms import AnswerForm, write_demonstration
from monitoring.evaluation.answer_metrics import ComparisonMetric, metric_of

ANSWERS = [
    "",
    " ",
    "approve",
    " approve ",
    "approve  it",
    "approve it",
    '{"a": 1}',
    '{"a": 1, "b": 2}',
    '{"a": 1.0, "b": 2.0}',
    '{"b": 2, "a": 1}',
    '{"b": 2.0, "a": 1, "c": null}',
    '{"a": 1, "b": [1, {"x": 2, "y": 3}]}',
    '{"a": 1, "b": [1, {"y": 3, "x": 2}]}',
    '{"a": 1, "b": "\\ud800"}',
    "[1, 2]",
    '{"a": 1',
]


def form_of(said: str) -> AnswerForm:
    """The form of a judge of this name."""
    return AnswerForm("model", ComparisonMetric("normal")) if said == "model" else AnswerForm(said, metric_of(said))


@pytest.mark.parametrize("judge", ["exact", "normal", "fields:a,b", "fields:a"])
def test_answers_have_the_same_form_where_the_metric_judges_one_by_the_other(judge: str) -> None:
    form = form_of(judge)
    for first, second in product(ANSWERS, ANSWERS):
        one = form.of(first)
        same = one is not None and one == form.of(second)
        assert same == form.metric.right(first, second), (first, second)


@pytest.mark.parametrize("judge", ["exact", "normal", "fields:a,b", "model"])
def test_digests_are_keyed_and_the_same_where_the_form_is(judge: str) -> None:
    form = form_of(judge)
    for answer in ANSWERS:
        told = form.digest(b"secret", answer)
        assert (told is None) == (form.of(answer) is None)
        assert told is None or told != form.digest(b"another", answer)
        assert told == form.digest(b"secret", answer)


def test_a_demonstration_that_is_no_text_is_its_json() -> None:
    assert write_demonstration("approve") == "approve"
    assert form_of("normal").of(write_demonstration({"b": 2, "a": [True, None]})) == form_of("normal").of(
        '{"a":[true,null],"b":2}'
    )


def test_calls_that_are_nested_as_deeply_as_can_be_are_written_all_the_same() -> None:
    for depth in range(900, 1000):  # the deepest that can be read depends on the stack
        arguments = '{"a":' + "[" * depth + "]" * depth + "}"
        for given in (arguments, json.dumps(arguments), f'{{}},"id":{arguments}', f'{{}},"name":{arguments}'):
            text = '{"tool_calls":[{"name":"refund","arguments":' + given + "}]}"
            assert "tool_calls" in write_demonstration(text, has_tools=True)
    assert write_demonstration("\ud800", has_tools=True) == "\ud800"
