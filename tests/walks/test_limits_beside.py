"""Limits of what a key sends beside completions: feedback, reports, and questions about its requests."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from tests.walks.conftest import Configure
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.one_minute import in_one_minute

PATIENT = {"lease_timeout_seconds": 20}
FEW = {"requests_per_minute": 5, "tokens_per_minute": 40}


def report(**more: Any) -> dict[str, Any]:
    return {"source_id": uuid.uuid4().hex, "task": "returns", "at": time.time() - 60, **more}


async def reported(http: httpx.AsyncClient, count: int) -> httpx.Response:
    return await http.post("/v1/records", json={"records": [report() for _ in range(count)]})


async def judged(http: httpx.AsyncClient, request_id: str, count: int, **more: Any) -> httpx.Response:
    entries = [{"request_id": request_id, "metric": "correct", "value": True, **more} for _ in range(count)]
    return await http.post("/v1/feedback", json={"feedback": entries})


async def test_feedback_reports_and_reads_count_each_entry_as_a_request(gateway: RunningGateway, redis: Redis) -> None:
    async def walk() -> None:
        key = await gateway.key(limits={"requests_per_minute": 1000, "tokens_per_minute": 40, "usd_per_day": 1})
        async with gateway.http(key) as http:
            first = await http.post("/v1/records", json=report())
            request_id = first.json()["request_id"]
            answers = [
                first,
                await reported(http, 3),
                await http.post("/v1/feedback", json={"request_id": request_id, "metric": "correct", "value": True}),
                await judged(http, request_id, 7),
                await http.get(f"/v1/requests/{request_id}"),
            ]
            left = [answer.headers["x-ratelimit-remaining-requests"] for answer in answers]
            assert left == ["999", "996", "995", "988", "987"]
            assert {answer.headers["x-ratelimit-remaining-tokens"] for answer in answers} == {"40"}
            spent = (await http.get("/v1/usage")).json()["usage"]
            assert spent["requests_per_minute"]["spent"] == 13
            assert spent["usd_per_day"]["spent"] == 0

    await in_one_minute(redis, walk)


@pytest.mark.parametrize("path", ["/v1/feedback", "/v1/records", "/v1/route"])
async def test_a_refused_body_counts_as_a_request(gateway: RunningGateway, redis: Redis, path: str) -> None:
    bodies = (b"{", b"\xff", b'{"feedback":[]}', b'{"records":[]}', b'{"feedback":[],"records":[]}')

    async def walk() -> None:
        async with gateway.http(await gateway.key(limits=FEW)) as http:
            sent = [
                await http.post(path, content=body, headers={"content-type": "application/json"})
                for body in (*bodies, bodies[0])
            ]
        assert [one.status_code for one in sent] == [400] * 5 + [429]
        left = [one.headers["x-ratelimit-remaining-requests"] for one in sent[:5]]
        assert left == ["4", "3", "2", "1", "0"]

    await in_one_minute(redis, walk)


async def test_what_the_minute_has_no_room_for_is_refused_and_not_stored(gateway: RunningGateway, redis: Redis) -> None:
    async def walk() -> None:
        await redis.delete("apprentice:feedback")
        async with gateway.http(await gateway.key(limits=FEW)) as http:
            request_id = (await reported(http, 1)).json()["results"][0]["request_id"]
            assert (await judged(http, request_id, 3, feedback_id="one")).status_code == 200
            for answer in (await judged(http, request_id, 2, feedback_id="two"), await reported(http, 2)):
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (429, "rate_limit_exceeded")
                assert "5 requests a minute" in error["message"]
                assert "send fewer entries" in error["message"]
                assert 1 <= int(answer.headers["retry-after"]) <= 60
                assert answer.headers["x-ratelimit-limit-requests"] == "5"
            assert (await http.get(f"/v1/requests/{request_id}")).status_code == 200
            assert (await http.get(f"/v1/requests/{request_id}")).status_code == 429
        assert await redis.xlen("apprentice:feedback") == 1

    await in_one_minute(redis, walk)


async def test_a_batch_over_the_whole_limit_is_told_how_many_entries_fit(gateway: RunningGateway) -> None:
    async with gateway.http(await gateway.key(limits=FEW)) as http:
        for answer in (await judged(http, "x", 6), await reported(http, 6)):
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (429, "rate_limit_exceeded")
            assert "at most 5 entries" in error["message"]
            assert answer.headers["x-should-retry"] == "false"


async def test_a_body_of_feedback_has_a_bound_of_its_own(configure: Configure) -> None:
    async with run_gateway(configure(limits={"feedback_body_bytes_max": 2000})) as gateway, gateway.http() as http:
        request_id = (await http.post("/v1/records", json=report(answer="x" * 4000))).json()["request_id"]
        told = {"request_id": request_id, "metric": "correct", "value": True}
        content = b'{"comment":"' + b"x" * 2000 + b'"}'

        async def chunked() -> AsyncIterator[bytes]:
            yield content

        for sent in (content, chunked()):
            long = await http.post("/v1/feedback", content=sent, headers={"content-type": "application/json"})
            assert (long.status_code, long.json()["error"]["code"]) == (413, "body_too_large")
            assert "2000 bytes" in long.json()["error"]["message"]
        assert (await http.post("/v1/feedback", json={**told, "comment": "x" * 1000})).status_code == 201


async def test_a_key_has_so_many_bytes_of_feedback_a_day_and_others_have_theirs(configure: Configure) -> None:
    limits = {**PATIENT, "feedback_bytes_per_day": 1 << 16}

    async def walk() -> None:
        key, other = await gateway.key(), await gateway.key(role="operator")
        async with gateway.http(key) as http, gateway.http(other) as operator:
            request_id = (await http.post("/v1/records", json=report())).json()["request_id"]

            async def statuses(by: httpx.AsyncClient, count: int) -> list[int]:
                told = {"request_id": request_id, "metric": "correct", "value": True, "comment": "x" * 3900}
                return [(await by.post("/v1/feedback", json=told)).status_code for _ in range(count)]

            first = await statuses(http, 16)
            assert first == [201, *[200] * 15]
            refused = await judged(http, request_id, 1, comment="x" * 3900)
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (429, "rate_limit_exceeded")
            assert "65536 bytes of feedback a day" in error["message"]
            assert refused.headers["x-should-retry"] == "false"
            assert 1 <= int(refused.headers["retry-after"]) <= 3600
            assert await statuses(operator, 1) == [201]

    async with run_gateway(configure(limits=limits)) as gateway:
        await in_one_minute(gateway.services.redis, walk)
