"""Requests as published clients send them: guidellm 0.6, `vllm bench serve` 0.33, lm-eval 0.4, Codex and Claude Code.

What needs a permission says so without it; with the settings that docs/reference/api.md names for these
clients, all of it works.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SETTINGS: dict[str, Any] = {"parameters_allowed": ["ignore_eos"], "n_max": 4, "max_tokens_max": 512}
SETTINGS |= {"unknown_fields": "drop"}
TEXT = "Is a sealed toaster refunded after 3 days?"
GUIDELLM: dict[str, Any] = {
    "model": "returns",
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    "ignore_eos": True,
}
BENCH: dict[str, Any] = {"model": "returns", "stream": True, "stream_options": {"include_usage": True}}
LM_EVAL: dict[str, Any] = {
    "model": "returns",
    "max_tokens": 256,
    "temperature": 0,
    "stop": ["Question:", "</s>", "<|im_end|>"],
    "seed": 1234,
}
PARTS = [{"role": "user", "content": [{"type": "text", "text": TEXT}]}]


@pytest.fixture
async def measured(configure: Configure, make_adapter: MakeAdapter) -> AsyncIterator[RunningGateway]:
    """A gateway with the settings for these clients."""
    async with run_gateway(configure(tasks={"returns": SETTINGS})) as running:
        await running.place(make_adapter(1))
        yield running


async def events(http: httpx.AsyncClient, path: str, body: dict[str, Any], **headers: str) -> list[Any]:
    """A stream's events as these clients read it, [DONE] seen and left out."""
    async with http.stream("POST", path, json=body, headers=headers) as answer:
        text = (await answer.aread()).decode()
        assert answer.status_code == 200, text
    found = [part.removeprefix("data: ") for part in text.strip().split("\n\n")]
    assert found.pop() == "[DONE]"
    return [json.loads(one) for one in found]


def reaches(engine: FakeEngine, body: dict[str, Any]) -> None:
    """The engine got each field as the client sent it, null and the name of the model aside."""
    seen = engine.requests[-1].body
    wanted = {name: value for name, value in body.items() if value is not None and name != "model"}
    assert {name: seen.get(name) for name in wanted} == wanted


# ---- Codex and Claude Code ----------------------------------------------------------------------

CODEX: dict[str, Any] = {
    "model": "returns",
    "instructions": "You are a coding agent.",
    "input": [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "The sandbox is off."}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]},
        {"type": "reasoning", "summary": [], "content": None, "encrypted_content": None},
        {"type": "function_call", "name": "shell", "arguments": '{"command":["ls"]}', "call_id": "call_1"},
        {"type": "function_call_output", "call_id": "call_1", "output": "README.md"},
    ],
    "tools": [{"type": "function", "name": "shell", "description": "x", "strict": False, "parameters": {}}],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": "medium", "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "service_tier": "priority",
    "prompt_cache_key": "0199-1",
    "text": {"verbosity": "low"},
    "client_metadata": {"x-codex-installation-id": "1"},
    "context_management": [{"type": "compaction", "compact_threshold": 200_000}],  # of OpenAI's Agents SDK
}
CLAUDE_CODE: dict[str, Any] = {
    "model": "returns",
    "max_tokens": 64,
    "stream": True,
    "system": [
        {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1.0; cc_entrypoint=cli; cch=1a2b3;"},
        {"type": "text", "text": "You are a coding agent.", "cache_control": {"type": "ephemeral"}},
    ],
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": TEXT, "cache_control": {"type": "ephemeral"}}]},
        {"role": "system", "content": "The sandbox is off."},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": ""},
                {"type": "tool_use", "id": "call_1", "name": "shell", "input": {"command": ["ls"]}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", "content": "README.md"}]},
    ],
    "tools": [{"name": "shell", "description": "x", "input_schema": {}, "eager_input_streaming": True}],
    "metadata": {"user_id": '{"device_id":"1","session_id":"0199-1"}'},
    "thinking": {"type": "adaptive"},
    "output_config": {"effort": "medium"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
}


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        ("/v1/responses", CODEX, "response.completed"),
        ("/v1/messages?beta=true", CLAUDE_CODE, "message_stop"),
    ],
    ids=["codex", "claude code"],
)
async def test_bodies_of_coding_agents_work_without_permissions(
    gateway: RunningGateway, small: FakeEngine, path: str, body: dict[str, Any], last: str
) -> None:
    small.auto_tool_choice = True
    async with gateway.http() as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.text.rstrip().splitlines()[-2] == f"event: {last}"
    seen = small.requests[-1].body
    assert (seen["reasoning_effort"], seen["tools"][0]["function"]["name"]) == ("medium", "shell")
    assert [message["role"] for message in seen["messages"]] == ["system", "user", "assistant", "tool"]
    assert seen["messages"][0]["content"] == "You are a coding agent.\n\nThe sandbox is off."
    assert not seen.keys() & {"client_metadata", "context_management", "verbosity", "metadata"}


TOOLS_OF_SERVERS = [
    (
        "/v1/responses",
        CODEX | {"tools": [*CODEX["tools"], {"type": "web_search"}, {"type": "namespace", "name": "mcp", "tools": []}]},
        ["tools[1].type=web_search", "tools[2].type=namespace", "verbosity"],
    ),
    (
        "/v1/messages",
        CLAUDE_CODE | {"tools": [{"type": "web_search_20250305", "name": "web_search"}, *CLAUDE_CODE["tools"]]},
        ["tools[0].type=web_search_20250305"],
    ),
]


@pytest.mark.parametrize(("path", "body", "names"), TOOLS_OF_SERVERS, ids=["codex", "claude code"])
async def test_tools_that_nobody_carries_out_are_dropped_and_told(
    measured: RunningGateway, small: FakeEngine, path: str, body: dict[str, Any], names: list[str]
) -> None:
    small.auto_tool_choice = True
    async with measured.http() as http:
        answer = await http.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-apprentice-dropped"].split(",") == names
    assert [tool["function"]["name"] for tool in small.requests[-1].body["tools"]] == ["shell"]


@pytest.mark.parametrize(
    ("path", "more"),
    [
        ("/v1/responses", {"tools": [{"type": "web_search"}], "tool_choice": "required"}),
        ("/v1/messages", {"tools": [{"type": "mcp_toolset", "mcp_server_name": "x"}], "tool_choice": {"type": "any"}}),
        (
            "/v1/messages",
            {
                "tools": [{"type": "web_search_20250305", "name": "web_search"}, *CLAUDE_CODE["tools"]],
                "tool_choice": {"type": "tool", "name": "web_search"},
            },
        ),
    ],
)
async def test_choice_of_a_tool_that_nobody_carries_out_is_dropped_with_it(
    measured: RunningGateway, small: FakeEngine, path: str, more: dict[str, Any]
) -> None:
    small.auto_tool_choice = True
    async with measured.http() as http:
        answer = await http.post(path, json=(CODEX if path == "/v1/responses" else CLAUDE_CODE) | more)
    assert answer.status_code == 200, answer.text
    seen = small.requests[-1].body
    assert "tool_choice" not in seen
    assert seen.get("tools") != []


@pytest.mark.parametrize(("path", "body", "names"), TOOLS_OF_SERVERS, ids=["codex", "claude code"])
async def test_tools_that_nobody_carries_out_are_refused_by_their_type(
    gateway: RunningGateway, path: str, body: dict[str, Any], names: list[str]
) -> None:
    async with gateway.http() as http:
        error = (await http.post(path, json=body)).json()["error"]
    assert (error["code"], error["param"]) == ("unknown_parameter", names[0].partition("=")[0])
    assert names[0] in error["message"]


# ---- guidellm -----------------------------------------------------------------------------------


async def test_guidellm_finds_the_gateway_and_its_first_model(measured: RunningGateway) -> None:
    async with measured.http() as http:
        assert (await http.get("/health")).status_code == 200
        assert (await http.get("/v1/models")).json()["data"][0]["id"] == "returns"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, GUIDELLM | {"max_completion_tokens": 64, "messages": PARTS}),
        (
            CHAT,
            GUIDELLM | {"max_completion_tokens": 64, "messages": [{"role": "system", "content": "Be brief."}, *PARTS]},
        ),
        (COMPLETIONS, GUIDELLM | {"max_tokens": 64, "prompt": TEXT}),
    ],
    ids=["chat", "with a prefix", "completions"],
)
async def test_bodies_of_guidellm_work(
    measured: RunningGateway, small: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    async with measured.http() as http:
        found = await events(http, path, body)
    reaches(small, body)
    assert found[-1]["usage"]["completion_tokens"] == 8
    assert all(one["usage"]["prompt_tokens"] for one in found)


async def test_a_body_of_guidellm_names_what_has_to_be_allowed(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        answer = await http.post(CHAT, json=GUIDELLM | {"max_completion_tokens": 64, "messages": PARTS})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "ignore_eos")


# ---- vllm bench serve -----------------------------------------------------------------------------


async def test_vllm_bench_finds_the_first_model_and_its_base(measured: RunningGateway) -> None:
    async with measured.http() as http:
        first = (await http.get("/v1/models")).json()["data"][0]
    assert (first["id"], first["root"]) == ("returns", "tiny-base")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, BENCH | {"prompt": TEXT, "repetition_penalty": 1.0, "max_tokens": 128, "logprobs": None}),
        (
            COMPLETIONS,
            BENCH
            | {"prompt": TEXT, "repetition_penalty": 1.0, "max_tokens": 128, "logprobs": 2}
            | {"ignore_eos": True, "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0},
        ),
        (CHAT, BENCH | {"messages": PARTS, "max_completion_tokens": 128, "ignore_eos": True}),
        (CHAT, BENCH | {"messages": PARTS, "max_completion_tokens": 128, "temperature": 0.0, "presence_penalty": 0.5}),
    ],
    ids=["completions", "completions with sampling", "chat", "chat with sampling"],
)
async def test_bodies_of_vllm_bench_work(
    measured: RunningGateway, small: FakeEngine, path: str, body: dict[str, Any]
) -> None:
    async with measured.http() as http:
        found = await events(http, path, body, **{"x-request-id": "bench-0"})
    reaches(small, body)
    *tokens, usage = found
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 8
    assert all("delta" in one["choices"][0] or "text" in one["choices"][0] for one in tokens)


# ---- lm-eval --------------------------------------------------------------------------------------


async def test_generations_of_lm_eval_work(measured: RunningGateway, small: FakeEngine) -> None:
    chat = LM_EVAL | {"messages": [{"role": "user", "content": TEXT, "type": "text"}]}
    completion = LM_EVAL | {"prompt": TEXT}
    async with measured.http() as http:
        for path, body in ((CHAT, chat), (COMPLETIONS, completion)):
            answer = await http.post(path, json=body)
            assert answer.status_code == 200, answer.text
            reaches(small, body)
            (choice,) = answer.json()["choices"]
            assert choice["index"] == 0
            assert choice["text" if path == COMPLETIONS else "message"]


async def test_a_batch_of_lm_eval_is_taken_up_to_the_bound(measured: RunningGateway, small: FakeEngine) -> None:
    async with measured.http() as http:
        answer = await http.post(COMPLETIONS, json=LM_EVAL | {"prompt": [TEXT] * 4, "stop": []})
        beyond = await http.post(COMPLETIONS, json=LM_EVAL | {"prompt": [TEXT] * 5})
    reaches(small, {"prompt": [TEXT] * 4})
    assert answer.status_code == 200, answer.text
    assert (beyond.status_code, beyond.json()["error"]["param"]) == (400, "prompt")


async def test_arguments_of_tasks_of_lm_eval_are_dropped_or_clamped_and_told(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    body = LM_EVAL | {"messages": PARTS, "max_tokens": 32_768, "num_beams": 1, "max_new_tokens": 512}
    async with run_gateway(configure(tasks={"returns": SETTINGS | {"max_tokens_over": "clamp"}})) as running:
        await running.place(make_adapter(1))
        async with running.http() as http:
            answer = await http.post(CHAT, json=body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-apprentice-dropped"] == "max_new_tokens,num_beams"
    assert answer.headers["x-apprentice-clamped"] == "max_tokens=512"


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"prompt": [[1, 2, 3]], "max_tokens": 8}, "prompt", "token ids are not taken"),
        ({"prompt": TEXT, "max_tokens": 1, "logprobs": 1, "echo": True}, "echo", "does not allow 'echo'"),
    ],
    ids=["token ids", "likelihoods"],
)
async def test_what_lm_eval_can_not_have_is_named(
    gateway: RunningGateway, body: dict[str, Any], param: str, words: str
) -> None:
    async with gateway.http() as http:
        answer = await http.post(COMPLETIONS, json={"model": "returns", "temperature": 0, "seed": 1234, **body})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert words in error["message"]
