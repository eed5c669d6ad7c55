"""Arguments of tools' calls, compared with what callers declare, whatever that is and however long it would take."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.tool_arguments import ANY_OBJECT, ARGUMENTS_LENGTH_MAX, PARAMETERS_BYTES_MAX, read_parameters

PARAMETERS = {
    "type": "object",
    "properties": {
        "decision": {"type": "string", "enum": ["accept", "refuse"]},
        "days": {"type": "integer"},
        "price": {"type": ["number", "null"]},
        "sealed": {"type": "boolean"},
        "parts": {"type": "array", "items": {"type": "string"}},
        "free": {"description": "anything"},
        "any": True,
    },
    "required": ["decision"],
}


@pytest.mark.parametrize(
    ("arguments", "fit"),
    [
        ({"decision": "accept"}, True),
        ({"decision": "accept", "days": 3, "price": 1.5, "sealed": True, "parts": [1], "free": {}, "any": 1}, True),
        ({"decision": "refuse", "days": 3.0, "price": None, "more": []}, True),
        ({"days": 3}, False),
        ({"decision": "keep"}, False),
        ({"decision": 1}, False),
        ({"decision": "accept", "days": 3.5}, False),
        ({"decision": "accept", "days": True}, False),
        ({"decision": "accept", "price": "1"}, False),
        ({"decision": "accept", "parts": {}}, False),
        ([], False),
        ("accept", False),
        ({"decision": "accept", "free": "x" * ARGUMENTS_LENGTH_MAX}, False),
    ],
)
def test_required_names_types_and_texts_of_the_top_level_are_looked_at(arguments: Any, fit: bool) -> None:
    assert read_parameters(json.dumps(PARAMETERS).encode()).fit(json.dumps(arguments)) == fit


@pytest.mark.parametrize("arguments", ["", '{"decision": "acc', "\ud800", '{"decision": ' + "[" * 5000, "{} {}"])
def test_what_is_no_json_does_not_fit(arguments: str) -> None:
    assert not read_parameters(json.dumps(PARAMETERS).encode()).fit(arguments)
    assert not ANY_OBJECT.fit(arguments)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b"true",
        b"{",
        b"[" * 10_000,
        b'{"properties": [], "required": "a"}',
        b'{"properties": {"a": {"type": "nothing", "enum": [1, "a"]}}, "required": [1]}',
        b'{"properties": {"a": {"type": []}, "b": {"type": ["string", 1]}}}',
        b'{"required": ["a"], "description": "' + b"x" * PARAMETERS_BYTES_MAX + b'"}',
    ],
)
def test_parameters_that_say_nothing_that_is_looked_at_let_any_object_pass(raw: bytes) -> None:
    assert read_parameters(raw).fit('{"a": 1, "b": 1}')
    assert read_parameters(raw).fit("{}")
    assert not read_parameters(raw).fit("[]")


@pytest.mark.invariant("No caller's schema holds the event loop.")
def test_parameters_that_would_take_a_schemas_reader_seconds_take_no_time() -> None:
    depth = 26
    twice: dict[str, Any] = {f"d{at}": {"allOf": [{"$ref": f"#/$defs/d{at + 1}"}] * 2} for at in range(depth)}
    nested = {"$defs": {**twice, f"d{depth}": {"type": "string"}}, "properties": {"a": {"$ref": "#/$defs/d0"}}}
    patterns = {"patternProperties": {f"^a{{1,{at}}}b{at}$": {"type": "string"} for at in range(1, 400)}}
    for schema in (nested, patterns):
        raw = json.dumps(schema).encode()
        assert len(raw) < PARAMETERS_BYTES_MAX
        began_at = time.thread_time()
        assert read_parameters(raw).fit('{"a": "x"}')
        assert time.thread_time() - began_at < 0.02


values = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["a", "b", "type", "enum", "required", "properties"]), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(values, values)
def test_whatever_is_declared_and_given_there_is_an_answer(declared: Any, given_: Any) -> None:
    parameters = read_parameters(json.dumps(declared).encode())
    assert parameters.fit(json.dumps(given_)) in (True, False)
