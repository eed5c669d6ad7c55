from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.errors import Problem
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import GATEWAY_ALONE, KEPT_HERE, ON_REQUEST
from gateway.formats.request_body import RequestBody, make_routing_request, read_body
from gateway.formats.wire_format import WireFormat
from tests.gateway.formats.bodies import (
    DEFAULTS,
    MESSAGES,
    TASK,
    by_adapter,
    by_general,
    by_openai,
    problem,
    read,
    sent,
)
from tests.router.situations import policy

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
field_names = (
    st.sampled_from(sorted(CHAT.known_fields | COMPLETIONS.known_fields | ON_REQUEST | GATEWAY_ALONE)) | st.text()
)
endpoints = st.sampled_from([CHAT, COMPLETIONS])


def accepted(wire_format: WireFormat, raw: bytes) -> RequestBody | None:
    """The body, or None where it was refused, as the caller's own mistake and in words that can be sent."""
    try:
        body = read_body(wire_format, raw)
        body.lost_by("openai")
        body.check(TASK, DEFAULTS)
    except Problem as found:
        refusal = found
    else:
        return body
    assert refusal.status == 400
    json.loads(refusal.body())
    return None


def holds(wire_format: WireFormat, raw: bytes) -> None:
    """Whatever comes in: a Problem, or a body that every engine can read as JSON."""
    body = accepted(wire_format, raw)
    if body is None:
        return
    for choice in (by_adapter(), by_general(), by_general(general_prompt=False)):
        found = json.loads(body.for_engine(choice).decode())
        assert found["model"] == choice.engine_model
        assert not found.keys() & (KEPT_HERE | GATEWAY_ALONE)
        assert found.keys() <= wire_format.known_fields
    with contextlib.suppress(Problem):
        assert json.loads(body.for_engine(by_openai()).decode()).keys() <= wire_format.openai
    make_routing_request(body, "caller1", frozenset({"*"}), body.session(None), policy(text_needed=True))


@given(endpoints, st.binary(max_size=80))
def test_no_bytes_at_all_break_the_reading(wire_format: WireFormat, raw: bytes) -> None:
    holds(wire_format, raw)


@pytest.mark.invariant("No body ends as a 500.")
@given(endpoints, st.dictionaries(field_names, json_values, max_size=5))
def test_no_json_at_all_breaks_the_reading(wire_format: WireFormat, fields: dict[str, Any]) -> None:
    usual: dict[str, Any] = {"model": "returns", "messages": MESSAGES, "prompt": "Sealed laptop."}
    other = "prompt" if wire_format is CHAT else "messages"
    del usual[other]
    holds(wire_format, json.dumps(fields).encode())
    holds(wire_format, json.dumps(usual | fields).encode())


@given(endpoints, st.integers(0, 200), st.binary(min_size=1, max_size=2))
@example(CHAT, 117, b"\xff")
def test_a_body_that_was_damaged_on_its_way_breaks_nothing(wire_format: WireFormat, place: int, damage: bytes) -> None:
    fields = {"model": "returns", "messages": [{"role": "user", "content": "x", "name": "ä"}], "tool_choice": "auto"}
    if wire_format is COMPLETIONS:
        fields = {"model": "returns", "prompt": "ä", "logit_bias": {"7": 1}, "suffix": "z"}
    raw = json.dumps(fields, ensure_ascii=False).encode()
    holds(wire_format, raw[:place] + damage + raw[place + len(damage) :])


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'"text"',
        b"{}}",
        b'{"model":"m","messages":[{"role":"user","content":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x","name":"\xff"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"logit_bias":{"\xfe":1}}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"m","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
    ],
    ids=range(13),
)
def test_what_is_not_a_json_object_in_utf_8_is_refused_as_such(raw: bytes) -> None:
    assert problem(raw).code in ("invalid_json", "invalid_value")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": 7}, "model"),
        ({"model": ""}, "model"),
        ({"model": "m" * 257}, "model"),
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "k" * 65, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "0"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logprobs": 21}, "logprobs"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"tools": ["f"]}, "tools[0]"),
        ({"response_format": "json"}, "response_format"),
        ({"metadata": "x"}, "metadata"),
        ({"user": {"id": 1}}, "user"),
    ],
    ids=str,
)
def test_a_field_of_a_wrong_type_or_out_of_bounds_is_named(fields: dict[str, Any], param: str) -> None:
    found = problem(json.dumps({"model": "returns", "messages": MESSAGES, **fields}).encode())
    assert (found.code, found.param) == ("invalid_value", param)


def test_a_word_that_is_not_taken_is_answered_with_those_that_are() -> None:
    found = problem(json.dumps({"model": "returns", "messages": MESSAGES, "tool_choice": "any"}).encode())
    assert (found.code, found.param) == ("invalid_value", "tool_choice")
    assert found.message.endswith(": it takes none, auto, required.")


@pytest.mark.parametrize(
    ("wire_format", "fields", "param"),
    [
        (CHAT, {"messages": MESSAGES}, "model"),
        (CHAT, {"model": "returns"}, "messages"),
        (CHAT, {"model": "returns", "messages": None}, "messages"),
        (COMPLETIONS, {"model": "returns", "messages": MESSAGES}, "prompt"),
        (CHAT, {"model": "returns", "messages": [{"content": "x"}]}, "messages[0].role"),
        (
            CHAT,
            {"model": "returns", "messages": MESSAGES, "response_format": {"type": "json_schema"}},
            "response_format.json_schema",
        ),
    ],
)
def test_a_field_that_is_missing_is_named(wire_format: WireFormat, fields: dict[str, Any], param: str) -> None:
    found = problem(json.dumps(fields).encode(), wire_format)
    assert (found.code, found.param) == ("missing_field", param)


@pytest.mark.parametrize("name", sorted(GATEWAY_ALONE))
def test_what_only_the_gateway_sets_is_refused_whatever_the_task_allows(name: str) -> None:
    found = problem(read(**{name: "x"}), task=replace(TASK, parameters_allowed=ON_REQUEST | GATEWAY_ALONE))
    assert (found.code, found.param) == ("parameter_not_allowed", name)


ASKING: Mapping[str, Any] = {
    "add_generation_prompt": False,
    "include_reasoning": False,
    "allowed_token_ids": [7],
    "logprob_token_ids": [7],
    "bad_words": ["no"],
    "truncate_prompt_tokens": -1,
    "thinking_token_budget": 0,
    "chat_template_kwargs": {"enable_thinking": False},
    "prompt_logprobs": 0,
}
"""Values that ask for something, of fields that need permission; of the others: true."""


@pytest.mark.parametrize("name", sorted(ON_REQUEST))
def test_what_needs_permission_is_refused_without_it_and_passed_on_with_it(name: str) -> None:
    value = ASKING.get(name, True)
    assert problem(read(**{name: value})).code == "parameter_not_allowed"
    assert problem(read(**{name: value}), task=None).code == "parameter_not_allowed"
    for limits in (TASK, DEFAULTS):
        allowed = replace(limits, parameters_allowed=frozenset({name}), adapters=False)
        body = read(**{name: value})
        body.check(allowed, DEFAULTS)
        assert sent(body, by_adapter())[name] == value


def test_an_unknown_field_is_refused_by_its_name() -> None:
    found = problem(read(temprature=0))
    assert (found.code, found.param) == ("unknown_parameter", "temprature")
    assert problem(read(COMPLETIONS, tools=[])).code == "unknown_parameter"


def test_a_very_long_name_is_not_repeated_in_full() -> None:
    assert len(problem(read(**{"x" * 5000: 1})).message) < 200


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "video_url", "file", "anything"])
def test_media_need_permission(kind: str) -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, {"type": kind, kind: {"url": "http://x"}}]}
    ]
    assert problem(read(messages=messages)).param == "messages"
    read(messages=messages).check(replace(TASK, parameters_allowed=frozenset({"media"})), DEFAULTS)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_tokens_are_bounded_by_the_task_and_without_one_by_the_gateway(name: str) -> None:
    read(**{name: 512}).check(TASK, DEFAULTS)
    assert problem(read(**{name: 513})).param == name
    read(**{name: 64}).check(None, DEFAULTS)
    assert problem(read(**{name: 65}), task=None).param == name


def test_alternatives_are_bounded() -> None:
    read(n=2).check(TASK, DEFAULTS)
    assert problem(read(n=3)).param == "n"
    assert problem(read(n=2), task=None).param == "n"
    assert problem(read(COMPLETIONS, best_of=3), COMPLETIONS).param == "best_of"


def test_no_prompt_at_all_is_refused_and_tried_at_no_engine() -> None:
    assert problem(b'{"model":"returns","prompt":[]}', COMPLETIONS).param == "prompt"


@pytest.mark.parametrize("name", ["max_tokens", "n", "temperature"])
def test_a_number_out_of_range_names_its_field(name: str) -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES}).encode()[:-1] + b',"%b":1e400}' % name.encode()
    assert (problem(raw).code, problem(raw).param) == ("invalid_value", name)


@pytest.mark.parametrize(
    "text", [r"\ud83d", r"a\ude00", r"\ud83d and more after it", r"\ud83d\ud83d\ude00", r"\\\ud83d"]
)
def test_half_a_character_is_told_as_that(text: str) -> None:
    raw = b'{"model":"returns","messages":[{"role":"user","content":"%b"}]}' % text.encode()
    long = raw.replace(b"[{", b"[" + b'{"role":"user","content":"x"},' * 20_000 + b"{") + b" " * 100
    assert "half of a surrogate pair" in problem(raw).message == problem(long).message
    cut = raw.replace(text.encode(), rb"\\ud83d \ud83d\ude00")[:-1]
    assert "half of a surrogate pair" not in problem(cut).message


@pytest.mark.parametrize("ends", ['"', '" "b":1}', '", "b": NaN}', '"]'])
@pytest.mark.parametrize("padding", range(12))
def test_whole_characters_beside_a_fault_are_no_halves(ends: str, padding: int) -> None:
    raw = rb'{"model":"returns","user":"%b%b' % (b"x" * padding, rb"\ud83d\ude00" * 5) + ends.encode()
    assert problem(raw).message.startswith("The body is not valid JSON")


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], ["a", 1], [None]])
def test_token_ids_are_not_taken_as_a_prompt(prompt: list[Any]) -> None:
    raw = json.dumps({"model": "returns", "prompt": prompt}).encode()
    assert problem(raw, COMPLETIONS).param == "prompt"


def test_a_session_is_the_headers_else_the_first_that_the_body_names() -> None:
    everything: dict[str, Any] = {"metadata": {"session_id": "m"}, "user": "u", "safety_identifier": "s"}
    assert read(**everything).session("h") == "h"
    for expected, name in (("m", "metadata"), ("u", "user"), ("s", "safety_identifier")):
        assert read(**everything).session(None) == expected
        del everything[name]
    assert read(prompt_cache_key="one for all").session(None) is None
    assert read(metadata={"session_id": 7}).session(None) == "7"


def test_rules_see_the_text_of_the_conversation() -> None:
    parts = [{"type": "text", "text": "A  FRAGILE\nVase"}, {"type": "image_url", "image_url": {"url": "http://x"}}]
    body = read(messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}])
    assert body.text() == "Be brief.\nA  FRAGILE\nVase\n"
    assert read(COMPLETIONS, prompt=["One", "Two"]).text() == "One Two"
    assert make_routing_request(body, "c", frozenset(), None, policy()).text == ""


def test_metadata_are_what_is_text() -> None:
    assert read(metadata={"shop": "de", "n": 1, "x": None}).metadata() == {"shop": "de"}
    assert read(metadata=None).metadata() == {}


def test_for_auto_the_text_is_taken_by_each_selector_that_is_asked_for_and_once() -> None:
    said = [{"role": "user", "content": '{"note": "torn"}'}, {"role": "user", "content": '{"note": "lost"}'}]
    body = read(messages=said, model="auto")
    with_index = policy(index=object())
    found = make_routing_request(body, "c", frozenset(), None, with_index)
    assert found.selected == '{"note": "torn"}\n{"note": "lost"}' == found.selected_by("user_turns")
    assert found.selected_by("field:note") == "lost"
    assert found.selected_by("field:note") is found.selected_by("field:note")
    assert make_routing_request(body, "c", frozenset(), None, policy()).selections is None
