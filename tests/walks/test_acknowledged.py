"""The answers to callers and admins where Redis stores durably in time, and where it does not."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from gateway.app import open_gateway
from gateway.configuration.settings import Settings
from gateway.errors import StateError
from gateway.state.durability import MARK_KEY
from tests.fakes.ports import free_port
from tests.fakes.valkey import APPENDS, Valkey, valkey
from tests.walks.conftest import Configure
from tests.walks.gateway import run_gateway

ASK = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}
RULE = {"action": "general", "contains": "warranty"}


@pytest.fixture
async def everysec() -> AsyncIterator[Valkey]:
    """A Valkey that syncs once a second."""
    async with valkey(*APPENDS) as at:
        yield at


async def judged(http: httpx.AsyncClient, **more: Any) -> httpx.Response:
    request_id = (await http.post("/v1/chat/completions", json=ASK)).headers["x-request-id"]
    return await judge(http, request_id, **more)


async def judge(http: httpx.AsyncClient, request_id: str, **more: Any) -> httpx.Response:
    return await http.post("/v1/feedback", json={"request_id": request_id, "metric": "correct", "value": True, **more})


async def marks(at: Valkey) -> int:
    async with Redis(unix_socket_path=str(at.socket)) as redis:
        return int(await redis.get(MARK_KEY) or 0)


async def test_a_batch_of_feedback_and_each_change_of_an_admin_wait_once(
    configure: Configure, everysec: Valkey
) -> None:
    async with run_gateway(configure(redis_url=everysec.url)) as gateway, gateway.http() as http:
        request_id = (await http.post("/v1/chat/completions", json=ASK)).headers["x-request-id"]
        many = [{"request_id": request_id, "metric": "correct", "value": True, "rater": f"r{n}"} for n in range(50)]
        results = (await http.post("/v1/feedback", json={"feedback": many})).json()["results"]
        assert {one["status"] for one in results} == {201}
        assert await marks(everysec) == 1
        assert (await http.put("/admin/v1/overrides/rule", json=RULE)).status_code == 200
        assert await marks(everysec) == 2
        assert (await http.get("/admin/v1/overrides")).status_code == 200
        assert (await http.delete("/admin/v1/overrides/none")).status_code == 404
        assert await marks(everysec) == 2


async def test_batch_of_reports_waits_once_and_learns_that_a_slow_one_may_be_stored(
    configure: Configure, everysec: Valkey
) -> None:
    reports = [{"source_id": f"s{n}", "task": "returns", "at": time.time()} for n in range(30)]
    async with run_gateway(configure(redis_url=everysec.url)) as gateway, gateway.http() as http:
        results = (await http.post("/v1/records", json={"records": reports})).json()["results"]
        assert {one["status"] for one in results} == {201}
        assert await marks(everysec) == 1
    wants = wanting(1, seconds=0.5)
    async with run_gateway(configure(redis_url=everysec.url, redis=wants)) as gateway, gateway.http() as http:
        for body in ({"records": reports}, reports[0]):
            refused = await http.post("/v1/records", json=body)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
            assert "Sent again, it is stored once." in refused.json()["error"]["message"]


async def test_what_too_few_replicas_have_is_refused_and_stored_once_when_it_is_sent_again(
    configure: Configure,
) -> None:
    port = free_port()
    primary = valkey(*APPENDS, "--port", str(port), "--repl-diskless-sync-delay", "0")
    async with primary as at, run_gateway(configure(redis_url=at.url, redis=wanting(1, seconds=2.5))) as gateway:
        http = gateway.http()
        async with http:
            refused = await judged(http)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
            said = refused.json()["error"]["message"]
            assert "It may have been stored" in said
            feedback_id = said.rpartition("feedback_id is '")[2].removesuffix("'.")
            (request_id,) = await requests_with_feedback(at)
            async with valkey(*APPENDS, "--replicaof", f"127.0.0.1 {port}"):
                answer = await judge(http, request_id, feedback_id=feedback_id)
                while answer.status_code == 503:  # the replica is on its way
                    answer = await judge(http, request_id, feedback_id=feedback_id)
                assert (answer.status_code, answer.json()["feedback_id"]) == (200, feedback_id)
            assert len((await http.get(f"/v1/requests/{request_id}")).json()["feedback"]) == 1


async def test_each_judgement_of_a_batch_and_an_admin_are_told_that_it_may_be_stored(
    configure: Configure, everysec: Valkey
) -> None:
    async with run_gateway(configure(redis_url=everysec.url, redis=wanting(1))) as gateway, gateway.http() as http:
        request_id = (await http.post("/v1/chat/completions", json=ASK)).headers["x-request-id"]
        good = {"request_id": request_id, "metric": "correct", "value": True}
        bad = {"request_id": request_id, "metric": "unheard_of", "value": True}
        one, other = (await http.post("/v1/feedback", json={"feedback": [good, bad]})).json()["results"]
        assert (one["status"], one["error"]["code"], other["status"]) == (503, "storage_unavailable", 400)
        assert one["feedback_id"]
        refused = await http.put("/admin/v1/overrides/rule", json=RULE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
        assert refused.headers["retry-after"] == "1"
        assert [one["id"] for one in (await http.get("/admin/v1/overrides")).json()["overrides"]] == ["rule"]
        assert 'apprentice_refusals_total{code="storage_unavailable"} 2' in (await http.get("/metrics")).text


async def test_with_each_write_on_disk_before_its_answer_nothing_is_waited_for(configure: Configure) -> None:
    async with valkey("--appendonly", "yes", "--appendfsync", "always") as at:
        async with run_gateway(configure(redis_url=at.url)) as gateway, gateway.http() as http:
            assert (await judged(http)).status_code == 201
            assert gateway.services.durability.storage.durable
        assert await marks(at) == 0


async def test_a_gateway_does_not_start_on_a_redis_that_may_drop_state(configure: Configure) -> None:
    async with valkey("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lfu") as at:
        with pytest.raises(StateError, match="Set maxmemory-policy noeviction"):
            async with open_gateway(Settings(**configure(redis_url=at.url))):
                pass


def wanting(replicas: int, seconds: float = 0.3) -> dict[str, Any]:
    return {"replicas_acked_min": replicas, "acked_timeout_seconds": seconds}


async def requests_with_feedback(at: Valkey) -> list[str]:
    async with Redis(unix_socket_path=str(at.socket)) as redis:
        keys = [key.decode().split(":") async for key in redis.scan_iter("apprentice:feedback:*")]
    return sorted({parts[2] for parts in keys})
