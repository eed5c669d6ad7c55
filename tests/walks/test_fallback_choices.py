"""A task's share of general: a sick adapter doesn't drown it, and refusals name the reason."""

from __future__ import annotations

import asyncio
from typing import Any

import openai
import pytest

from gateway.configuration.settings import Settings
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Status
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.limited import ask

LIMITS = {"backoff_seconds": 0.01, "retries_max": 0, "lease_timeout_seconds": 20}


def capped(gateway: RunningGateway, reason: str) -> float:
    return gateway.services.meters.fallback_capped.cell("returns", reason).value


async def test_a_sick_adapter_sends_no_more_than_its_share_to_general(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, general: FakeEngine
) -> None:
    tasks = {"returns": {"general_share_max": 0.25}, "other": {}}
    async with run_gateway(configure(tasks=tasks, limits=LIMITS)) as gateway, gateway.openai() as client:
        await gateway.place(make_adapter(1))
        small.faults.add(Status(500), model="returns@*")
        got: list[Any] = []
        for _ in range(10):
            got += await asyncio.gather(*(ask(client, "returns") for _ in range(8)))
        answered = [each for each in got if not isinstance(each, Exception)]
        assert 5 <= len(answered) <= 80 * 0.25
        refused = [each for each in got if isinstance(each, Exception)]
        assert all(isinstance(each, openai.InternalServerError) for each in refused)
        assert {(each.status_code, each.code) for each in refused} == {(503, "fallback_capped")}
        assert refused[-1].response.headers["retry-after"] == "60"
        assert sum(seen.model == "large" for seen in general.requests) == len(answered)
        assert sum(cell.value for cell in gateway.services.meters.fallback_capped._cells.values()) == len(refused)
        assert not isinstance(await ask(client, "other"), Exception), "it is another task's cap"
        small.faults.clear()

        async def is_well() -> bool:
            answer = await ask(client, "returns")
            return not isinstance(answer, Exception) and answer.model == "returns@v1"

        await until(is_well, "its adapter answers again")


@pytest.mark.parametrize("gateways", [1, 2])
async def test_general_costs_a_task_no_more_in_a_day_than_its_cap(configure: Configure, gateways: int) -> None:
    cap = 0.02
    tasks = {"returns": {"general_usd_per_day": cap}}
    configuration = configure(tasks=tasks, limits={**LIMITS, "quota_share": 0.1})
    async with run_gateway(configuration) as one, run_gateway(configuration) as other:
        got: list[Any] = []
        async with one.openai() as client, other.openai() as second:
            clients = (client, second)[:gateways]
            while sum(isinstance(each, Exception) for each in got[-20:]) < 20 and len(got) < 400:
                got += await asyncio.gather(*(ask(each, "returns") for each in clients * (20 // gateways)))
                await asyncio.sleep(0)
        answered = [each for each in got if not isinstance(each, Exception)]
        spent = sum(each.usage.prompt_tokens * 10 + each.usage.completion_tokens * 20 for each in answered) / 1e6
        most = max(each.usage.prompt_tokens * 10 + each.usage.completion_tokens * 20 for each in answered) / 1e6
        assert cap / 4 < spent <= cap + gateways * most
        assert (got[-1].status_code, got[-1].code) == (503, "fallback_capped")
        assert capped(one, "no_replica") >= 1
        headers = got[-1].response.headers
        assert (headers["x-apprentice-task"], headers["x-apprentice-reason"]) == ("returns", "no_replica")
        assert (headers["retry-after"], headers["x-should-retry"]) == ("60", "false")


def test_a_cap_in_money_needs_the_price_of_the_fallback(configure: Configure) -> None:
    configuration = configure(tasks={"returns": {"general_usd_per_day": 1}})
    del configuration["pools"]["general"]["price"]
    with pytest.raises(ValueError, match="general_usd_per_day: its fallback pool needs a price"):
        Settings(**configuration)
