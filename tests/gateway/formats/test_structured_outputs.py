"""Patterns and grammars of callers: only where they are allowed, and compiled within a bound first."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from gateway.formats.fields import OF_FORMS
from gateway.formats.structured_outputs import PATTERN_CHARACTERS_MAX, PATTERNS_MAX
from tests.gateway.formats.bodies import DEFAULTS, TASK, problem, read

ALLOWED = replace(TASK, parameters_allowed=OF_FORMS)
DATE = {"type": "object", "properties": {"date": {"type": "string", "pattern": r"^\d{4}-\d\d$"}}}
NAMES = {"type": "object", "patternProperties": {"^x-": {"type": "string"}}}


def tools(schema: Any, **more: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema, **more}}]}


def response(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}}


CONSTRUCTS: list[tuple[dict[str, Any], str, str]] = [
    ({"structured_outputs": {"regex": "a+"}}, "regex", "structured_outputs.regex"),
    ({"structured_outputs": {"grammar": 'root ::= "a"'}}, "grammar", "structured_outputs.grammar"),
    ({"structured_outputs": {"structural_tag": "{}"}}, "structural_tag", "structured_outputs.structural_tag"),
    (
        {"structured_outputs": {"json": {}, "whitespace_pattern": " ?"}},
        "whitespace_pattern",
        "structured_outputs.whitespace_pattern",
    ),
    ({"structured_outputs": {"json": DATE}}, "pattern", "structured_outputs.json"),
    ({"structured_outputs": {"json": json.dumps(DATE)}}, "pattern", "structured_outputs.json"),
    ({"structured_outputs": {"json": NAMES}}, "pattern", "structured_outputs.json"),
    (response(DATE), "pattern", "response_format"),
    (response({"properties": {"enum": {"pattern": "a"}}}), "pattern", "response_format"),
    (response({"properties": {"properties": {"pattern": "a"}}}), "pattern", "response_format"),
    (response({"$ref": "#/default", "default": {"pattern": "a"}}), "pattern", "response_format"),
    (response({"$ref": "#/$defs/a/const", "$defs": {"a": {"const": {"pattern": "a"}}}}), "pattern", "response_format"),
    (response({"$ref": "#/properties", "properties": {"pattern": "a"}}), "pattern", "response_format"),
    (response({"$defs": {"a": {"anyOf": [DATE]}}}), "pattern", "response_format"),
    ({"response_format": {"type": "structural_tag", "structures": []}}, "structural_tag", "response_format"),
    (tools(DATE) | {"tool_choice": "required"}, "pattern", "tools"),
    (tools(DATE, strict=True), "pattern", "tools"),
    (tools(DATE) | {"tool_choice": {"type": "function", "function": {"name": "f"}}}, "pattern", "tools"),
]


@pytest.mark.invariant("No caller's pattern or grammar is compiled without leave, nor ends two engines.")
@pytest.mark.parametrize(("fields", "permission", "param"), CONSTRUCTS)
def test_what_an_engine_compiles_needs_its_permission(fields: dict[str, Any], permission: str, param: str) -> None:
    for limits in (TASK, replace(TASK, parameters_allowed=OF_FORMS - {permission})):
        found = problem(read(**fields), task=limits)
        assert (found.code, found.param) == ("parameter_not_allowed", param)
        assert permission in found.message
    assert problem(read(**fields), task=None).code == "parameter_not_allowed"
    body = read(**fields)
    body.check(replace(TASK, parameters_allowed=frozenset({permission})), DEFAULTS)
    assert body.fragile


@pytest.mark.parametrize("number", ["1e400", "NaN", "Infinity"])
def test_a_form_that_we_can_not_read_reaches_no_engine_which_might(number: str) -> None:
    """Python's reader of JSON, and so vLLM, takes these numbers."""
    schema = DATE | {"maximum": 7}
    forms = {"structured_outputs.json": read(structured_outputs={"json": json.dumps(schema)})}
    if number == "1e400":  # the others are not JSON, as all of a body has to be
        forms["structured_outputs.json"] = read(structured_outputs={"json": schema})
        forms["response_format"] = read(**response(schema))
        forms["tools"] = read(**tools(schema), tool_choice="required")
    for param, body in forms.items():
        raw = body.raw.replace(b'": 7', b'": %b' % number.encode())
        assert raw != body.raw
        found = problem(raw)
        assert (found.code, found.param) == ("invalid_value", param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"structured_outputs": {"choice": ["a", "pattern"]}},
        {"structured_outputs": {"json": {"properties": {"pattern": {"type": "string"}}}}},
        {"structured_outputs": {"json": {"properties": {"patternProperties": {"type": "string"}}}}},
        {"structured_outputs": {"json": {"$defs": {"pattern": {"type": "string"}}, "$ref": "#/$defs/pattern"}}},
        {"structured_outputs": {"json": {"enum": [{"pattern": "a"}]}}},
        {"structured_outputs": {"json": {"const": {"grammar": "a"}}}},
        response({"default": {"pattern": "a"}, "examples": [{"patternProperties": {"a": {}}}]}),
        {"structured_outputs": {"regex": None, "json": {"type": "object"}}},
        {"response_format": {"type": "text"}},
        tools(DATE),
        tools(DATE) | {"tool_choice": "auto"},
    ],
    ids=str,
)
def test_plain_forms_need_no_permission(fields: dict[str, Any]) -> None:
    body = read(**fields)
    body.check(TASK, DEFAULTS)
    assert not body.fragile


def test_pattern_whose_name_is_escaped_is_found() -> None:
    raw = (
        b'{"model":"m","messages":[{"role":"user","content":"a"}],"structured_outputs":{"json":{"p\\u0061ttern":"a"}}}'
    )
    assert problem(raw, task=TASK).code == "parameter_not_allowed"


@pytest.mark.parametrize(
    "pattern", ["(", "(?=a)", r"(a)\1", "(a{1000}){1000}", r"(\pL{100}){9}", "(((a{30}){30}){30})"]
)
@pytest.mark.parametrize("of", ["regex", "whitespace_pattern", "schema", "names", "tag"])
def test_pattern_that_can_not_be_compiled_within_the_bound_is_refused_at_once(pattern: str, of: str) -> None:
    fields: dict[str, Any] = {
        "regex": {"structured_outputs": {"regex": pattern}},
        "whitespace_pattern": {"structured_outputs": {"json": {}, "whitespace_pattern": pattern}},
        "schema": response({"properties": {"a": {"pattern": pattern}}}),
        "names": response({"patternProperties": {pattern: {}}}),
        "tag": {"response_format": {"type": "structural_tag", "format": {"type": "regex", "pattern": pattern}}},
    }[of]
    began = time.process_time()
    assert problem(read(**fields), task=ALLOWED).code == "invalid_value"
    assert time.process_time() - began < 0.5


def test_patterns_are_bounded_in_number() -> None:
    def schema(count: int) -> dict[str, Any]:
        return response({"anyOf": [{"pattern": f"a{number}"} for number in range(count)] * 2})

    read(**schema(PATTERNS_MAX)).check(ALLOWED, DEFAULTS)
    assert problem(read(**schema(PATTERNS_MAX + 1)), task=ALLOWED).code == "invalid_value"


@pytest.mark.parametrize(
    "patterns",
    [
        ["a" * (PATTERN_CHARACTERS_MAX + 1)],
        ["a" * 2000, "b" * 2000, "c" * 97],
        [r"\pL|" * 65 + "a"],
        [r"\pL|\PN|" * 20 + str(number) for number in range(2)],
        [r"\pL{3}" + str(number) for number in range(3)],
    ],
    ids=["one", "together", "classes", "classes together", "steps"],
)
def test_patterns_of_one_request_are_bounded_together(patterns: list[str]) -> None:
    schema = {"anyOf": [{"pattern": pattern} for pattern in patterns]}
    found = problem(read(**response(schema)), task=ALLOWED)
    assert (found.code, found.param) == ("invalid_value", "response_format")
    assert "patterns of a request" in found.message


def test_grammar_is_bounded_in_length() -> None:
    long = {"structured_outputs": {"grammar": "x" * 16_385}}
    raw = json.dumps({"model": "m", "messages": [{"role": "user", "content": "a"}], **long}).encode()
    found = problem(raw, task=ALLOWED)
    assert (found.code, found.param) == ("invalid_value", "structured_outputs.grammar")


def test_grammar_inside_a_structural_tag_needs_the_permission_of_grammars() -> None:
    tag = {"type": "structural_tag", "format": {"type": "grammar", "grammar": 'root ::= "a"'}}
    body = read(response_format=tag)
    found = problem(body, task=replace(TASK, parameters_allowed=frozenset({"structural_tag"})))
    assert found.code == "parameter_not_allowed"
    assert "grammar" in found.message
