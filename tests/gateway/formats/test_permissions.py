"""Neutral values, hints, fields that need permission, and what is dropped or clamped instead of refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from gateway.errors import Problem
from gateway.formats.anthropic_messages import MESSAGES as ANTHROPIC_MESSAGES
from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import GATEWAY_ALONE, NEVER_INSIDE, ON_REQUEST
from gateway.formats.request_body import read_body
from gateway.formats.wire_format import WireFormat
from router.routing_data import Choice
from tests.gateway.formats.bodies import (
    DEFAULTS,
    MESSAGES,
    TASK,
    VERSION,
    by_adapter,
    by_general,
    by_openai,
    problem,
    read,
    sent,
)

DROPS = replace(TASK, unknown_fields="drop")
CLAMPS = replace(TASK, max_tokens_over="clamp")
NEUTRAL_ANYWHERE: Mapping[str, Any] = {
    "echo": False,
    "ignore_eos": False,
    "priority": 0,
    "chat_template_kwargs": {},
    "mm_processor_kwargs": {},
    "prompt_logprobs": False,
    "include_reasoning": True,
    "return_token_ids": False,
    "bad_words": [],
    "use_beam_search": False,
    "length_penalty": 1.0,
    "spaces_between_special_tokens": True,
    "functions": [],
    "function_call": "none",
    "modalities": ["text"],
}
NULLS = ("prediction", "audio", "web_search_options", "cache_salt", "request_id", "suffix", "anything")


def allows(*names: str, adapters: bool = True) -> Any:
    return replace(TASK, parameters_allowed=frozenset(names), adapters=adapters)


@pytest.mark.parametrize("wire_format", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("task", [TASK, None], ids=["task", "pool"])
def test_neutral_values_and_nulls_are_taken_everywhere_and_change_nothing(wire_format: WireFormat, task: Any) -> None:
    body = read(wire_format, **NEUTRAL_ANYWHERE, **dict.fromkeys(NULLS))
    body.check(task, DEFAULTS)
    assert sent(body, by_general(general_prompt=False)) == sent(read(wire_format), by_general(general_prompt=False))
    assert body.dropped_by("vllm") == []


@pytest.mark.parametrize("wire_format", [CHAT, COMPLETIONS])
def test_no_null_reaches_an_engine(wire_format: WireFormat) -> None:
    needed = {"model", "messages", "prompt"}
    body = read(wire_format, **dict.fromkeys((wire_format.known_fields | ON_REQUEST | GATEWAY_ALONE) - needed))
    body.check(TASK, DEFAULTS)
    assert sent(body, by_general(general_prompt=False)).keys() == {
        "model",
        "messages" if wire_format is CHAT else "prompt",
    }


@pytest.mark.parametrize("task", [TASK, DROPS, None], ids=["refuses", "drops", "pool"])
def test_a_number_that_nobody_can_read_is_refused_or_dropped_as_others(task: Any) -> None:
    """It is not a number of JSON's readers, and nobody reads it where the field is unknown."""
    body = read_body(CHAT, json.dumps({"model": "returns", "messages": MESSAGES}).encode()[:-1] + b',"zz":1e400}')
    if task is DROPS:
        body.check(task, DEFAULTS)
        assert body.dropped == ["zz"]
    else:
        assert (found := problem(body, task=task)).code == "unknown_parameter", found
    allowed = json.dumps({"model": "returns", "messages": MESSAGES}).encode()[:-1]
    body = read_body(CHAT, allowed + b',"kv_transfer_params":{"prompt_token_ids":[1],"a":1e400}}')
    assert problem(body, task=allows("kv_transfer_params")).param == "kv_transfer_params.prompt_token_ids"


@pytest.mark.parametrize("choice", [None, "none", "auto"])
def test_no_tools_at_all_ask_for_nothing(choice: str | None) -> None:
    """OpenAI refuses an empty list, and the answer keeps the form that it has without tools."""
    body = read(tools=[], tool_choice=choice, parallel_tool_calls=True)
    assert not body.shapes_its_answer()
    for engine in (by_adapter(), by_openai(general_prompt=False)):
        assert sent(body, engine) == sent(read(), engine)
    assert sent(read(tools=[], tool_choice="required"), by_adapter())["tools"] == []


def test_special_tokens_are_neutral_as_each_endpoint_has_them() -> None:
    read(add_special_tokens=False).check(TASK, DEFAULTS)
    read(COMPLETIONS, add_special_tokens=True).check(TASK, DEFAULTS)
    assert problem(read(add_special_tokens=True)).code == "unknown_parameter"
    assert problem(read(COMPLETIONS, add_special_tokens=False), COMPLETIONS).code == "unknown_parameter"


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("functions", "send tools"),
        ("guided_json", "send structured_outputs"),
        ("num_ctx", "set unknown_fields to 'drop'"),
    ],
)
def test_a_field_of_earlier_clients_is_refused_with_its_present_name(name: str, instead: str) -> None:
    refused = problem(read(**{name: [{"name": "weather"}]}))
    assert (refused.code, refused.param) == ("unknown_parameter", name)
    assert refused.message.endswith(f" {instead}.")


def test_zero_is_not_taken_for_false() -> None:
    assert problem(read(prompt_logprobs=0)).param == "prompt_logprobs"
    assert problem(read(priority=False)).param == "priority"


@pytest.mark.parametrize(
    ("name", "value", "whole"),
    [
        ("max_tokens", 4.0, 4),
        ("n", 2.0, 2),
        ("top_k", -1.0, -1),
        ("seed", 1e2, 100),
        ("top_logprobs", 5.0, 5),
        ("stop_token_ids", [7.0, 8], [7, 8]),
    ],
)
def test_a_whole_number_may_have_a_fraction_of_zero(name: str, value: Any, whole: Any) -> None:
    body = read(**{name: value}, top_p=1.0)
    body.check(TASK, DEFAULTS)
    assert getattr(body.read, name) == whole
    assert json.dumps(sent(body, by_adapter())[name]) == json.dumps(whole)


@pytest.mark.parametrize("value", [1e300, 1.5, float(1 << 54)])
def test_other_numbers_are_no_whole_ones(value: float) -> None:
    found = problem(json.dumps({"model": "returns", "messages": MESSAGES, "seed": value}).encode())
    assert (found.code, found.param) == ("invalid_value", "seed")


# ---- hints of OpenAI's own API ------------------------------------------------------------------

HINTED: Mapping[str, Any] = {
    "verbosity": "low",
    "modalities": ["text"],
    "prompt_cache_retention": "24h",
    "prompt_cache_options": {"mode": "explicit"},
    "prediction": {"type": "content", "content": [{"type": "text", "text": "x"}]},
}


def test_hints_reach_an_engine_that_may_know_them_and_no_other() -> None:
    body = read(**HINTED)
    body.check(TASK, DEFAULTS)
    assert sent(body, by_adapter()).keys() == {"model", "messages", "temperature", "max_tokens"}
    assert body.dropped_by("vllm") == ["prediction", "prompt_cache_options", "prompt_cache_retention", "verbosity"]
    assert sent(body, by_openai(general_prompt=False)) == {"model": "general-base", "messages": MESSAGES, **HINTED}
    assert body.dropped_by("openai") == []


@pytest.mark.parametrize(
    "value",
    [{"type": "content", "content": [{"type": "image_url"}]}, {"type": "x", "content": "x"}, {"type": "content"}],
)
def test_a_prediction_is_text(value: Any) -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES, "prediction": value}).encode()
    assert (problem(raw).param or "").startswith("prediction")


@pytest.mark.parametrize("value", [["audio"], ["text", "audio"], "text"])
def test_an_answer_in_sound_is_refused(value: Any) -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES, "modalities": value}).encode()
    assert problem(raw).code == "invalid_value"


@pytest.mark.parametrize(
    ("choice", "asked", "passed_on", "dropped"),
    [
        (by_adapter(), {"include_usage": True, "continuous_usage_stats": True}, {"continuous_usage_stats": True}, []),
        (by_adapter(), {"include_usage": False, "continuous_usage_stats": True}, {}, []),
        (by_adapter(), {"include_obfuscation": False}, {}, []),
        (by_adapter(), {"include_obfuscation": True}, {}, ["stream_options.include_obfuscation"]),
        (by_openai(), {"include_obfuscation": False}, {"include_obfuscation": False}, []),
        (
            by_openai(),
            {"include_usage": True, "continuous_usage_stats": True},
            {},
            ["stream_options.continuous_usage_stats"],
        ),
    ],
)
def test_stream_options_are_passed_on_to_who_knows_them(
    choice: Choice, asked: Any, passed_on: Any, dropped: list[str]
) -> None:
    body = read(stream=True, stream_options=asked)
    body.check(choice.task, DEFAULTS, choice.pool.engine)
    assert sent(body, choice)["stream_options"] == {"include_usage": True, **passed_on}
    assert body.dropped_by(choice.pool.engine) == dropped


@pytest.mark.parametrize(("choice", "more"), [(by_adapter(), {"continuous_usage_stats": True}), (by_openai(), {})])
def test_streamed_message_is_counted_from_the_start_where_the_engine_can(choice: Choice, more: Any) -> None:
    asked = {"model": "returns", "max_tokens": 5, "messages": MESSAGES, "stream": True}
    body = read_body(ANTHROPIC_MESSAGES, json.dumps(asked).encode())
    body.check(choice.task, DEFAULTS, choice.pool.engine)
    assert sent(body, choice)["stream_options"] == {"include_usage": True, **more}
    assert body.dropped_by(choice.pool.engine) == []
    assert body.may_go_on()


@pytest.mark.parametrize("stream", [True, False])
def test_unknown_options_of_a_stream_are_refused_or_dropped(stream: bool) -> None:
    asked = {"include_usage": True, "chunk_size": 7, "other": None}
    found = problem(read(stream=stream, stream_options=asked))
    assert (found.code, found.param) == ("unknown_parameter", "stream_options.chunk_size")
    body = read(stream=stream, stream_options=asked)
    body.check(TASK, DEFAULTS, unknown="drop")
    assert sent(body, by_adapter())["stream_options"] == {"include_usage": True}
    assert body.dropped_by("vllm") == ["stream_options.chunk_size"]


def test_unknown_options_of_a_stream_without_a_value_are_left_out() -> None:
    body = read(stream=True, stream_options={"include_usage": True, "other": None})
    body.check(TASK, DEFAULTS)
    assert body.dropped_by("vllm") == []


# ---- what may be allowed, and what never ----------------------------------------------------------


def test_roles_of_ones_own_need_permission() -> None:
    messages = [*MESSAGES, {"role": "wizard", "content": "x"}]
    found = problem(read(messages=messages))
    assert (found.code, found.param) == ("parameter_not_allowed", "messages[1].role")
    body = read(messages=messages)
    body.check(allows("roles"), DEFAULTS)
    assert sent(body, by_adapter())["messages"] == messages


def test_user_message_without_content_is_refused_and_one_that_calls_tools_is_not() -> None:
    """vLLM answers it, and a decision would rest on nothing."""
    for empty in ({"role": "user"}, {"role": "user", "content": None}):
        found = problem(read(messages=[*MESSAGES, empty]))
        assert (found.code, found.param) == ("missing_field", "messages[1].content")
    read(messages=[*MESSAGES, {"role": "assistant", "content": None}]).check(TASK, DEFAULTS)


def test_permissions_that_are_no_fields_allow_no_field() -> None:
    for name in ("roles", "media"):
        assert problem(read(**{name: True}), task=allows("roles", "media")).code == "unknown_parameter"


@pytest.mark.parametrize("value", [0, 1, True])
def test_logprobs_of_a_prompt_are_never_allowed_where_adapters_are_loaded(value: Any) -> None:
    assert problem(read(prompt_logprobs=value), task=allows("prompt_logprobs")).param == "prompt_logprobs"
    read(prompt_logprobs=value).check(allows("prompt_logprobs", adapters=False), DEFAULTS)


@pytest.mark.parametrize("logprobs", [0, 1, True])
def test_echo_with_logprobs_is_never_allowed_where_adapters_are_loaded(logprobs: Any) -> None:
    asked = {"echo": True, "logprobs": logprobs}
    assert problem(read(COMPLETIONS, **asked), COMPLETIONS, allows("echo")).param == "echo"
    read(COMPLETIONS, **asked).check(allows("echo", adapters=False), DEFAULTS)


def test_echo_alone_is_allowed_in_a_completion_and_not_in_a_chat() -> None:
    for logprobs in (None, False):
        body = read(COMPLETIONS, echo=True, logprobs=logprobs)
        body.check(allows("echo"), DEFAULTS)
        assert sent(body, by_adapter()).keys() == {"model", "prompt", "echo", "temperature", "max_tokens"}
    assert problem(read(echo=True), task=allows("echo")).param == "echo"


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in NEVER_INSIDE.items() for key in sorted(keys)])
def test_no_task_lets_a_caller_change_the_prompt_behind_the_gateways_back(name: str, key: str) -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES, name: {key: [1, 2]}}).encode()
    for limits in (allows(name), allows(name, adapters=False)):
        found = problem(raw.replace(key.encode(), key.replace("t", "\\u0074").encode()), task=limits)
        assert (found.code, found.param) == ("parameter_not_allowed", f"{name}.{key}")


def test_the_versions_template_arguments_are_used_where_the_caller_set_none() -> None:
    thinking_off = {"enable_thinking": False}
    view = replace(VERSION, sampling={"chat_template_kwargs": thinking_off})
    choice = replace(by_adapter(), version=view)
    assert sent(read(), choice)["chat_template_kwargs"] == thinking_off
    assert sent(read(chat_template_kwargs={"enable_thinking": True}), choice)["chat_template_kwargs"] == {
        "enable_thinking": True
    }
    assert "chat_template_kwargs" not in sent(read(COMPLETIONS), choice)
    general = replace(
        VERSION, general_prompt=replace(VERSION.general_prompt, sampling={"chat_template_kwargs": thinking_off})
    )
    assert sent(read(), replace(by_general(), general_prompt_of=general))["chat_template_kwargs"] == thinking_off
    assert "chat_template_kwargs" not in sent(read(), replace(by_openai(), general_prompt_of=general))


# ---- dropped or clamped instead of refused --------------------------------------------------------


def test_unknown_fields_are_dropped_and_named_where_the_task_or_the_key_says_so() -> None:
    asked = {"frobnicate": 1, "ignore_eos": True, "priority": 5, "temperature": 0.5}
    for task, unknown in ((DROPS, None), (TASK, "drop")):
        body = read(**asked)
        body.check(task, DEFAULTS, unknown=unknown)  # type: ignore[arg-type]
        assert sent(body, by_general(general_prompt=False)).keys() == {"model", "messages", "temperature"}
        assert body.dropped_by("vllm") == ["frobnicate", "ignore_eos", "priority"]
        assert body.read.ignore_eos is None
        assert sent(body.whole(), by_general(general_prompt=False)).keys() == {"model", "messages", "temperature"}
    with pytest.raises(Problem):
        read(**asked).check(DROPS, DEFAULTS, unknown="refuse")


def test_a_dropped_name_can_break_no_header() -> None:
    body = read(**{"x\r\nset-cookie: a=b": 1, "ä" * 100: 1}, **{f"n{number}": 1 for number in range(100)})
    body.check(DROPS, DEFAULTS)
    names = body.dropped_by("vllm")
    assert len(names) == 32
    assert all(len(name) <= 64 and name.isascii() and name.isprintable() and "," not in name for name in body.dropped)


@pytest.mark.parametrize("fields", [{"messages": [{"role": "wizard", "content": "x"}]}, {"temperature": 3}])
def test_what_is_wrong_is_refused_though_unknown_fields_are_dropped(fields: dict[str, Any]) -> None:
    raw = json.dumps({"model": "returns", "messages": MESSAGES, **fields}).encode()
    assert problem(raw, task=DROPS).status == 400


def test_named_pool_drops_what_its_engine_does_not_know_but_never_the_answer_form() -> None:
    drops = replace(DEFAULTS, unknown_fields="drop")
    body = read(top_k=5, frobnicate=1)
    body.check(None, drops, "openai")
    assert sent(body, by_openai(general_prompt=False)) == {"model": "general-base", "messages": MESSAGES}
    assert body.dropped_by("openai") == ["frobnicate", "top_k"]
    with pytest.raises(Problem) as raised:
        read(structured_outputs={"choice": ["a", "b"]}).check(None, drops, "openai")
    assert (raised.value.code, raised.value.param) == ("parameter_not_allowed", "structured_outputs")


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_more_tokens_than_the_bound_are_clamped_where_the_task_says_so(name: str) -> None:
    body = read(**{name: 100_000})
    body.check(CLAMPS, DEFAULTS)
    assert body.clamped == f"{name}=512"
    assert sent(body, by_adapter())[name] == 512
    within = read(**{name: 512})
    within.check(CLAMPS, DEFAULTS)
    assert not within.clamped


def test_where_a_request_has_to_name_a_limit_it_is_always_bounded() -> None:
    fields = {"model": "returns", "max_tokens": 4096, "messages": [{"role": "user", "content": "Hello."}]}
    body = read_body(ANTHROPIC_MESSAGES, json.dumps(fields).encode())
    body.check(TASK, DEFAULTS)
    assert body.clamped == "max_tokens=512"
    assert body.answer_tokens == 512


def test_both_bounds_are_clamped_and_the_least_of_tokens_with_them() -> None:
    body = read(max_tokens=900, min_tokens=800)
    body.check(CLAMPS, DEFAULTS)
    assert body.clamped == "max_tokens=512,min_tokens=512"
    assert problem(read(min_tokens=6, max_tokens=5), task=CLAMPS).param == "min_tokens"
