"""The fake engine against real clients: like vLLM where vLLM was seen to be so; hang-ups, stops and starts."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import jsonschema_rs
import openai
import pytest
from openai import AsyncOpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.adapters import write_adapter
from tests.fakes.asking import ASK, chat, events, post, read_until_broken, text_of
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import (
    Silent,
    Status,
)
from tests.fakes.lora import Refused

# Like vLLM


async def test_an_answer_has_the_fields_that_vllm_sends(http: httpx.AsyncClient) -> None:
    answer = await post(http, chat(), headers={"X-Request-Id": "abc"})
    body = answer.json()
    assert list(body) == [
        *("id", "object", "created", "model", "choices", "service_tier", "system_fingerprint", "usage"),
        *("prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params", "ec_transfer_params", "metrics"),
    ]
    assert (body["id"], body["model"]) == ("chatcmpl-abc", "base-model")
    assert list(body["choices"][0]) == [
        *("index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids", "routed_experts")
    ]
    assert list(body["choices"][0]["message"]) == [
        *("role", "content", "refusal", "annotations", "audio", "function_call", "reasoning")
    ]
    assert body["usage"]["completion_tokens"] == 16
    assert body["usage"]["total_tokens"] == body["usage"]["prompt_tokens"] + 16


async def test_a_stream_says_the_same_as_the_whole_answer_and_its_usage_last(http: httpx.AsyncClient) -> None:
    whole = (await post(http, chat())).json()
    found = events(await post(http, chat(stream=True, stream_options={"include_usage": True})))
    assert found[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(found) == whole["choices"][0]["message"]["content"]
    assert [event["choices"][0]["finish_reason"] for event in found[:-2]] == [None] * 16 + ["stop"]
    assert found[-2]["choices"] == []
    assert found[-2]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
    assert found[-1] == "[DONE]"


async def test_continuous_usage_counts_up(http: httpx.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = events(await post(http, chat(stream=True, stream_options=options, max_tokens=3)))
    assert [event["usage"]["completion_tokens"] for event in found[:-1]] == [0, 1, 2, 3, 3]


async def test_a_stream_without_stream_options_has_no_usage(http: httpx.AsyncClient) -> None:
    assert all("usage" not in event for event in events(await post(http, chat(stream=True)))[:-1])


@pytest.mark.parametrize("stream", [False, True])
async def test_text_completions_are_answered_in_their_own_shape(http: httpx.AsyncClient, stream: bool) -> None:
    body = {"model": "base-model", "prompt": "Once", "max_tokens": 4, "stream": stream, "logprobs": 2}
    answer = await http.post("/v1/completions", json=body, headers={"x-request-id": "abc"})
    if stream:
        found = events(answer)[:-1]
        assert {event["id"] for event in found} == {"cmpl-abc"}
        assert "".join(event["choices"][0]["text"] for event in found).startswith("base-model#")
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        assert found[2]["choices"][0]["logprobs"]["text_offset"] == [len("base-model#123456 says:")]
    else:
        told = answer.json()
        assert (told["id"], told["object"]) == ("cmpl-abc", "text_completion")
        assert [len(one) for one in told["choices"][0]["logprobs"]["top_logprobs"]] == [3, 3, 3, 3]


async def test_the_sdk_reads_whole_and_streamed_answers(sdk: AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(
        model="base-model", messages=[{"role": "user", "content": "Hi"}], logprobs=True, top_logprobs=3
    )
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [3] * 16
    assert "".join(token.token for token in logprobs.content) == whole.choices[0].message.content
    streamed = ""
    async for chunk in await sdk.chat.completions.create(
        model="base-model", messages=[{"role": "user", "content": "Hi"}], stream=True
    ):
        streamed += chunk.choices[0].delta.content or ""
    assert streamed == whole.choices[0].message.content


async def test_refusals_are_the_sdks_own_errors_in_vllms_words(engine: FakeEngine, sdk: AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match=r"The model `nope` does not exist\. Valid aliases: base-model\."):
        await sdk.chat.completions.create(model="nope", messages=[{"role": "user", "content": "Hi"}])
    with pytest.raises(openai.BadRequestError, match="max_tokens=99999 cannot be greater"):
        await sdk.chat.completions.create(
            model="base-model", messages=[{"role": "user", "content": "Hi"}], max_tokens=99999
        )
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        await sdk.chat.completions.create(model="base-model", messages=[{"role": "user", "content": "Hi " * 3000}])
    assert [seen.outcome for seen in engine.requests] == ["refused"] * 3


@pytest.mark.parametrize("raw", [b"{nope", b"[]", b"\xff", b'{"model": "base-model"}', b'{"messages": "Hi"}', b""])
async def test_a_body_that_is_no_request_gets_400(http: httpx.AsyncClient, raw: bytes) -> None:
    answer = await http.post("/v1/chat/completions", content=raw, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == 400


async def test_stop_n_and_max_tokens_are_honoured(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.answers["*"] = "one two three four five"
    told = (await post(http, chat(stop=[" four"]))).json()["choices"][0]
    assert (told["message"]["content"], told["finish_reason"], told["stop_reason"]) == (
        "one two three",
        "stop",
        " four",
    )
    told = (await post(http, chat(max_tokens=2))).json()["choices"][0]
    assert (told["message"]["content"], told["finish_reason"]) == ("one two", "length")
    del engine.answers["*"]
    body = (await post(http, chat(n=3))).json()
    assert len({choice["message"]["content"] for choice in body["choices"]}) == 3
    assert body["usage"]["completion_tokens"] == 48
    found = events(await post(http, chat(n=2, stream=True)))
    assert sorted({event["choices"][0]["index"] for event in found[:-1]}) == [0, 1]


async def test_a_schema_is_kept(http: httpx.AsyncClient) -> None:
    schema = {
        "type": "object",
        "properties": {
            "decision": {"enum": ["approve", "deny", "escalate"]},
            "days": {"type": "integer", "minimum": 3},
            "note": {"anyOf": [{"type": "string", "minLength": 9}, {"type": "null"}]},
            "items": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/item"}},
        },
        "required": ["decision", "days", "note", "items"],
        "$defs": {"item": {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}},
    }
    form = {"type": "json_schema", "json_schema": {"name": "returns", "schema": schema}}
    answer = (await post(http, chat(response_format=form))).json()["choices"][0]
    jsonschema_rs.validate(schema, json.loads(answer["message"]["content"]))
    assert answer["finish_reason"] == "stop"
    streamed = text_of(events(await post(http, chat(stream=True, structured_outputs={"json": schema}))))
    assert streamed == answer["message"]["content"]
    told = (await post(http, chat(structured_outputs={"choice": ["yes", "no"]}))).json()
    assert told["choices"][0]["message"]["content"] == "yes"


async def test_tools_are_called_when_asked_and_refused_on_auto(sdk: AsyncOpenAI, engine: FakeEngine) -> None:
    order = {"type": "object", "properties": {"order": {"type": "string"}, "days": {"type": "integer"}}}
    ask: dict[str, Any] = {
        "model": "base-model",
        "messages": ASK,
        "tools": [{"type": "function", "function": {"name": "look_up", "parameters": order}}],
    }
    told = (await sdk.chat.completions.create(**ask, tool_choice="required")).choices[0]
    assert told.finish_reason == "tool_calls"
    call = (told.message.tool_calls or [])[0]
    assert call.type == "function"
    jsonschema_rs.validate(order, json.loads(call.function.arguments))
    arguments, names, finish = "", [], None
    async for chunk in await sdk.chat.completions.create(**ask, tool_choice="required", stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            assert delta.function is not None
            names += [delta.function.name] if delta.function.name else []
            arguments += delta.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    assert (names, arguments, finish) == (["look_up"], call.function.arguments, "tool_calls")
    named: Any = {"type": "function", "function": {"name": "look_up"}}
    assert (await sdk.chat.completions.create(**ask, tool_choice=named)).choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="enable-auto-tool-choice"):
        await sdk.chat.completions.create(**ask)
    engine.auto_tool_choice = True
    assert (await sdk.chat.completions.create(**ask)).choices[0].message.content


async def test_an_answer_is_gone_on_with_where_the_engine_can(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    whole = (await post(http, chat())).json()["choices"][0]["message"]["content"]
    begun = whole[: whole.index(" says:") + 6]
    more: dict[str, Any] = {"continue_final_message": True, "add_generation_prompt": False}
    body = chat(**more) | {"messages": [*ASK, {"role": "assistant", "content": begun}]}
    rest = await post(http, body)
    assert begun + rest.json()["choices"][0]["message"]["content"] == whole
    both = await post(http, body | {"add_generation_prompt": True})
    assert both.status_code == 400
    engine.continue_final_message = False
    refused = await post(http, body)
    assert (refused.status_code, "prefill" in refused.text) == (400, True)


async def test_the_key_guards_v1_and_not_adapters(http: httpx.AsyncClient, engine: FakeEngine, tmp_path: Path) -> None:
    engine.api_key = "secret"
    assert (await http.get("/v1/models")).status_code == 401
    assert (await post(http, chat())).json() == {"error": "Unauthorized"}
    key = {"Authorization": "Bearer secret"}
    assert (await post(http, chat(), headers=key)).status_code == 200
    assert (await http.get("/health")).status_code == 200
    open_door = await http.post("/adapters", json={"name": "hole", "src": str(write_adapter(tmp_path))})
    assert open_door.status_code == 200
    assert (await http.delete("/adapters/hole")).status_code == 200


async def test_version_metrics_and_unknown_paths(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.version = "0.33.0"
    assert (await http.get("/version")).json() == {"version": "0.33.0"}
    await post(http, chat())
    families = {one.name: one for one in text_string_to_metric_families((await http.get("/metrics")).text)}
    assert families["vllm:generation_tokens"].samples[0].value == 16
    assert families["vllm:num_requests_running"].samples[0].labels == {"engine": "0", "model_name": "base-model"}
    assert (await http.get("/nope")).status_code == 404


async def test_the_engine_keeps_what_it_was_sent(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    await post(http, chat(temperature=0.3), headers={"X-Request-Id": "r-1", "traceparent": "00-1"})
    seen = engine.requests[-1]
    assert (seen.model, seen.request_id, seen.headers["traceparent"]) == ("base-model", "r-1", "00-1")
    assert (seen.body["temperature"], seen.prompt) == (0.3, "user: May I return it?")
    assert (seen.outcome, seen.tokens, engine.in_flight, engine.requests_total) == ("done", 16, 0, 1)
    await http.get("/v1/models")
    assert (engine.calls[-1].path, engine.calls[-1].status) == ("/v1/models", 200)


async def test_a_test_words_its_own_answers(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    engine.answers["base-model"] = lambda body: f"{len(body['messages'])} message"
    assert (await post(http, chat())).json()["choices"][0]["message"]["content"] == "1 message"


async def test_connections_are_kept_alive_also_after_errors(http: httpx.AsyncClient, engine: FakeEngine) -> None:
    rule = engine.faults.add(Status(503), times=1)
    for stream in (False, True, False):
        await post(http, chat(stream=stream))
    await post(http, chat("nope"))
    assert (rule.shown, engine.connections_opened, engine.connections) == (1, 1, 1)


async def test_pipelined_and_http_1_0_requests_are_answered_in_order(engine: FakeEngine) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\n\r\nGET /health HTTP/1.0\r\n\r\n")
    got = await reader.read()
    assert got.count(b"HTTP/1.1 200 OK") == 2
    assert got.index(b'{"version"') < got.rindex(b"HTTP/1.1")
    writer.close()


async def test_a_body_sent_in_pieces_and_garbage_are_read_as_what_they_are(engine: FakeEngine) -> None:
    body = json.dumps(chat()).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nexpect: 100-continue\r\n"
    writer.write(f"{head}connection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode())
    assert await reader.readline() == b"HTTP/1.1 100 Continue\r\n"
    writer.write(body[:9])
    await writer.drain()
    writer.write(body[9:])
    assert b"HTTP/1.1 200 OK" in await reader.read()
    writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    writer.write(b"no http at all\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400")
    writer.close()


# The caller hangs up


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("phase", ["before the first token", "in the middle"])
async def test_a_hang_up_is_noticed_with_the_tokens_made(engine: FakeEngine, stream: bool, phase: str) -> None:
    engine.n_tokens = 1000
    if phase == "in the middle":
        engine.token_delay_seconds = 0.005
    else:
        engine.first_token_delay_seconds = 30
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(session.post(f"{engine.url}/v1/chat/completions", json=chat(stream=stream)))
        wanted = 3 if phase == "in the middle" else 0
        await engine.until(lambda: bool(engine.requests) and engine.requests[0].tokens >= wanted)
        assert engine.in_flight == 1
        if stream:
            (await asking).close()
        else:
            asking.cancel()
        hung_up_at = time.monotonic()
        await engine.until(lambda: bool(engine.cancelled))
    seen = engine.cancelled[0]
    assert seen.ended_at is not None
    assert seen.ended_at - hung_up_at < 0.1
    assert wanted <= seen.tokens < 1000
    assert (engine.in_flight, engine.count.finished["abort"]) == (0, 1)


async def test_many_at_once_leave_nothing_in_flight(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.token_delay_seconds = 0.001
    answers = await asyncio.gather(*(post(http, chat(stream=number % 2 == 0)) for number in range(40)))
    assert {answer.status_code for answer in answers} == {200}
    assert engine.in_flight == 0


# Stopping and starting


async def test_a_restart_keeps_the_port_and_loses_the_adapters(
    engine: FakeEngine, http: httpx.AsyncClient, v1: Path
) -> None:
    engine.load("returns@v1", v1)
    url = engine.url
    await engine.kill()
    assert not engine.listening
    with pytest.raises(httpx.ConnectError):
        await http.get("/health")
    await engine.restart()
    assert engine.url == url
    assert len((await http.get("/v1/models")).json()["data"]) == 1
    with pytest.raises(Refused):
        engine.adapters.unload("returns@v1")


async def test_a_kill_breaks_what_runs_and_does_not_count_it_as_a_hang_up(engine: FakeEngine) -> None:
    engine.token_delay_seconds = 0.01
    engine.n_tokens = 1000
    broken = asyncio.create_task(read_until_broken(engine.url, chat(stream=True)))
    await engine.until(lambda: engine.in_flight == 1 and engine.requests[0].tokens > 2)
    await engine.kill()
    got, error = await broken
    assert got
    assert error is not None
    assert (engine.requests[0].outcome, engine.in_flight) == ("failed", 0)


async def test_a_draining_engine_finishes_and_refuses_with_500(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.token_delay_seconds = 0.02
    running = asyncio.create_task(post(http, chat(stream=True)))
    await engine.until(lambda: engine.in_flight == 1)
    stopping = asyncio.create_task(engine.shut_down(timeout_seconds=5))
    await engine.until(lambda: engine.draining)
    assert (await post(http, chat())).status_code == 500
    assert (await http.get("/health")).status_code == 200
    assert events(await running)[-1] == "[DONE]"
    await stopping
    assert not engine.listening


async def test_what_takes_too_long_is_cut_off_by_a_shut_down(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.faults.add(Silent())
    running = asyncio.create_task(post(http, chat()))
    await engine.until(lambda: engine.in_flight == 1)
    await engine.shut_down(timeout_seconds=0.01)
    assert not engine.listening
    with pytest.raises(httpx.TransportError):
        await running


async def test_a_dead_engine_stops_though_an_answer_hangs(engine: FakeEngine, http: httpx.AsyncClient) -> None:
    engine.faults.add(Silent())
    running = asyncio.create_task(post(http, chat()))
    await engine.until(lambda: engine.in_flight == 1)
    engine.die()
    await engine.until(engine.ended.is_set)
    assert not engine.listening
    with pytest.raises(httpx.TransportError):
        await running


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.fakes.engine", "--token-delay-seconds", "0.05", "--shutdown-timeout", "5"]
    command += [
        "--model",
        "small",
        "--fault",
        "f03-500-once",
        "--fault",
        '{"faults": [{"kind": "reset"}], "model": "x"}',
    ]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        yield process
        process.kill()


async def test_the_command_prints_its_url_shows_faults_and_finishes_on_sigterm(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    url = (await asyncio.to_thread(process.stdout.readline)).strip()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http:
        assert (await post(http, chat("small"))).status_code == 500
        with pytest.raises(httpx.ReadError):
            await post(http, chat("x"))
        running = asyncio.create_task(post(http, chat("small", stream=True)))
        async with asyncio.timeout(30):
            while not (state := (await http.get("/__state")).json())["in_flight"]:
                pass
        assert state["pid"] == process.pid
        os.kill(process.pid, signal.SIGTERM)
        assert events(await running)[-1] == "[DONE]"
    assert await asyncio.to_thread(process.wait, 30) == 0


async def test_a_killed_command_ends_the_answer_without_its_last_chunk(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    url = (await asyncio.to_thread(process.stdout.readline)).strip()
    async with httpx.AsyncClient(base_url=url, timeout=60) as http, asyncio.timeout(30):
        await http.request("DELETE", "/__faults")
        asking = asyncio.create_task(read_until_broken(url, chat("small", stream=True)))
        while not any(one["tokens"] for one in (await http.get("/__state")).json()["requests"]):
            pass
    process.kill()
    got, broke = await asking
    assert b'"content"' in got
    assert b"[DONE]" not in got
    assert broke is not None
