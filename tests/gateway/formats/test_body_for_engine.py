"""The body that an engine gets: names, sampling and prompts of the version in their places."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.formats.chat import CHAT
from gateway.formats.completions import COMPLETIONS
from gateway.formats.fields import HINTS, KEPT_HERE
from gateway.formats.request_body import read_body
from gateway.formats.wire_format import WireFormat
from router.routing_data import Choice
from tests.gateway.formats.bodies import (
    DEFAULTS,
    MESSAGES,
    SCHEMA,
    TASK,
    by_adapter,
    by_general,
    by_openai,
    read,
    sent,
)


def test_openais_own_engines_get_the_token_limit_that_their_newer_models_take() -> None:
    choice = by_openai()
    cloud = replace(choice, pool=replace(choice.pool, engine="openai_cloud"))
    for body in (read(max_tokens=7), read(max_completion_tokens=7), read(max_tokens=9, max_completion_tokens=7)):
        found = sent(body, cloud)
        assert (found["max_completion_tokens"], "max_tokens" in found) == (7, False)
    added = json.loads(read().for_engine(cloud, {"max_tokens": 7}))
    assert (added["max_completion_tokens"], "max_tokens" in added) == (7, False)
    assert sent(read(max_tokens=7), choice)["max_tokens"] == 7, "others may know no other name"
    prompt = read_body(COMPLETIONS, b'{"model": "general", "prompt": "Hi", "max_tokens": 7}')
    assert sent(prompt, replace(cloud, version=None, general_prompt_of=None))["max_tokens"] == 7


@pytest.mark.parametrize("general_prompt", [True, False])
def test_reasoning_of_earlier_messages_goes_to_engines_that_know_it(general_prompt: bool) -> None:
    said = [*MESSAGES, {"role": "assistant", "content": "Hm?", "reasoning": "Hm."}, *MESSAGES]
    body = read(messages=said)
    assert [each.get("reasoning") for each in sent(body, by_general(general_prompt))["messages"][-3:]] == [
        None,
        "Hm.",
        None,
    ]
    told = sent(body, by_openai(general_prompt))["messages"]
    assert told[-3:] == [*MESSAGES, {"role": "assistant", "content": "Hm?"}, *MESSAGES]
    assert len(told) == 3 + general_prompt


@pytest.mark.parametrize("wire_format", [CHAT, COMPLETIONS])
def test_all_that_is_known_passes_in_a_plain_form(wire_format: WireFormat) -> None:
    values: dict[str, Any] = {
        "model": "returns",
        "messages": MESSAGES,
        "prompt": "x",
        "stop": ["x"],
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "response_format": {"type": "text"},
        "metadata": {"a": "b"},
        "stream_options": {"include_usage": True},
        "logit_bias": {"7": 1},
        "stop_token_ids": [7],
        "structured_outputs": {"choice": ["a"]},
        "tool_choice": "auto",
        "verbosity": "low",
        "modalities": ["text"],
        "prompt_cache_options": {"mode": "explicit"},
        "prompt_cache_retention": "24h",
        "prediction": {"type": "content", "content": "x"},
    }
    values |= dict.fromkeys(("user", "prompt_cache_key", "safety_identifier", "service_tier"), "x")
    values |= dict.fromkeys(("suffix", "reasoning_effort"), "x")
    values |= dict.fromkeys(("include_stop_str_in_output", "skip_special_tokens", "parallel_tool_calls", "store"), True)
    body = read_body(
        wire_format,
        json.dumps({name: values.get(name, 1) for name in sorted(wire_format.known_fields - {"stream"})}).encode(),
    )
    body.check(TASK, DEFAULTS)
    left_out = KEPT_HERE | HINTS | {"stream"}
    assert set(sent(body, by_general(general_prompt=False))) == wire_format.known_fields - left_out


def test_an_engine_gets_its_own_name_for_what_is_to_answer() -> None:
    assert sent(read(), by_adapter())["model"] == "returns@v3"
    assert sent(read(), by_general())["model"] == "general-base"


def test_what_the_gateway_keeps_reaches_no_engine() -> None:
    body = read(
        metadata={"shop": "de"}, user="u", store=True, prompt_cache_key="k", safety_identifier="s", service_tier="x"
    )
    assert sent(body, by_adapter()).keys() == {"model", "messages", "temperature", "max_tokens"}


def test_what_is_not_changed_goes_on_as_it_came() -> None:
    raw = b'{"model": "returns", "messages": [ {"role":"user", "content":"\\u00e4", "name" : 1.50} ], "seed": 1e2}'
    out = read_body(CHAT, raw).for_engine(by_adapter())
    assert b'[ {"role":"user", "content":"\\u00e4", "name" : 1.50} ]' in out
    assert b'"seed":100' in out.replace(b" ", b"")


def test_the_versions_sampling_stands_where_the_caller_set_none() -> None:
    assert sent(read(), by_adapter()).items() >= {"temperature": 0, "max_tokens": 60}.items()
    mine = sent(read(temperature=0.5, max_tokens=5), by_adapter())
    assert (mine["temperature"], mine["max_tokens"]) == (0.5, 5)
    assert sent(read(temperature=None), by_adapter())["temperature"] == 0


def test_the_newer_name_of_a_bound_on_tokens_keeps_the_older_one_out() -> None:
    found = sent(read(max_completion_tokens=5), by_adapter())
    assert found["max_completion_tokens"] == 5
    assert "max_tokens" not in found


def test_a_general_model_gets_the_general_prompt_and_not_the_adapters_sampling() -> None:
    found = sent(read(), by_general())
    assert found["messages"] == [{"role": "system", "content": "You decide returns."}, *MESSAGES]
    assert found["response_format"] == SCHEMA
    assert found["temperature"] == 0
    assert "max_tokens" not in found


def test_a_caller_who_names_the_general_model_gets_it_as_it_is() -> None:
    found = sent(read(), by_general(general_prompt=False))
    assert found == {"model": "general-base", "messages": MESSAGES}


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_callers_own_system_message_follows_the_general_prompt(role: str) -> None:
    for content in ("Be brief.", [{"type": "text", "text": "Be brief."}]):
        found = sent(read(messages=[{"role": role, "content": content}, *MESSAGES]), by_general())
        assert found["messages"] == [{"role": "system", "content": "You decide returns.\n\nBe brief."}, *MESSAGES]


@pytest.mark.parametrize(
    "own",
    [
        {"response_format": {"type": "text"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"structured_outputs": {"choice": ["a"]}},
    ],
    ids=str,
)
def test_the_callers_own_form_of_answer_keeps_the_general_prompts_out(own: dict[str, Any]) -> None:
    assert sent(read(**own), by_general()).get("response_format") == own.get("response_format")


def test_a_completion_gets_the_general_prompt_before_its_prompt() -> None:
    assert sent(read(COMPLETIONS), by_general())["prompt"] == "You decide returns.\n\nSealed laptop."
    two = sent(read(COMPLETIONS, prompt=["a", "b"]), by_general())["prompt"]
    assert two == ["You decide returns.\n\na", "You decide returns.\n\nb"]


def test_stream_always_requests_usage_and_remembers_whether_the_caller_did() -> None:
    quiet, loud = read(stream=True), read(stream=True, stream_options={"include_usage": True})
    assert (quiet.wants_usage, loud.wants_usage) == (False, True)
    for body in (quiet, loud):
        assert sent(body, by_adapter())["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(read(), by_adapter())


def test_rules_message_goes_after_the_system_messages_and_the_general_prompt() -> None:
    def system_of(choice: Choice, **fields: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = sent(read(**fields), replace(choice, system="Mind the new policy."))["messages"]
        return found

    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    assert system_of(by_adapter(), messages=said)[0]["content"] == "Be brief.\n\nMind the new policy."
    assert system_of(by_adapter(), messages=said[1:])[0] == {"role": "system", "content": "Mind the new policy."}
    general = system_of(by_general(), messages=said)[0]["content"]
    assert general.startswith("You decide returns.")
    assert general.endswith("Be brief.\n\nMind the new policy.")
