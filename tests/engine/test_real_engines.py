"""The main job on real vLLM: two engines, the real adapter, the official SDK."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
from anthropic import AsyncAnthropic

from tests.engine.conftest import RealEngines, until_loaded
from tests.engine.words import DEADLINE_SECONDS, SLOW_SECONDS_MAX
from tests.tools.dashboards.boards import BOARDS, panels
from tests.walks.gateway import RunningGateway

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]
OPEN_QUESTION = "How many days are in a week?"


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


async def test_a_task_request_is_answered_by_the_adapter(gateway: RunningGateway, sample: list[dict[str, Any]]) -> None:
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(
            model="returns", messages=user(sample[0]["text"]), max_tokens=48
        )
    read = answer.parse()
    assert set(json.loads(read.choices[0].message.content)) == {"facts", "rule", "decision"}
    assert read.model == "returns@v1"
    assert answer.headers["x-apprentice-version"] == "returns@v1"
    assert answer.headers["x-apprentice-pool"] == "small"
    assert answer.headers["x-apprentice-reason"] == "adapter"
    assert float(answer.headers["x-apprentice-cost-usd"]) > 0
    assert read.usage.completion_tokens > 0


async def test_a_streamed_task_request_says_the_same_and_ends_whole(
    gateway: RunningGateway, sample: list[dict[str, Any]]
) -> None:
    async with gateway.openai() as client:
        whole = await client.chat.completions.create(model="returns", messages=user(sample[1]["text"]), max_tokens=48)
        stream = await client.chat.completions.create(
            model="returns",
            messages=user(sample[1]["text"]),
            max_tokens=48,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert set(json.loads(said)) == set(json.loads(whole.choices[0].message.content))
    assert {chunk.model for chunk in chunks} == {"returns@v1"}
    assert chunks[-1].usage is not None
    assert chunks[-1].model_extra["apprentice"]["cost_usd"] > 0


async def test_an_open_question_is_answered_by_general_streamed_and_not(gateway: RunningGateway) -> None:
    async with gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(
            model="general", messages=user(OPEN_QUESTION), max_tokens=24, temperature=0
        )
        assert answer.headers["x-apprentice-pool"] == "general"
        assert "version" not in answer.headers
        whole = answer.parse().choices[0].message.content
        stream = await client.chat.completions.create(
            model="general", messages=user(OPEN_QUESTION), max_tokens=24, temperature=0, stream=True
        )
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices])
        completion = await client.completions.create(model="general", prompt="The days of the week are", max_tokens=8)
    assert whole
    assert said
    assert completion.choices[0].text


async def test_logprobs_schemas_and_tools_pass_through(gateway: RunningGateway) -> None:
    schema = {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]}
    units = {"type": "object", "properties": {"unit": {"enum": ["days", "hours"]}}, "required": ["unit"]}
    tool = {"type": "function", "function": {"name": "count_days", "parameters": units}}
    async with gateway.openai() as client:
        told = await client.chat.completions.create(
            model="general", messages=user(OPEN_QUESTION), max_tokens=4, logprobs=True, top_logprobs=2
        )
        assert len(told.choices[0].logprobs.content[0].top_logprobs) == 2
        formed = await client.chat.completions.create(
            model="general",
            messages=user(OPEN_QUESTION),
            max_tokens=32,
            temperature=0,
            response_format={"type": "json_schema", "json_schema": {"name": "days", "schema": schema}},
        )
        assert isinstance(json.loads(formed.choices[0].message.content)["days"], int)
        called = await client.chat.completions.create(
            model="general",
            messages=user(OPEN_QUESTION),
            max_tokens=160,
            temperature=0,
            tools=[tool],
            tool_choice={"type": "function", "function": {"name": "count_days"}},
        )
        # whether so small a model closes the braces in time is its own affair; the name it has from the tool
        assert "count_days" in called.choices[0].message.model_dump_json(), called.model_dump_json()


@pytest.mark.parametrize("stream", [False, True])
async def test_refusal_of_sampling_is_a_400_streamed_or_not(gateway: RunningGateway, stream: bool) -> None:
    """vLLM tells it inside the 200 of a stream."""
    body = {"model": "general", "messages": user(OPEN_QUESTION), "logit_bias": {"2000000": 1}, "stream": stream}
    async with gateway.http() as http:
        answer = await http.post("/v1/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "engine_refused", "logit_bias")
    assert "out-of-vocab" in error["message"]


async def test_tokens_are_counted_as_the_message_has_them(gateway: RunningGateway) -> None:
    tool: Any = {"name": "count_days", "input_schema": {"type": "object", "properties": {"unit": {"type": "string"}}}}
    async with AsyncAnthropic(base_url=gateway.url, api_key=gateway.admin_key, timeout=SLOW_SECONDS_MAX) as client:
        for model, more in (("returns", {}), ("general", {"system": "Be short.", "tools": [tool]})):
            asked: Any = {"model": model, "messages": user(OPEN_QUESTION), **more}
            counted = await client.messages.count_tokens(**asked)
            if more:
                asked["tool_choice"] = {"type": "none"}
            answer = await client.messages.create(**asked, max_tokens=4)
            assert counted.input_tokens == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
            stream = await client.messages.create(**asked, max_tokens=4, stream=True)
            first, *_ = [event async for event in stream]
            begun = first.message.usage
            assert counted.input_tokens == begun.input_tokens + (begun.cache_read_input_tokens or 0)


async def test_logprobs_of_a_response_are_those_of_its_text(gateway: RunningGateway) -> None:
    asked: Any = {"model": "general", "input": OPEN_QUESTION, "max_output_tokens": 24, "temperature": 0}
    asked |= {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    async with gateway.openai() as client:
        whole: Any = await client.responses.create(**asked)
        stream: Any = await client.responses.create(**asked, stream=True)
        final = [event async for event in stream][-1].response
    for answer in (whole, final):
        tokens = answer.output[0].content[0].logprobs
        assert "".join(each.token for each in tokens) == answer.output_text
        assert {len(each.top_logprobs) for each in tokens} == {2}


async def test_a_swap_while_requests_flow_drops_nothing(
    gateway: RunningGateway, second_adapter: Path, sample: list[dict[str, Any]]
) -> None:
    served: list[tuple[float, str]] = []
    over = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def ask_on(row: dict[str, Any], stream: bool) -> None:
        async with gateway.openai() as client:
            while not over.is_set():
                sent_at = loop.time()
                asked = {"model": "returns", "messages": user(row["text"]), "max_tokens": 32}
                if stream:
                    chunks = [chunk async for chunk in await client.chat.completions.create(**asked, stream=True)]
                    assert len({chunk.model for chunk in chunks}) == 1
                    assert chunks[-1].choices[0].finish_reason
                    served.append((sent_at, chunks[0].model))
                else:
                    served.append((sent_at, (await client.chat.completions.create(**asked)).model))

    asking = [asyncio.create_task(ask_on(row, number % 2 == 0)) for number, row in enumerate(sample[:4])]
    version = await gateway.place(second_adapter)
    moved_at = loop.time()
    async with asyncio.timeout(DEADLINE_SECONDS):
        while sum(model == version for _, model in list(served)) < 4:
            done = [task for task in asking if task.done()]
            if done:
                done[0].result()
            await asyncio.sleep(0.1)
    over.set()
    await asyncio.gather(*asking)
    async with gateway.http() as http:
        await http.put("/admin/v1/aliases/returns", json={"version": "returns@v1"})
        unloaded = await http.post(f"/admin/v1/adapters/{version}/unload")
        assert unloaded.status_code == 200, unloaded.text
    assert {model for _, model in served} == {"returns@v1", version}
    assert all(model == version for sent_at, model in served if sent_at > moved_at)


async def test_killing_the_small_engine_turns_task_requests_into_labelled_general_answers(
    gateway: RunningGateway, engines: RealEngines, sample: list[dict[str, Any]]
) -> None:
    reasons: Counter[str] = Counter()
    killed = asyncio.Event()

    async def ask(row: dict[str, Any], after: asyncio.Event | None) -> None:
        if after is not None:
            await after.wait()
        async with gateway.openai() as client:
            answer = await client.chat.completions.with_raw_response.create(
                model="returns", messages=user(row["text"]), max_tokens=16
            )
            await answer.parse() if asyncio.iscoroutine(answer.parse()) else answer.parse()
        reasons[f"{answer.headers['x-apprentice-pool']}/{answer.headers['x-apprentice-reason']}"] += 1

    pid = engines.small.pid
    assert pid is not None
    asking = [asyncio.create_task(ask(row, None if number < 4 else killed)) for number, row in enumerate(sample[:8])]
    async with asyncio.timeout(SLOW_SECONDS_MAX):
        while gateway.services.fleet.replicas["small-0"].in_flight < 4:
            await asyncio.sleep(0.01)
    os.killpg(os.getpgid(pid), signal.SIGKILL)
    killed.set()
    await asyncio.gather(*asking)
    assert set(reasons) <= {"general/engine_error", "general/no_replica", "small/adapter"}
    assert sum(count for name, count in reasons.items() if name.startswith("general/")) >= 4
    async with gateway.http() as http:
        metrics = (await http.get("/metrics")).text
    assert 'apprentice_fallbacks_total{task="returns",from="small",to="general",reason="engine_error"}' in metrics
    assert gateway.services.admission.in_flight == 0
    await until_loaded(gateway, "returns@v1", DEADLINE_SECONDS)
    async with gateway.openai() as client:
        back = await client.chat.completions.create(model="returns", messages=user(sample[0]["text"]), max_tokens=32)
    assert back.model == "returns@v1"


async def test_vllm_tells_all_that_the_dashboard_engines_reads(
    engines: RealEngines, gateway: RunningGateway, sample: list[dict[str, Any]]
) -> None:
    async with gateway.openai() as client, httpx.AsyncClient() as http:
        await client.chat.completions.create(model="returns", messages=user(sample[0]["text"]), max_tokens=8)
        told = (await http.get(f"{engines.small.url}/metrics")).text
    labels: dict[str, set[str]] = {}
    for name, inside in re.findall(r"^(vllm:\w+){([^}]*)}", told, re.MULTILINE):
        labels.setdefault(name, set()).update(re.findall(r'(\w+)="', inside))
    asked = [target["expr"] for panel in panels(BOARDS["engines"]) for target in panel["targets"]]
    read = {name for expr in asked for name in re.findall(r"vllm:\w+", expr)}
    assert len(read) > 15
    assert read <= labels.keys()
    for expr in asked:
        for name, inside in re.findall(r"(vllm:\w+){([^}]*)}", expr):
            assert set(re.findall(r"(\w+)[=!]", inside)) <= labels[name] | {"instance"}, expr
        by = {label.strip() for found in re.findall(r"by \(([^)]*)\)", expr) for label in found.split(",")}
        of = set().union(*(labels[name] for name in re.findall(r"vllm:\w+", expr)))
        assert by <= of | {"instance"}, expr
