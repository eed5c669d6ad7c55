"""`POST /v1/messages/count_tokens`: the tokens that the message would have where it would go, and no more."""

from __future__ import annotations

from typing import Any

import anthropic
import pytest
from anthropic import AsyncAnthropic
from redis.asyncio import Redis

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Reset, Status
from tests.walks.conftest import GENERAL_PROMPT, Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.one_minute import in_one_minute
from tests.walks.sdk_world import TEXT, messages, running

__all__ = ["messages", "running"]

ASK: Any = {"model": "returns", "messages": [{"role": "user", "content": TEXT}]}
TOOL: Any = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def asked_of(engine: FakeEngine) -> list[dict[str, Any]]:
    """The bodies whose tokens the engine has counted."""
    return [dict(call.body) for call in engine.calls if call.path == "/tokenize"]


def client_of(gateway: RunningGateway, key: str | None = None) -> AsyncAnthropic:
    return AsyncAnthropic(base_url=gateway.url, api_key=key or gateway.admin_key, max_retries=0)


async def test_count_is_that_of_the_message_and_leaves_no_record_and_no_cost(
    running: RunningGateway, messages: AsyncAnthropic, small: FakeEngine
) -> None:
    asked = ASK | {"system": "Be short.", "tools": [TOOL], "tool_choice": {"type": "any"}}
    before, records = len(small.requests), len(running.services.flow.buffer)
    counted = await messages.messages.count_tokens(**asked)
    assert (len(small.requests), len(running.services.flow.buffer)) == (before, records)
    assert all(not replica.in_flight for replica in running.services.fleet.replicas.values())
    (seen,) = asked_of(small)
    assert seen.keys() == {"model", "messages", "tools"}
    assert seen["messages"] == [{"role": "system", "content": "Be short."}, {"role": "user", "content": TEXT}]
    answer = await messages.messages.create(**asked, max_tokens=20)
    assert counted.input_tokens == answer.usage.input_tokens > 0


async def test_clients_in_beta_are_answered_too(messages: AsyncAnthropic) -> None:
    system: Any = [{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}]
    asked: Any = {
        "model": "returns",
        "messages": ASK["messages"],
        "system": system,
        "betas": ["anything-2025-01-01"],
    }
    asked |= {"thinking": {"type": "adaptive"}, "tools": [TOOL | {"cache_control": {"type": "ephemeral"}}]}
    asked["tool_choice"] = {"type": "none"}
    counted = await messages.beta.messages.count_tokens(**asked)
    answer = await messages.beta.messages.create(**asked, max_tokens=20, metadata={"user_id": "x" * 200})
    assert counted.input_tokens == answer.usage.input_tokens


async def test_count_is_a_request_of_its_keys_limits_without_tokens(running: RunningGateway, redis: Redis) -> None:
    async def walk() -> None:
        key = await running.key(limits={"requests_per_minute": 1, "tokens_per_minute": 5}, models=["*"])
        async with client_of(running, key) as client:
            await client.messages.count_tokens(**ASK)
            with pytest.raises(anthropic.RateLimitError):
                await client.messages.count_tokens(**ASK)

    await in_one_minute(redis, walk)


async def test_count_goes_where_the_message_would_with_the_general_prompt(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    async with run_gateway(
        configure(tasks={"returns": {"checks": {"holdout": {"mode": "enforce", "share": 1.0}}}})
    ) as gateway:
        await gateway.place(make_adapter(1))
        async with client_of(gateway) as client:
            counted = await client.messages.count_tokens(**ASK)
            answer = await client.messages.create(**ASK, max_tokens=20)
    assert answer.model == "large"
    assert (asked_of(small), len(asked_of(general))) == ([], 1)
    assert asked_of(general)[0]["messages"][0] == {"role": "system", "content": GENERAL_PROMPT}
    assert counted.input_tokens == answer.usage.input_tokens


async def test_history_that_ends_with_the_assistants_turn_is_counted(
    messages: AsyncAnthropic, small: FakeEngine
) -> None:
    turns: Any = [*ASK["messages"], {"role": "assistant", "content": "It is."}]
    alone = await messages.messages.count_tokens(**ASK)
    counted = await messages.messages.count_tokens(model="returns", messages=turns)
    assert counted.input_tokens > alone.input_tokens
    assert asked_of(small)[-1]["messages"] == turns
    with pytest.raises(anthropic.BadRequestError, match="does not continue"):
        await messages.messages.create(model="returns", messages=turns, max_tokens=20)
    turns.append({"role": "system", "content": "Be brief."})  # which goes to the beginning
    with pytest.raises(anthropic.BadRequestError, match="does not continue"):
        await messages.messages.create(model="returns", messages=turns, max_tokens=20)


@pytest.mark.parametrize("fault", [Status(500), Reset()], ids=["fails", "drops its connections"])
async def test_count_goes_on_to_another_engine_and_then_to_the_fallback(
    messages: AsyncAnthropic, small: FakeEngine, general: FakeEngine, fault: Any
) -> None:
    small.faults.add(fault, path="/tokenize")
    assert (await messages.messages.count_tokens(**ASK)).input_tokens > 0
    assert asked_of(general)[0]["model"] == "large"
    general.faults.add(fault, path="/tokenize")
    with pytest.raises(anthropic.InternalServerError) as failed:
        await messages.messages.count_tokens(**ASK)
    body: Any = failed.value.body
    assert (body["type"], body["error"]["type"], body["error"]["code"]) == ("error", "api_error", "engine_error")
    assert failed.value.response.headers["x-should-retry"] == "false"


async def test_engine_without_a_tokenizer_has_no_count(configure: Configure) -> None:
    async with FakeEngine("x", bare=True) as bare:
        replica = {"name": "general-0", "url": bare.url + bare.base_path}
        pool = {"engine": "openai", "base_model": "x", "callable": True, "replicas": [replica]}
        async with run_gateway(configure(pools={"general": pool})) as gateway, client_of(gateway) as client:
            with pytest.raises(anthropic.NotFoundError) as refused:
                await client.messages.count_tokens(**ASK | {"model": "general"})
    assert "counts no tokens" in refused.value.message


NO_COUNTS: list[tuple[dict[str, Any], type[anthropic.APIStatusError], str]] = [
    ({"model": "nothing"}, anthropic.NotFoundError, "model"),
    ({"messages": []}, anthropic.BadRequestError, "messages"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, anthropic.BadRequestError, "tools[0].type"),
    ({"extra_body": {"bored": 1}}, anthropic.BadRequestError, "bored"),
]


async def test_count_that_is_not_taken_has_anthropics_error(
    messages: AsyncAnthropic, subtests: pytest.Subtests
) -> None:
    for fields, kind, param in NO_COUNTS:
        with subtests.test(fields=fields, param=param):
            with pytest.raises(kind) as refused:
                await messages.messages.count_tokens(**ASK | fields)
            body: Any = refused.value.body
            assert (body["type"], body["error"]["param"]) == ("error", param)


async def test_body_that_is_no_utf_8_is_told_as_that(running: RunningGateway) -> None:
    async with running.http() as http:
        refused = await http.post("/v1/messages/count_tokens", content=b'{"\xff": 1}')
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_json")


async def test_count_needs_a_key(running: RunningGateway) -> None:
    async with client_of(running, "sk-app-unknown") as client:
        with pytest.raises(anthropic.AuthenticationError):
            await client.messages.count_tokens(**ASK)
