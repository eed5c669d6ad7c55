"""Bounds of the fields, what reaches an engine of which only OpenAI's API is known, and the salt of a caller."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import (
    BYTES_MAX,
    GATEWAY_ALONE,
    HINTS,
    NEVER_INSIDE,
    NEVER_WITH_ADAPTERS,
    ON_REQUEST,
    WHOLE_NUMBERS,
    Fields,
)
from gateway.services import salt_of
from tests.gateway.formats.bodies import (
    DEFAULTS,
    GENERAL_PROMPT,
    MESSAGES,
    SCHEMA,
    TASK,
    VERSION,
    by_adapter,
    by_openai,
    problem,
    read,
    sent,
)

HUGE = "x" * 300_000
FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.invariant("Every field of a body has a type and a bound.")
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": 1 << 40}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"presence_penalty": "1"}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"repetition_penalty": 11}, "repetition_penalty"),
        ({"seed": 1 << 63}, "seed"),
        ({"seed": -(1 << 63) - 1}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"stop": ""}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stop": ["x", "y" * 257]}, "stop[1]"),
        ({"stop_token_ids": 7}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"stop_token_ids": [1 << 31]}, "stop_token_ids[0]"),
        ({"stop_token_ids": list(range(129))}, "stop_token_ids"),
        ({"logit_bias": {"7": 101}}, "logit_bias[...]"),
        ({"logit_bias": {"word": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {str(number): 1 for number in range(1025)}}, "logit_bias"),
        ({"min_tokens": -1}, "min_tokens"),
        ({"min_tokens": 6, "max_tokens": 5}, "min_tokens"),
        ({"min_tokens": 6, "max_completion_tokens": 5}, "min_tokens"),
        ({"min_tokens": 513}, "min_tokens"),
        ({"n": 16_384}, "n"),
        ({"include_stop_str_in_output": 1}, "include_stop_str_in_output"),
        ({"skip_special_tokens": "no"}, "skip_special_tokens"),
        ({"parallel_tool_calls": "no"}, "parallel_tool_calls"),
        ({"reasoning_effort": "x" * 33}, "reasoning_effort"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"tools": [FUNCTION] * 513}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": HUGE}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": SCHEMA | {"more": HUGE}}, "response_format"),
        ({"structured_outputs": {"regex": "a" * 4097}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": ["a"] * 1025}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": {"a": HUGE}}}, "structured_outputs"),
        ({"structured_outputs": {"grammar": "a" * 16_385}}, "structured_outputs.grammar"),
        ({"metadata": {"a": HUGE}}, "metadata"),
        ({"metadata": {str(number): "x" for number in range(65)}}, "metadata"),
        ({"user": "x" * 513}, "user"),
        ({"prompt_cache_key": "x" * 513}, "prompt_cache_key"),
        ({"prompt_logprobs": 21}, "prompt_logprobs"),
        ({"ignore_eos": "yes"}, "ignore_eos"),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.parametrize("named", ["task", "pool"])
def test_every_bound_holds_for_tasks_and_for_pools_and_the_field_is_named(
    fields: dict[str, Any], param: str, named: str
) -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES, **fields}).encode()
    allowed = replace(TASK, parameters_allowed=ON_REQUEST)
    found = problem(raw, task=allowed if named == "task" else None)
    assert (found.code, found.param) == ("invalid_value", param)
    assert len(found.message) < 300


@pytest.mark.parametrize(
    "fields",
    [
        {"top_k": -1, "min_p": 0.1, "repetition_penalty": 1.1, "seed": -(1 << 63)},
        {"stop": ["x"] * 16, "stop_token_ids": [0, (1 << 31) - 1], "logit_bias": {"50256": -100}},
        {"min_tokens": 5, "max_tokens": 5},
        {"tools": [FUNCTION], "tool_choice": FUNCTION},
        {"tools": [FUNCTION], "tool_choice": "required", "parallel_tool_calls": False},
        {"structured_outputs": {"json": {"type": "object"}}},
        {"structured_outputs": {"json": '{"type": "object"}', "disable_any_whitespace": True}},
        {"response_format": SCHEMA},
        {"logprobs": True, "top_logprobs": 20},
    ],
    ids=str,
)
def test_what_is_within_the_bounds_reaches_the_engine_as_it_came(fields: dict[str, Any]) -> None:
    body = read(**fields)
    body.check(TASK, DEFAULTS)
    assert sent(body, by_adapter()).items() >= fields.items()


def test_a_part_that_vllm_would_take_for_a_medium_by_its_uuid_needs_permission() -> None:
    part = {"type": "text", "text": "see", "uuid": "1", "image_url": {"url": "http://169.254.169.254/"}}
    assert problem(read(messages=[{"role": "user", "content": [part]}])).param == "messages"


@pytest.mark.parametrize("name", sorted(GATEWAY_ALONE | {"kv_transfer_params", "vllm_xargs"}))
def test_what_would_steer_the_engine_itself_is_refused(name: str) -> None:
    assert problem(read(**{name: "x"})).code == "parameter_not_allowed"


def test_the_tables_name_fields_that_exist() -> None:
    for wire_format in (CHAT, COMPLETIONS):
        assert wire_format.openai - ON_REQUEST <= wire_format.known_fields
    known = CHAT.known_fields | COMPLETIONS.known_fields | ON_REQUEST
    assert BYTES_MAX.keys() | NEVER_INSIDE.keys() | NEVER_WITH_ADAPTERS | HINTS <= known
    assert set(Fields.__struct_fields__) >= WHOLE_NUMBERS


# An engine of which no more is known than OpenAI's API.

VLLMS_OWN: dict[str, Any] = {
    "top_k": 20,
    "min_p": 0.1,
    "repetition_penalty": 1.2,
    "min_tokens": 4,
    "stop_token_ids": [7],
    "include_stop_str_in_output": True,
    "skip_special_tokens": False,
    "structured_outputs": {"regex": "a+"},
}


@pytest.mark.parametrize("name", sorted(VLLMS_OWN))
def test_a_caller_who_names_the_pool_may_not_ask_for_what_its_engine_does_not_know(name: str) -> None:
    body = read(**{name: VLLMS_OWN[name]})
    allowed = replace(DEFAULTS, parameters_allowed=frozenset({"regex"}))
    with pytest.raises(Exception, match=name) as raised:
        body.check(None, allowed, "openai")
    assert (raised.value.code, raised.value.param) == ("parameter_not_allowed", name)  # type: ignore[attr-defined]
    body.check(None, allowed, "vllm")


def test_what_asks_for_nothing_is_left_out_without_a_word() -> None:
    body = read(top_k=-1, min_p=0, repetition_penalty=1.0, min_tokens=None, skip_special_tokens=True, stop_token_ids=[])
    body.check(None, DEFAULTS, "openai")
    assert sent(body, by_openai(general_prompt=False)) == {"model": "general-base", "messages": MESSAGES}


def test_where_it_stands_in_what_it_does_not_know_is_left_out_and_named() -> None:
    asked = {name: value for name, value in VLLMS_OWN.items() if name != "structured_outputs"}
    body = read(**asked, temperature=0.5, stream=True, user="u")
    body.check(TASK, DEFAULTS, "openai")
    assert body.lost_by("openai") == sorted(asked)
    assert body.lost_by("vllm") == []
    found = sent(body, by_openai())
    assert found.keys() == {"model", "messages", "temperature", "stream", "stream_options", "response_format"}
    assert found["stream_options"] == {"include_usage": True}


def test_the_general_prompts_own_sampling_is_told_in_openais_words_too() -> None:
    view = replace(
        VERSION, general_prompt=replace(GENERAL_PROMPT, sampling={"temperature": 0, "top_k": 1, "min_p": 0.1})
    )
    found = sent(read(), replace(by_openai(), general_prompt_of=view))
    assert found["temperature"] == 0
    assert not found.keys() & {"top_k", "min_p"}


@pytest.mark.parametrize("schema", [{"type": "object"}, '{"type": "object"}'], ids=["object", "text"])
def test_a_json_schema_for_vllm_is_told_as_a_response_format(schema: Any) -> None:
    body = read(structured_outputs={"json": schema})
    body.check(None, DEFAULTS, "openai")
    form = sent(body, by_openai())["response_format"]
    assert form == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "object"}}}


def test_an_answer_that_would_lose_its_form_is_refused_for_now() -> None:
    body = read(structured_outputs={"choice": ["approve", "refuse"]})
    body.check(TASK, DEFAULTS, "openai")
    with pytest.raises(Exception, match="structured_outputs") as raised:
        body.for_engine(by_openai())
    assert (raised.value.code, raised.value.status) == ("no_replica", 503)  # type: ignore[attr-defined]
    assert sent(body, by_adapter())["structured_outputs"] == {"choice": ["approve", "refuse"]}


def test_the_completions_endpoint_has_openais_fields_only() -> None:
    body = read(COMPLETIONS, suffix="s", logprobs=2, top_k=3)
    assert body.lost_by("openai") == ["top_k"]
    assert sent(body, by_openai(general_prompt=False)).keys() == {"model", "prompt", "suffix", "logprobs"}
    assert read(COMPLETIONS, response_format=SCHEMA).lost_by("openai") == ["response_format"]


# The salt.


def test_a_callers_salt_is_its_own_and_tells_nothing() -> None:
    salts = {
        salt_of(secret, caller) for secret in (b"one" * 8, b"two" * 8) for caller in ("caller000001", "caller000002")
    }
    assert len(salts) == 4
    assert all(len(salt) == 32 and "caller" not in salt for salt in salts)


def test_the_salt_goes_to_vllm_and_to_nobody_else_and_stays_with_a_copy() -> None:
    body = read(stream=True)
    assert "cache_salt" not in sent(body, by_adapter())
    body.cache_salt = "s" * 32
    assert sent(body, by_adapter())["cache_salt"] == "s" * 32
    assert sent(body.whole(), by_adapter())["cache_salt"] == "s" * 32
    assert "cache_salt" not in sent(body, by_openai())


def test_a_field_inside_of_another_that_is_not_known_is_named() -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES, "structured_outputs": {"_backend": "x"}}).encode()
    found = problem(raw, task=replace(TASK, parameters_allowed=ON_REQUEST))
    assert (found.code, found.param) == ("unknown_parameter", "structured_outputs._backend")
