"""A gateway, or a replica, that is full: requests wait for a place, fairly, for a while, while their caller stays."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Silent
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: dict[str, Any] = {"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]}


def one_place(configure: Configure, **limits: Any) -> dict[str, Any]:
    return configure(limits={"in_flight_max": 1, **limits})


def one_replica_place(configure: Configure, **limits: Any) -> dict[str, Any]:
    configuration = configure(limits=limits)
    configuration["pools"]["general"]["replicas"][0]["in_flight_max"] = 1
    return configuration


FULL = [one_place, one_replica_place]


class Asking:
    """Requests under way, each a task; what is left is cancelled in the end, which hangs up."""

    def __init__(self, gateway: RunningGateway, http: httpx.AsyncClient) -> None:
        self.services = gateway.services
        self._http = http

    def ask(self, headers: dict[str, str] | None = None, **more: Any) -> asyncio.Task[httpx.Response]:
        return asyncio.create_task(self._http.post("/v1/chat/completions", json=ASK | more, headers=headers))

    async def waiting(self, number: int) -> None:
        async with asyncio.timeout(60):
            while self.services.admission.waiting != number:
                await asyncio.sleep(0.005)

    async def all_given_back(self) -> None:
        async with asyncio.timeout(60):
            while self.services.admission.in_flight or self.services.admission.waiting:
                await asyncio.sleep(0.005)
        assert all(replica.in_flight == 0 for replica in self.services.fleet.replicas.values())


@pytest.mark.parametrize("full", FULL)
async def test_who_finds_no_place_waits_and_is_answered_once_there_is_one(
    configure: Configure, general: FakeEngine, full: Any
) -> None:
    general.faults.add(Silent(), times=1)
    async with run_gateway(full(configure)) as gateway, gateway.http() as http:
        asking = Asking(gateway, http)
        first = asking.ask()
        await general.until(lambda: general.in_flight == 1)
        others = [asking.ask() for _ in range(3)]
        await asking.waiting(3)
        first.cancel()
        assert [(await other).status_code for other in others] == [200, 200, 200]
        await asking.all_given_back()
        text = (await http.get("/metrics")).text
    assert 'apprentice_queue_seconds_count{priority="interactive"} 3' in text
    assert 'apprentice_queue_length{priority="interactive"} 0' in text


@pytest.mark.parametrize("full", FULL)
async def test_who_waits_too_long_is_told_when_to_come_again(
    configure: Configure, general: FakeEngine, full: Any
) -> None:
    general.faults.add(Silent(), times=1)
    async with run_gateway(full(configure, queue_seconds_max=0.1)) as gateway, gateway.http() as http:
        asking = Asking(gateway, http)
        first = asking.ask()
        await general.until(lambda: general.in_flight == 1)
        answer = await asking.ask()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overload")
        assert int(answer.headers["retry-after"]) >= 1
        record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()["record"]
        assert (record["error_code"], record["attempts"]) == ("overload", [])
        assert 'requests_shed_total{cause="queue_timeout"} 1' in (await http.get("/metrics")).text
        first.cancel()
        await asking.all_given_back()


@pytest.mark.parametrize("full", FULL)
async def test_who_hangs_up_in_the_queue_gives_its_place_back_and_no_engine_hears_of_it(
    configure: Configure, general: FakeEngine, full: Any
) -> None:
    general.faults.add(Silent(), times=1)
    async with run_gateway(full(configure, queue_seconds_max=30)) as gateway, gateway.http() as http:
        asking = Asking(gateway, http)
        first = asking.ask()
        await general.until(lambda: general.in_flight == 1)
        second, third = asking.ask(), asking.ask()
        await asking.waiting(2)
        second.cancel()
        await asking.waiting(1)
        first.cancel()
        assert (await third).status_code == 200
        await asking.all_given_back()
    assert general.requests_total == 2


@pytest.mark.parametrize("full", FULL)
async def test_a_full_queue_sheds_the_callers_own_flood_with_429_and_others_are_served(
    configure: Configure, general: FakeEngine, full: Any
) -> None:
    general.faults.add(Silent(), times=1)
    async with run_gateway(full(configure, queue_max=4, queue_seconds_max=30)) as gateway:
        other_key = await gateway.key()
        async with gateway.http() as http, gateway.http(other_key) as other:
            asking = Asking(gateway, http)
            first = asking.ask()
            await general.until(lambda: general.in_flight == 1)
            flood = [asking.ask() for _ in range(2)]
            await asking.waiting(2)
            shed = await asking.ask()
            assert (shed.status_code, shed.json()["error"]["code"]) == (429, "caller_busy")
            assert int(shed.headers["retry-after"]) >= 1
            answered = asyncio.create_task(other.post("/v1/chat/completions", json=ASK))
            await asking.waiting(3)
            first.cancel()
            assert [(await one).status_code for one in (*flood, answered)] == [200] * 3
            await asking.all_given_back()


async def test_a_caller_may_have_its_requests_wait_behind_others_but_never_before_them(
    configure: Configure, general: FakeEngine
) -> None:
    general.faults.add(Silent(), times=1)
    async with run_gateway(one_place(configure, batch_share_min=0)) as gateway, gateway.http() as http:
        asking = Asking(gateway, http)
        first = asking.ask()
        await general.until(lambda: general.in_flight == 1)
        batch = [asking.ask({"x-apprentice-priority": "batch"}), asking.ask(service_tier="flex")]
        await asking.waiting(2)
        assert gateway.services.admission.waiting_by_priority() == {("interactive",): 0, ("batch",): 2}
        interactive = asking.ask({"x-apprentice-priority": "interactive"}, service_tier="priority", seed=7)
        await asking.waiting(3)
        first.cancel()
        assert [(await one).status_code for one in (*batch, interactive)] == [200] * 3
        refused = await asking.ask({"x-apprentice-priority": "urgent"})
    assert general.requests[1].body["seed"] == 7
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_value")


async def test_a_task_waits_where_its_adapters_pool_and_its_fallback_are_both_full(
    configure: Configure, make_adapter: Any, small: FakeEngine, general: FakeEngine
) -> None:
    configuration = one_replica_place(configure)
    configuration["pools"]["small"]["replicas"][0]["in_flight_max"] = 1
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        small.faults.add(Silent(), times=1)
        general.faults.add(Silent(), times=1)
        asking = Asking(gateway, http)
        at_small = asking.ask(model="returns")
        await small.until(lambda: small.in_flight == 1)
        at_general = asking.ask(model="returns")
        await general.until(lambda: general.in_flight == 1)
        third = asking.ask(model="returns")
        await asking.waiting(1)
        at_small.cancel()
        answer = await third
        assert (answer.status_code, answer.headers["x-apprentice-reason"]) == (200, "adapter")
        at_general.cancel()
        await asking.all_given_back()


async def test_what_checks_said_of_a_request_that_the_queue_refuses_is_on_its_record(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    checks = {"holdout": {"mode": "observe", "share": 1.0}}
    limits = {"queue_seconds_max": 0.1}
    configuration = configure(limits=limits, tasks={"returns": {"checks": checks, "fallback_pool": None}})
    configuration["pools"]["small"]["replicas"][0]["in_flight_max"] = 1
    async with run_gateway(configuration) as gateway, gateway.http() as http:
        await gateway.place(make_adapter(1))
        small.faults.add(Silent(), model="returns@*", times=1)
        asking = Asking(gateway, http)
        first = asking.ask(model="returns")
        await small.until(lambda: small.in_flight == 1)
        answer = await asking.ask(model="returns")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overload")
        record = (await http.get(f"/v1/requests/{answer.headers['x-request-id']}")).json()["record"]
        assert [(one["check"], one["fired"]) for one in record["findings"]] == [("holdout", True)]
        assert (record["led_to"], record["reason"], record["attempts"]) == ("returns@v1", "overload", [])
        first.cancel()
        await asking.all_given_back()


@pytest.mark.parametrize("path", ["/v1/route", "/v1/records"])
async def test_what_is_asked_beside_waits_for_a_place_too(configure: Configure, general: FakeEngine, path: str) -> None:
    general.faults.add(Silent(), times=1)
    report = {"source_id": "a", "task": "returns", "at": time.time()}
    sent = report if path == "/v1/records" else ASK
    async with run_gateway(one_place(configure, queue_seconds_max=0.1)) as gateway, gateway.http() as http:
        asking = Asking(gateway, http)
        first = asking.ask()
        await general.until(lambda: general.in_flight == 1)
        answer = await http.post(path, json=sent)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overload")
        first.cancel()
        await asking.all_given_back()
        assert (await http.post(path, json=sent)).status_code in (200, 201)
        await asking.all_given_back()


async def test_with_no_queue_a_full_gateway_refuses_at_once(configure: Configure, general: FakeEngine) -> None:
    general.faults.add(Silent(), times=1)
    async with run_gateway(one_place(configure, queue_max=0)) as gateway, gateway.http() as http:
        asking = Asking(gateway, http)
        first = asking.ask()
        await general.until(lambda: general.in_flight == 1)
        assert (await asking.ask()).json()["error"]["code"] == "overload"
        first.cancel()
        await asking.all_given_back()
