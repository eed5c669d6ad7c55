"""Spending: a key's cost in the metrics, and messages to the webhook where its budget nears its end."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.fakes.wire import Exchange, HttpListener
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway

ASK: dict[str, Any] = {
    "model": "general",
    "messages": [{"role": "user", "content": "How many days has a week?"}],
    "max_tokens": 8,
}
Told = list[dict[str, Any]]


@pytest.fixture
async def told() -> AsyncIterator[tuple[str, Told]]:
    """The address of a webhook's receiver, and what it got."""
    got: Told = []

    async def answer(exchange: Exchange) -> None:
        got.append(json.loads(exchange.request.body))
        await exchange.whole(204, b"")

    listener = HttpListener(answer, "127.0.0.1", 0)
    await listener.start()
    yield f"http://127.0.0.1:{listener.port}/hook", got
    await listener.stop()
    listener.release()


async def spend(gateway: RunningGateway, key: str, usd: float) -> float:
    """Ask until so much is spent, as the answers say; returns what was."""
    spent = 0.0
    async with gateway.openai(key) as client:
        while spent < usd:
            answer = await client.chat.completions.with_raw_response.create(**ASK)
            spent += float(answer.headers["x-apprentice-cost-usd"])
    return spent


async def test_a_budget_is_told_at_80_percent_and_at_its_end_once_each(
    configure: Configure, told: tuple[str, Told], redis_url: str
) -> None:
    url, messages = told
    monitor = {"webhook_url": url, "interval_seconds": 0.1}
    async with run_gateway(configure(monitor=monitor, listen={"metrics": {"port": 0}})) as gateway:
        free = await gateway.key(name="free")
        price = await spend(gateway, free, 0.0000001)
        limits = {"usd_per_day": 40 * price, "usd_per_month": 4000 * price}
        key = await gateway.key(name="shop", owner="ada", limits=limits)
        spent = await spend(gateway, key, 20 * price)
        assert messages == []
        spent += await spend(gateway, key, 14 * price)
        await until(lambda: messages, "a message at 80%")
        spent += await spend(gateway, key, 3 * price)
        async with gateway.http() as http:
            public = key.split("-")[2]
            answer = await http.patch(f"/admin/v1/callers/{public}", json={"limits": {"usd_per_day": 37 * price}})
            assert answer.status_code == 200, answer.text
            port = gateway.addresses[1][1]
            metrics = (await http.get(f"http://127.0.0.1:{port}/metrics")).text
        await until(lambda: len(messages) > 1, "a message at the end")
    first, last = messages
    assert {name: first[name] for name in ("kind", "key", "name", "owner", "limit", "level")} == {
        "kind": "budget", "key": public, "name": "shop", "owner": "ada", "limit": "usd_per_day", "level": 0.8,
    }  # fmt: skip
    assert first["spent_usd"] == pytest.approx(34 * price, rel=0.1)
    assert (last["level"], last["limit_usd"]) == (1.0, pytest.approx(37 * price))
    assert last["resets_at"] > 0
    (line,) = [
        line for line in metrics.splitlines() if line.startswith(f'apprentice_caller_cost_usd_total{{caller="{public}"')
    ]
    assert 'owner="ada"' in line
    assert float(line.split()[-1]) == pytest.approx(spent, rel=1e-6)


async def test_a_budget_that_was_raised_is_told_again_where_it_nears_its_end(
    configure: Configure, told: tuple[str, Told]
) -> None:
    url, messages = told
    async with run_gateway(configure(monitor={"webhook_url": url, "interval_seconds": 0.1})) as gateway:
        price = await spend(gateway, await gateway.key(), 0.0000001)
        key = await gateway.key(limits={"usd_per_day": 10 * price})
        spent = await spend(gateway, key, 8.5 * price)
        await until(lambda: messages, "a message at 80%")
        async with gateway.http() as http:
            body = {"limits": {"usd_per_day": 20 * price}}
            assert (await http.patch(f"/admin/v1/callers/{key.split('-')[2]}", json=body)).status_code == 200
        await spend(gateway, key, 17.5 * price - spent)
        await until(lambda: len(messages) > 1, "a message at 80% of the larger budget")
    first, second = messages
    assert [message["level"] for message in messages] == [0.8, 0.8]
    assert (first["limit_usd"], second["limit_usd"]) == (pytest.approx(10 * price), pytest.approx(20 * price))
    assert first["id"] != second["id"]


async def test_metrics_that_all_callers_may_read_name_no_owner(gateway: RunningGateway) -> None:
    key = await gateway.key(name="shop", owner="ada")
    await spend(gateway, key, 0.0000001)
    async with httpx.AsyncClient() as http:
        metrics = (await http.get(f"{gateway.url}/metrics")).text
    public = key.split("-")[2]
    assert f'apprentice_caller_cost_usd_total{{caller="{public}",owner=""}}' in metrics
    assert 'owner="ada"' not in metrics


async def test_the_cost_of_a_revoked_key_leaves_the_metrics_and_gives_its_room_back(gateway: RunningGateway) -> None:
    kept, revoked = await gateway.key(name="shop"), await gateway.key(name="for a day")
    for key in (kept, revoked):
        await spend(gateway, key, 0.0000001)
    async with gateway.http() as http:
        assert (await http.delete(f"/admin/v1/callers/{revoked.split('-')[2]}")).status_code == 200
        metrics = (await http.get(f"{gateway.url}/metrics")).text
    callers = set(re.findall(r'apprentice_caller_cost_usd_total\{caller="(\w+)"', metrics))
    assert kept.split("-")[2] in callers
    assert revoked.split("-")[2] not in callers
