"""Callers' less usual fields, through a gateway to the fake engines: taken, dropped, clamped."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
import yaml

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import NoDone, Status
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

CHAT = "/v1/chat/completions"
OK: dict[str, Any] = {"model": "returns", "messages": [{"role": "user", "content": "A toaster"}]}


async def test_neutral_values_are_taken_and_no_engine_gets_them(gateway: RunningGateway, small: FakeEngine) -> None:
    neutral = {"echo": False, "ignore_eos": False, "priority": 0, "chat_template_kwargs": {}, "functions": None}
    async with gateway.http() as http:
        answer = await http.post(CHAT, json=OK | neutral | {"prediction": None, "max_tokens": 4.0, "stop": None})
    assert answer.status_code == 200, answer.text
    assert "x-apprentice-dropped" not in answer.headers
    assert small.requests[-1].body.keys() - OK.keys() == {"max_tokens", "temperature", "cache_salt"}
    assert small.requests[-1].body["max_tokens"] == 4


async def test_hints_are_taken_and_told_as_dropped_by_vllm(gateway: RunningGateway, small: FakeEngine) -> None:
    hints = {"verbosity": "low", "modalities": ["text"], "prompt_cache_retention": "24h"}
    async with gateway.http() as http:
        answer = await http.post(CHAT, json=OK | hints)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-apprentice-dropped"] == "prompt_cache_retention,verbosity"
    assert not small.requests[-1].body.keys() & hints.keys()


async def test_a_pool_that_is_named_allows_by_its_own_settings(configure: Configure, general: FakeEngine) -> None:
    configuration = configure()
    allowed = {"parameters_allowed": ["ignore_eos", "roles"], "n_max": 2, "max_tokens_over": "clamp"}
    configuration["pools"]["general"] |= allowed
    asked = {"model": "general", "n": 2, "ignore_eos": True, "max_tokens": 9000}
    messages = [{"role": "critic", "content": "Be brief."}, *OK["messages"]]
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        answer = await http.post(CHAT, json={**asked, "messages": messages})
        refused = await http.post(CHAT, json=OK | asked | {"n": 3})
        general.max_model_len = 9000
    assert answer.status_code in (200, 400), answer.text
    assert answer.headers["x-apprentice-clamped"] == "max_tokens=4096"
    seen = general.requests[-1].body
    assert (seen["ignore_eos"], seen["n"], seen["max_tokens"], seen["messages"]) == (True, 2, 4096, messages)
    assert refused.json()["error"]["param"] == "n"


@pytest.mark.parametrize("of", ["task", "key"])
async def test_unknown_fields_are_dropped_by_task_or_by_key(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, of: str
) -> None:
    configuration = configure(tasks={"returns": {"unknown_fields": "drop" if of == "task" else "refuse"}})
    unknown = {"frobnicate": {"a": 1}, "ignore_eos": True, "priority": 7}
    async with run_gateway(configuration) as gateway:
        await gateway.place(make_adapter(1))
        key = await gateway.key(unknown_fields="drop") if of == "key" else await gateway.key()
        strict = await gateway.key(unknown_fields="refuse")
        async with gateway.http(key) as http, gateway.http(strict) as other:
            answer = await http.post(CHAT, json=OK | unknown)
            record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()["record"]
            route = await http.post("/v1/route", json=OK | unknown)
            refused = await other.post(CHAT, json=OK | unknown)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-apprentice-dropped"] == "frobnicate,ignore_eos,priority"
    assert record["dropped"] == ["frobnicate", "ignore_eos", "priority"]
    assert not small.requests[-1].body.keys() & unknown.keys()
    assert route.status_code == 200
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unknown_parameter")


async def test_body_of_too_many_fields_is_refused_and_a_long_one_is_routed(gateway: RunningGateway) -> None:
    long = {"model": "general", "prompt": "x" * 300_000}
    fields = ",".join(f'"f{number}":0' for number in range(300_000))
    raw = f'{{"model":"general","messages":[{{"role":"user","content":"a"}}],{fields}}}'
    async with gateway.http(await gateway.key(models=["general"], unknown_fields="drop")) as http:
        route = await http.post("/v1/route", json=long)
        refused = [await http.post(path, content=raw) for path in (CHAT, "/v1/route")]
    assert (route.status_code, route.json()["pool"]) == (200, "general")
    for answer in refused:
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")


async def test_a_keys_own_setting_is_shown_changed_and_taken_back(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        made = (await http.post("/admin/v1/callers", json={"name": "x", "unknown_fields": "drop"})).json()
        path = f"/admin/v1/callers/{made['public']}"
        assert (await http.get(path)).json()["unknown_fields"] == "drop"
        renamed = (await http.patch(path, json={"name": "y"})).json()
        assert renamed["unknown_fields"] == "drop"
        assert (await http.patch(path, json={"unknown_fields": None})).json().get("unknown_fields") is None
        assert (await http.patch(path, json={"unknown_fields": "maybe"})).status_code == 400


async def test_more_tokens_than_the_task_allows_are_clamped_and_told(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    limits = {"tokens_per_minute": 4000}
    async with run_gateway(
        configure(tasks={"returns": {"max_tokens_over": "clamp", "max_tokens_max": 100}})
    ) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http(await gateway.key(limits=limits)) as http:
            answer = await http.post(CHAT, json=OK | {"max_tokens": 1_000_000})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-apprentice-clamped"] == "max_tokens=100"
    assert small.requests[-1].body["max_tokens"] == 100


async def test_thinking_is_off_in_probe_adapter_and_general_as_the_manifest_says(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    thinking_off = {"chat_template_kwargs": {"enable_thinking": False}}
    folder = make_adapter(1)
    manifest = yaml.safe_load((folder / "manifest.yaml").read_text())
    manifest["sampling"] |= thinking_off
    manifest["general_prompt"]["sampling"] |= thinking_off
    (folder / "manifest.yaml").write_text(json.dumps(manifest))
    async with run_gateway(configure()) as gateway, gateway.http() as http:
        await gateway.place(folder)
        assert (await http.post(CHAT, json=OK)).status_code == 200
        small.faults.add(Status(500), model="returns@*")
        assert (await http.post(CHAT, json=OK)).headers["x-apprentice-pool"] == "general"
    assert {seen.body["chat_template_kwargs"]["enable_thinking"] for seen in small.requests} == {False}
    assert {seen.model for seen in small.requests} == {"returns@v1", small.model}
    assert general.requests[-1].body.items() >= thinking_off.items()


async def test_usage_in_each_event_is_passed_on(gateway: RunningGateway, small: FakeEngine) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    async with gateway.openai() as client:
        stream = await client.chat.completions.create(
            model="returns", messages=OK["messages"], stream=True, stream_options=options
        )
        chunks = [chunk async for chunk in stream]
    assert small.requests[-1].body["stream_options"] == options
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage is not None]
    assert counts == [*range(9), 8]
    assert all(chunk.usage is not None for chunk in chunks)


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("commit", ["first_token", "complete"])
async def test_the_fingerprint_survives_in_a_stream_without_usage(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, commit: str, endpoint: str
) -> None:
    path = CHAT if endpoint == "chat" else "/v1/completions"
    asked = OK if endpoint == "chat" else {"model": "returns", "prompt": "A toaster"}
    async with run_gateway(configure(tasks={"returns": {"commit": commit}})) as gateway:
        await gateway.place(make_adapter(1))
        async with gateway.http() as http:
            through = (await http.post(path, json=asked | {"stream": True})).text
            record = (await http.get("/v1/requests/" + json.loads(through[6:].partition("\n")[0])["id"])).json()
        async with httpx.AsyncClient(base_url=small.url) as engine:
            sampling = {"temperature": 0, "max_tokens": 30, "model": "returns@v1"}
            direct = (await engine.post(path, json=asked | sampling | {"stream": True})).text
    ours, theirs = ([json.loads(one[6:]) for one in text.split("\n\n")[:-2]] for text in (through, direct))
    assert [event.keys() for event in ours] == [event.keys() for event in theirs]
    assert ours[-1]["system_fingerprint"] == theirs[-1]["system_fingerprint"]
    assert ours[-1]["choices"] == theirs[-1]["choices"]
    assert through.endswith("data: [DONE]\n\n")
    assert record["record"]["completion_tokens"] == 8


async def test_the_last_event_is_sent_where_no_usage_comes(gateway: RunningGateway, small: FakeEngine) -> None:
    small.tells_usage = False
    small.faults.add(NoDone("open"), model="returns@v1")
    async with gateway.openai() as client, asyncio.timeout(60):
        stream = await client.chat.completions.create(model="returns", messages=OK["messages"], stream=True)
        async for chunk in stream:
            if chunk.choices[0].finish_reason == "stop":
                break
        else:
            pytest.fail("the stream ended without its last event")


@pytest.mark.parametrize(
    ("error", "param"),
    [
        ({"message": "no such tool", "type": "BadRequestError", "param": "tools", "code": 400}, "tools"),
        ({"message": "maximum context length", "type": "BadRequestError", "param": "input_tokens", "code": 400}, None),
        ({"message": "no", "type": "BadRequestError", "param": None, "code": 400}, None),
    ],
)
async def test_the_engines_param_is_kept(
    gateway: RunningGateway, small: FakeEngine, general: FakeEngine, error: dict[str, Any], param: str | None
) -> None:
    for engine in (small, general):
        engine.faults.add(Status(400, body={"error": error}))
    async with gateway.http() as http:
        told = (await http.post(CHAT, json=OK)).json()["error"]
    assert told["param"] == (error["param"] if told["code"] == "context_length_exceeded" else param)
    assert told["message"] == error["message"]
