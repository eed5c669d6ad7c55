"""Limits of keys over real sockets: two gateways on one Valkey, callers that come together, hang up, or lose Redis."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai import AsyncOpenAI
from redis.asyncio import Redis

from gateway.callers import new_key
from gateway.limits.quotas import number_window
from tests.fakes.engine import FakeEngine
from tests.fakes.valkey import APPENDS, valkey
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.limited import ASK, PATIENT, ask, clients, usage
from tests.walks.test_process import served


@pytest.fixture
async def two(configure: Configure) -> AsyncIterator[tuple[RunningGateway, RunningGateway]]:
    """Two gateways on one Valkey, with one admin key."""
    key = new_key()[0]
    limits = configure(limits=PATIENT)
    async with run_gateway(limits, key) as one, run_gateway(limits, key) as other:
        yield one, other


async def minute(redis: Redis) -> int:
    return number_window("minute", (await redis.time())[0])


async def test_two_gateways_let_no_more_requests_through_than_the_limit(
    two: tuple[RunningGateway, RunningGateway], redis: Redis
) -> None:
    key = await two[0].key(limits={"requests_per_minute": 20})
    began = await minute(redis)
    async with clients(key, *two) as (one, other):
        got = await asyncio.gather(*(ask(client) for client in (one, other) * 30))
    answered = [one for one in got if not isinstance(one, Exception)]
    refused = [one for one in got if isinstance(one, Exception)]
    windows = await minute(redis) - began + 1
    quotas = 2 * 2  # what either may hold in vain
    assert 20 - quotas <= len(answered) <= 20 * windows
    for error in refused:
        assert isinstance(error, openai.RateLimitError)
        assert (error.code, error.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert 1 <= int(error.response.headers["retry-after"]) <= 60
        assert error.response.headers["x-ratelimit-limit-requests"] == "20"


async def test_two_gateways_spend_no_more_money_than_the_budget(two: tuple[RunningGateway, RunningGateway]) -> None:
    budget = 0.02
    key = await two[0].key(limits={"usd_per_day": budget, "usd_per_month": 1})
    async with clients(key, *two) as (one, other):
        got: list[Any] = []
        while sum(isinstance(each, Exception) for each in got[-20:]) < 20 and len(got) < 400:
            got += await asyncio.gather(*(ask(client) for client in (one, other) * 10))
    answered = [each for each in got if not isinstance(each, Exception)]
    spent = sum(each.usage.prompt_tokens * 10 + each.usage.completion_tokens * 20 for each in answered) / 1e6
    assert budget / 2 < spent <= budget
    error = got[-1]
    assert isinstance(error, openai.RateLimitError)
    assert (error.code, error.type) == ("budget_exceeded", "insufficient_quota")
    assert 1 <= int(error.response.headers["retry-after"]) <= 3600
    assert "usd" not in str(sorted(error.response.headers))

    async def all_told() -> bool:
        told = await usage(two[1], key)
        return all(told[name]["spent"] == pytest.approx(spent) for name in ("usd_per_day", "usd_per_month"))

    await until(all_told, "what both have spent")


async def test_a_spent_budget_says_what_the_request_may_cost_and_what_is_left(configure: Configure) -> None:
    async with run_gateway(configure(limits=PATIENT), new_key()[0]) as gateway:
        key = await gateway.key(limits={"usd_per_day": 0.0001})
        async with gateway.openai(key) as client:
            assert not isinstance(await ask(client), Exception)  # it may need all of the budget, and finds all of it
            refused = await ask(client)
    assert re.search(
        r"The key may take 0\.0001 US dollars a day: 0 are left, and this request may take 0\.000\d+\. "
        r"Ask for fewer max_tokens, or ask an admin for a larger budget\.",
        refused.message,
    ), refused.message


async def test_a_model_that_the_key_may_not_use_is_a_403_also_past_a_limit(configure: Configure) -> None:
    async with run_gateway(configure(limits=PATIENT), new_key()[0]) as gateway:
        key = await gateway.key(models=["returns"], limits={"requests_per_minute": 1, "usd_per_day": 0.000_000_001})
        async with gateway.openai(key) as client:
            refused = [await ask(client) for _ in range(3)]
    assert [error.code for error in refused] == ["model_not_allowed"] * 3


async def test_answers_say_what_is_left(two: tuple[RunningGateway, RunningGateway]) -> None:
    gateway = two[0]
    key = await gateway.key(limits={"requests_per_minute": 1000, "tokens_per_minute": 100_000})
    async with gateway.openai(key) as client:
        for stream in (False, True):
            answer = await client.chat.completions.with_raw_response.create(model="general", stream=stream, **ASK)
            if stream:
                assert [chunk async for chunk in answer.parse()]
            headers = answer.headers
            assert headers["x-ratelimit-limit-requests"] == "1000"
            assert headers["x-ratelimit-limit-tokens"] == "100000"
            assert 900 < int(headers["x-ratelimit-remaining-requests"]) < 1000
            assert 90_000 < int(headers["x-ratelimit-remaining-tokens"]) < 100_000
            assert 1 <= int(headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    async with gateway.openai() as client:
        plain = await client.chat.completions.with_raw_response.create(model="general", **ASK)
    assert not [name for name in plain.headers if name.startswith("x-ratelimit")]


@pytest.mark.invariant("Each request settles its limits once.")
async def test_a_gateway_that_stops_gives_its_quotas_back_to_a_slow_redis_too(
    configure: Configure, redis: Redis
) -> None:
    async with run_gateway(configure(limits=PATIENT)) as gateway:
        async with gateway.openai(await gateway.key(limits={"usd_per_month": 1000})) as client:
            await ask(client)
        await redis.client_pause(700)
    (name,) = await redis.keys("apprentice:limits:key:*:usd_per_month:*")
    of_gateway = {field: value for field, value in (await redis.hgetall(name)).items() if field != b"total"}
    ((_, line),) = of_gateway.items()
    held, used = line.split()[1:]
    assert held == used


@pytest.mark.parametrize("redis_gone", ["open", "closed"])
async def test_without_redis_quotas_are_spent_and_then_the_setting_decides(
    configure: Configure, redis_gone: str
) -> None:
    async with valkey(*APPENDS) as state:
        limits = {**PATIENT, "redis_gone": redis_gone, "quota_share": 0.3}
        async with run_gateway(configure(redis_url=state.url, limits=limits)) as gateway:
            services = gateway.services
            key = await gateway.key(limits={"usd_per_day": 0.01})
            unlimited = await gateway.key()
            async with clients(key, gateway) as (client,), gateway.openai(unlimited) as other:
                assert not isinstance(await ask(client), Exception)
                await state.end()
                got: list[Any] = []
                while len(got) < 100:
                    got.append(await ask(client))
                    if isinstance(got[-1], Exception) or services.meters.limits_unenforced.cell().value > 2:
                        break
                answered = [each for each in got if not isinstance(each, Exception)]
                assert len(answered) > 3, "what was leased is spent first"
                if redis_gone == "open":
                    assert len(answered) == len(got)
                    assert services.meters.limits_unenforced.cell().value > 2
                else:
                    assert isinstance(got[-1], openai.InternalServerError)
                    assert (got[-1].status_code, got[-1].code) == (503, "storage_unavailable")
                assert not isinstance(await ask(other), Exception)
                await state.start()
                await until(lambda: not services.limits.quotas.redis_gone)


async def test_what_was_let_through_without_redis_counts_once_it_is_back(configure: Configure) -> None:
    limits = {**PATIENT, "quota_share": 0.5}
    async with (
        valkey("--appendonly", "yes", "--appendfsync", "always") as state,
        run_gateway(configure(redis_url=state.url, limits=limits)) as gateway,
    ):
        key = await gateway.key(limits={"usd_per_day": 0.002})
        async with gateway.openai(key) as client:

            async def is_refused() -> bool:
                return isinstance(await ask(client), openai.RateLimitError)

            assert not await is_refused()
            await state.end()
            for _ in range(60):
                assert not await is_refused()
            assert gateway.services.meters.limits_unenforced.cell().value > 0
            await state.start()
            await until(lambda: not gateway.services.limits.quotas.redis_gone)
            await until(is_refused, "the budget is spent")


@pytest.mark.invariant("Gateways together never exceed a key's limit.")
async def test_what_a_killed_gateway_held_is_spent_until_its_window_is_over(
    configure: Configure, general: FakeEngine, redis_url: str, tmp_path: Path
) -> None:
    budget, key = 0.02, new_key()[0]
    limits = {**PATIENT, "quota_share": 0.5}
    path = tmp_path / "killed.yaml"
    engine = {"base_model": "large", "callable": True, "replicas": [{"name": "general-0", "url": general.url}]}
    price = {"prompt_usd_per_million_tokens": 10, "completion_usd_per_million_tokens": 20}
    pools = {"general": {**engine, "price": price}}
    killed = {"data_folder": str(tmp_path / "killed"), "redis_url": redis_url, "listen": {"port": 0}, "pools": pools}
    path.write_text(yaml.safe_dump({**killed, "limits": limits}))
    async with run_gateway(configure(limits=limits), key) as gateway:
        limited = await gateway.key(limits={"usd_per_day": budget})
        async with served(path, key) as process, AsyncOpenAI(base_url=f"{process.url}/v1", api_key=limited) as client:
            assert not isinstance(await ask(client), Exception)
            assert await process.stop(signal.SIGKILL) == -signal.SIGKILL
        got: list[Any] = []
        async with gateway.openai(limited) as client:
            while not (got and isinstance(got[-1], Exception)) and len(got) < 200:
                got.append(await ask(client))
    assert got[-1].code == "budget_exceeded"
    spent = sum(each.usage.prompt_tokens * 10 + each.usage.completion_tokens * 20 for each in got[:-1]) / 1e6
    assert budget / 4 < spent <= budget / 2


async def test_a_key_that_is_revoked_is_refused_as_soon_as_a_gateway_is_told_of_it(configure: Configure) -> None:
    own, seldom = new_key()[0], configure(limits=PATIENT, snapshot_interval_seconds=3600)
    async with AsyncExitStack() as stack:
        two = [await stack.enter_async_context(run_gateway(seldom, own)) for _ in range(2)]
        key = await two[0].key()
        both = await stack.enter_async_context(clients(key, *two))

        async def known_to(client: AsyncOpenAI, expected: bool) -> bool:
            return isinstance(await ask(client), openai.AuthenticationError) != expected

        for client in both:
            await until(lambda client=client: known_to(client, True), "the key is known")
        async with two[0].http() as http:
            assert (await http.delete(f"/admin/v1/callers/{key.split('-')[2]}")).status_code == 200
        for client in both:
            await until(lambda client=client: known_to(client, False), "the key is revoked")


async def test_a_rotated_key_works_with_both_secrets_until_the_overlap_is_over(
    two: tuple[RunningGateway, RunningGateway],
) -> None:
    key = await two[0].key(limits={"requests_per_minute": 1000})
    public = key.split("-")[2]
    async with two[0].http() as http:
        told = (await http.post(f"/admin/v1/callers/{public}/rotate", json={"overlap_seconds": 60})).json()
        assert told["key"] != key
        assert told["key"].startswith(f"sk-app-{public}-")
        assert told["former_until"] > time.time() + 50

        async def works(key: str) -> bool:
            async with two[1].openai(key) as client:
                return not isinstance(await ask(client), Exception)

        await until(lambda: works(told["key"]), "the new secret")
        assert await works(key)
        assert (await http.post(f"/admin/v1/callers/{public}/rotate")).json()["former_until"] > time.time() + 3000
        last = (await http.post(f"/admin/v1/callers/{public}/rotate", json={"overlap_seconds": 0})).json()
        await until(lambda: works(last["key"]), "the newest secret")
        assert not await works(told["key"])
        assert not await works(key)
        assert last["limits"] == {"requests_per_minute": 1000}
        shown = (await http.get("/admin/v1/callers")).text
    for secret in (key, told["key"], last["key"]):
        assert secret.removeprefix(f"sk-app-{public}-") not in shown


async def test_limits_models_name_and_expiry_are_changed_at_once(two: tuple[RunningGateway, RunningGateway]) -> None:
    gateway = two[0]
    key = await gateway.key(limits={"requests_per_minute": 5, "usd_per_day": 1})
    path = f"/admin/v1/callers/{key.split('-')[2]}"
    async with gateway.http() as http, gateway.openai(key) as client:
        assert not isinstance(await ask(client), Exception)
        told = (await http.patch(path, json={"limits": {"requests_per_minute": 1, "usd_per_day": None}})).json()
        assert told["limits"] == {"requests_per_minute": 1}
        got = [await ask(client) for _ in range(3)]
        assert any(isinstance(each, openai.RateLimitError) for each in got), "the minute may end once"
        shown = (await http.get(path)).json()
        assert shown["usage"]["requests_per_minute"]["limit"] == 1
        assert shown["usage"]["requests_per_minute"]["spent"] >= 1
        assert (await http.patch(path, json={"limits": None})).json()["limits"] == {}
        assert not isinstance(await ask(client), Exception)
        told = (await http.patch(path, json={"models": ["returns"], "name": "new"})).json()
        assert (told["models"], told["name"]) == (["returns"], "new")
        assert isinstance(await ask(client), openai.PermissionDeniedError)
        for late in ({"expires_at": 1.0}, {"expires_at": time.time() - 1}, {"expires_at": 1e308}):
            refused = await http.patch(path, json=late)
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "expires_at")
            refused = await http.post("/admin/v1/callers", json={"name": "late", **late})
            assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")
        assert (await http.patch(path, json={"expires_at": time.time() + 100})).status_code == 200
        assert (await http.patch(path, json={"expires_at": None})).json()["expires_at"] is None
        assert (await http.patch(path, json={"limits": {"requests_per_minute": 0}})).status_code == 400
        assert (await http.patch("/admin/v1/callers/nobody", json={"name": "x"})).status_code == 404
        actions = [entry["action"] for entry in (await http.get("/admin/v1/audit?limit=1000")).json()["entries"]]
        assert actions.count("caller.change") == 5


async def test_an_endless_number_of_answers_is_refused_whatever_the_keys_limits(gateway: RunningGateway) -> None:
    key = await gateway.key(limits={"tokens_per_minute": 1000, "usd_per_day": 1})
    async with gateway.http(key) as http:
        answer = await http.post("/v1/chat/completions", json={"model": "general", **ASK, "n": 10**310})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == "n"
