"""Pools of engines of which no more is known than that they speak OpenAI's API, with or without a key or a path."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.fault_rules import NAMED
from tests.fakes.faults import Edited, Moment, Status
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: Any = {"messages": [{"role": "user", "content": "A toaster, sealed, after 3 days."}]}
SHORT = {"answer_timeout_seconds": 0.3, "first_token_timeout_seconds": 0.3, "inter_token_timeout_seconds": 0.3}


@pytest.fixture
async def bare() -> AsyncIterator[FakeEngine]:
    """An engine without /health, /version, /metrics or a list of models, below a path, that wants a key."""
    async with FakeEngine(
        "someones-model", n_tokens=8, bare=True, base_path="/openai/v1", api_key="sk-theirs"
    ) as engine:
        yield engine


def pool_of(engine: FakeEngine, name: str = "general", **changes: Any) -> dict[str, Any]:
    """A pool's settings for a bare engine."""
    replica = {"name": f"{name}-0", "url": engine.url + engine.base_path}
    pool = {"engine": "openai", "base_model": "gpt/any:thing@2", "callable": True, "replicas": [replica]}
    return pool | ({"api_key": engine.api_key} if engine.api_key else {}) | changes


async def fell_back(gateway: RunningGateway, small: FakeEngine, **more: Any) -> Any:
    """The answer of the fallback, after the adapter's engine has failed."""
    small.faults.add(Status(500), model="returns@*")
    async with gateway.openai() as client:
        return await client.chat.completions.with_raw_response.create(model="returns", **ASK, **more)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_below_a_path_that_wants_a_key_answers_as_a_pool(
    configure: Configure, bare: FakeEngine, stream: bool
) -> None:
    async with run_gateway(configure(pools={"general": pool_of(bare)})) as gateway, gateway.openai() as client:
        answer = await client.chat.completions.create(model="general", stream=stream, **ASK)
        if stream:
            chunks = [chunk async for chunk in answer]
            assert chunks[-1].choices[0].finish_reason == "stop"
        completion = await client.completions.create(model="general", prompt="A toaster.")
    assert completion.model == "gpt/any:thing@2"
    assert [seen.path for seen in bare.requests] == ["/v1/chat/completions", "/v1/completions"]
    for seen in bare.requests:
        assert seen.outcome == "done"
        assert seen.headers["authorization"] == "Bearer sk-theirs"
        assert seen.model == "gpt/any:thing@2"
        assert "cache_salt" not in seen.body
    assert ("stream_options" in bare.requests[0].body) == stream


async def test_an_engine_without_a_key_gets_none(configure: Configure) -> None:
    async with FakeEngine("x", bare=True) as engine:
        async with run_gateway(configure(pools={"general": pool_of(engine)})) as gateway, gateway.openai() as client:
            await client.chat.completions.create(model="general", **ASK)
        assert "authorization" not in engine.requests[0].headers


@pytest.mark.parametrize("message", ["is not a chat model and thus not supported in", "is only supported in"])
async def test_a_model_that_is_none_for_chats_is_refused_and_does_not_rest(
    configure: Configure, bare: FakeEngine, message: str
) -> None:
    bare.faults.add(Status(404, body={"error": {"message": f"This model {message} the v1/x endpoint."}}))
    async with run_gateway(configure(pools={"general": pool_of(bare)})) as gateway, gateway.openai() as client:
        for _ in range(3):
            with pytest.raises(openai.BadRequestError, match="does not serve /v1/chat/completions"):
                await client.chat.completions.create(model="general", **ASK)
        assert gateway.services.fleet.replicas["general-0"].breaker_state(time.monotonic()) == "closed"


@pytest.mark.parametrize("status", [200, 404, 405, 429, 500, 501])
async def test_whoever_answers_at_all_is_up_whatever_it_says_of_its_models(
    configure: Configure, bare: FakeEngine, status: int
) -> None:
    bare.models_status = status
    async with run_gateway(configure(pools={"general": pool_of(bare)})) as gateway:
        assert gateway.services.fleet.replicas["general-0"].up
        async with gateway.http() as http:
            assert (await http.get("/health/ready")).status_code == 200
    assert {call.path for call in bare.calls} == {"/v1/models"}


@pytest.mark.parametrize(
    ("status", "words"), [(401, "api_key"), (403, "api_key"), (307, "redirects"), (502, "502"), (503, "503")]
)
async def test_what_no_request_would_get_past_is_down_and_is_said_once(
    configure: Configure, bare: FakeEngine, caplog: pytest.LogCaptureFixture, status: int, words: str
) -> None:
    headers = {"location": "https://elsewhere.invalid/"} if status == 307 else {}
    bare.faults.add(Status(status, body={"error": headers}), path="/v1/models")
    pool = pool_of(bare, health_interval_seconds=0.01)
    with caplog.at_level(logging.INFO, "serving.health"):
        async with run_gateway(configure(pools={"general": pool})) as gateway, gateway.openai() as client:
            with pytest.raises(openai.InternalServerError) as raised:
                await client.chat.completions.create(model="general", **ASK)
            assert raised.value.code == "no_replica"
            await bare.until(lambda: len(bare.calls) + bare.faults.rules[0].shown > 4)
            bare.faults.clear()
            await bare.until(lambda: gateway.services.fleet.replicas["general-0"].up)
    said = [record.getMessage() for record in caplog.records if record.name == "serving.health"]
    assert len(said) == 2
    assert words in said[0]
    assert said[1].endswith("is up")
    assert "sk-theirs" not in "".join(said)


async def test_an_engine_whose_key_is_wrong_is_down(configure: Configure, bare: FakeEngine) -> None:
    async with run_gateway(configure(pools={"general": pool_of(bare, api_key="sk-wrong")})) as gateway:
        replica = gateway.services.fleet.replicas["general-0"]
        assert (replica.up, replica.trouble[:14]) == (False, "it answers 401")


async def test_an_engine_that_refuses_the_key_of_requests_is_told_of_until_it_answers(
    configure: Configure, bare: FakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    rule = bare.faults.add(Status(401))  # its list of models needs no key
    async with run_gateway(configure(pools={"general": pool_of(bare)})) as gateway, gateway.openai() as client:
        for times in (1, 2):
            with pytest.raises(openai.InternalServerError, match="refuses the gateway's own key") as raised:
                await client.chat.completions.create(model="general", **ASK)
            assert (raised.value.status_code, raised.value.code, rule.shown) == (502, "engine_error", times)
            assert "Try again" not in raised.value.message
        async with gateway.http() as http:
            trouble = (await http.get("/admin/v1/replicas")).json()["replicas"][0]["trouble"]
            assert trouble.startswith("it answers 401: pools.general.api_key, or ")
            bare.faults.clear()
            await client.chat.completions.create(model="general", **ASK)
            assert not (await http.get("/admin/v1/replicas")).json()["replicas"][0]["trouble"]
    told = [record.getMessage() for record in caplog.records if trouble in record.getMessage()]
    assert told == [f"replica general-0 of the pool general refuses requests: {trouble}"]


async def test_it_is_looked_at_as_seldom_as_its_pool_says_while_ours_are_looked_at_often(
    configure: Configure, small: FakeEngine, bare: FakeEngine
) -> None:
    configuration = configure(health_interval_seconds=0.02)
    configuration["pools"]["general"] = pool_of(bare)
    async with run_gateway(configuration):
        await small.until(lambda: len(small.calls) > 20)
        assert len(bare.calls) == 1


async def test_what_the_engine_does_not_know_is_refused_by_name(configure: Configure, bare: FakeEngine) -> None:
    async with run_gateway(configure(pools={"general": pool_of(bare)})) as gateway, gateway.openai() as client:
        with pytest.raises(openai.BadRequestError) as raised:
            await client.chat.completions.create(model="general", extra_body={"top_k": 5}, **ASK)
        assert (raised.value.code, raised.value.param) == ("parameter_not_allowed", "top_k")
        await client.chat.completions.create(model="general", extra_body={"top_k": -1}, **ASK)
    assert len(bare.requests) == 1


async def test_openai_fallback_gets_the_general_prompt_and_callers_see_what_is_left_out(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, bare: FakeEngine
) -> None:
    configuration = configure()
    configuration["pools"]["general"] = pool_of(bare)
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        answer = await fell_back(gateway, small, extra_body={"top_k": 5, "min_p": 0.1}, temperature=0.3)
        assert answer.headers["x-apprentice-dropped"] == "min_p,top_k"
        assert answer.headers["x-apprentice-reason"] == "engine_error"
        (seen,) = bare.requests
        assert seen.body["messages"][0] == {"role": "system", "content": GENERAL_PROMPT}
        assert (seen.body["temperature"], seen.body["max_tokens"]) == (0.3, 40)
        assert not seen.body.keys() & {"top_k", "min_p", "cache_salt"}

        async def record() -> Any:
            return (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json().get("record")

        async with asyncio.timeout(30):
            while (found := await record()) is None:
                await asyncio.sleep(0.01)
        assert found["dropped"] == ["min_p", "top_k"]


@pytest.mark.invariant("No answer has another form than its caller asked for.")
async def test_as_a_fallback_it_never_answers_in_another_form_than_the_caller_asked_for(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, bare: FakeEngine
) -> None:
    configuration = configure()
    configuration["pools"]["general"] = pool_of(bare)
    async with run_gateway(configuration) as gateway:
        await gateway.place(make_adapter(1))
        form = {"structured_outputs": {"choice": ["approve", "refuse"]}}
        with pytest.raises(openai.InternalServerError) as raised:
            await fell_back(gateway, small, extra_body=form)
        assert (raised.value.status_code, raised.value.code) == (503, "no_replica")
        assert "structured_outputs" in raised.value.message
        schema = {"type": "object", "properties": {"decision": {"type": "string"}}}
        await fell_back(gateway, small, extra_body={"structured_outputs": {"json": schema}})
        assert all(replica.in_flight == 0 for replica in gateway.services.fleet.replicas.values())
    (seen,) = bare.requests
    assert seen.body["response_format"]["json_schema"]["schema"] == schema


@dataclass(frozen=True)
class OwnIds(Edited):
    """An engine's own ids; its streams begin with an event that has none, as Azure's do."""

    edit: Callable[[dict[str, Any]], None] = lambda told: told.update(id="gen-7")

    def pieces(self, event: bytes, moment: Moment) -> list[bytes]:
        first = b"" if moment.marked else b'data: {"id":"","model":"","choices":[],"prompt_filter_results":[]}\n\n'
        moment.marked = True
        return [first + b"".join(super().pieces(event, moment))]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "asked", "answer_id"),
    [
        ("chat/completions", ASK, "gen-7"),
        ("responses", {"input": "A toaster."}, "resp_gen-7"),
        ("messages", {**ASK, "max_tokens": 20}, "msg_gen-7"),
    ],
)
async def test_request_is_found_by_the_id_in_its_answers_body(
    configure: Configure, bare: FakeEngine, path: str, asked: Any, answer_id: str, stream: bool
) -> None:
    bare.faults.add(OwnIds())
    async with run_gateway(configure(pools={"general": pool_of(bare)})) as gateway, gateway.http() as http:
        answer = await http.post(f"/v1/{path}", json={"model": "general", "stream": stream, **asked})
        assert answer.status_code == 200, answer.text
        ids = set(re.findall(r'"id": ?"((?:resp_|msg_|gen-)[^"]*)"', answer.text))
        assert answer_id in ids
        assert not ids & {"resp_", "msg_"}

        async def found() -> bool:
            told = await http.get(f"/v1/requests/{answer_id}")
            return told.status_code == 200 and told.json()["record"]["id"] == answer.headers["x-request-id"]

        async with asyncio.timeout(30):
            while not await found():
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_that_is_not_told_stays_unknown(configure: Configure, bare: FakeEngine, stream: bool) -> None:
    bare.tells_usage = False
    price = {"prompt_usd_per_million_tokens": 1, "completion_usd_per_million_tokens": 2}
    pools = {"general": pool_of(bare, price=price)}
    async with run_gateway(configure(pools=pools)) as gateway, gateway.openai() as client:
        answer = await client.chat.completions.with_raw_response.create(model="general", stream=stream, **ASK)
        if stream:
            assert [chunk async for chunk in answer.parse()][-1].usage is None
        else:
            assert answer.parse().usage is None
        assert "x-apprentice-cost-usd" not in answer.headers


async def test_every_named_fault_is_reached_from_outside_by_a_pool_of_its_name(configure: Configure) -> None:
    async with FakeEngine("x", n_tokens=8, bare=True) as engine:
        pools = {"general": pool_of(engine)} | {
            name: pool_of(engine, name, base_model=f"{name}@v1/any:thing") for name in NAMED
        }
        limits = SHORT | {"retries_max": 0, "first_token_timeout_seconds": 2.0}
        statuses: dict[str, int] = {}

        async def ask(name: str) -> None:
            async with gateway.http() as http:
                answer = await http.post("/v1/chat/completions", json={"model": name, "stream": True, **ASK})
                statuses[name] = answer.status_code

        async with run_gateway(configure(pools=pools, limits=limits)) as gateway:
            await asyncio.gather(*map(ask, NAMED))
        assert {seen.model for seen in engine.requests} == {f"{name}@v1/any:thing" for name in NAMED}
    expected = {"f03-500-once": 502, "f04-503-forever": 503, "f06-silent": 504, "f10-malformed-event": 200}
    expected |= {"f12-context-length": 400, "f13-content-policy": 400, "f29-html": 502, "f24-split-writes": 200}
    assert {name: statuses[name] for name in expected} == expected
