"""A task of which requests are drawn for people to judge: as many as a test says, and what became of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from gateway.features.quality.state import Quality
from gateway.features.reviews.state import Reviews
from monitoring.quality.verdicts.quality import TaskQuality
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway

ASK: dict[str, Any] = {
    "model": "returns",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "A toaster, after 3 days."}],
}
NEXT, LIST = "/v1/reviews/next?task=returns", "/admin/v1/reviews?task=returns"
WAIT_SECONDS = 60.0


@pytest.fixture(autouse=True)
async def monitor_elsewhere(redis_url: str, redis: Redis) -> None:
    """Another gateway has the monitor's job, so that shares stay as the tests set them."""
    await redis.set("apprentice:duty:monitor", "another gateway")


def tasks(per_week: int = 100, **reviews: Any) -> dict[str, Any]:
    """The task `returns` with a budget of reviews."""
    monitor = {"reviews": {"per_week": per_week, **reviews}}
    return {"returns": {"fallback_pool": "general", "n_max": 2, "monitor": monitor}}


async def watch(gateway: RunningGateway, share: float, **health: Any) -> None:
    """Have the monitor say that so many requests are drawn."""
    _, generation = await gateway.features[Quality].store.of("returns")
    await gateway.features[Quality].store.put("returns", TaskQuality(review_share=share, **health), generation)
    await gateway.services.snapshot.refresh()


@asynccontextmanager
async def reviewing(
    configure: Configure, make_adapter: MakeAdapter, share: float = 1.0, **reviews: Any
) -> AsyncIterator[RunningGateway]:
    """A gateway of whose requests so many are drawn."""
    async with run_gateway(configure(tasks=tasks(**reviews))) as running:
        await running.place(make_adapter(1))
        await watch(running, share)
        yield running


async def ask(gateway: RunningGateway, key: str | None = None, **more: Any) -> str:
    """Ask the task, and return the request's id."""
    async with gateway.http(key) as http:
        answer = await http.post("/v1/chat/completions", json={**ASK, **more})
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-request-id"])


async def until_settled(gateway: RunningGateway, drawn: int) -> None:
    """Wait until so many draws have come to Redis, or were dropped, and all records, so that feedback finds its own."""
    services = gateway.services
    async with asyncio.timeout(WAIT_SECONDS):
        while services.admission.in_flight:  # a stream's draw is counted after its end
            await asyncio.sleep(0.005)
        while outcomes(gateway).get("drawn", 0) < drawn:
            await asyncio.sleep(0.005)
        await gateway.features[Reviews].queue.join()
        while services.flow.pending:
            await asyncio.sleep(0.005)


def outcomes(gateway: RunningGateway) -> dict[str, float]:
    """The number of reviews that were counted, by what became of them."""
    text = gateway.services.meters.exposition()[0].decode()
    lines = [line for line in text.splitlines() if line.startswith('apprentice_reviews_total{task="returns"')]
    counted = {line.split('outcome="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
    return {outcome: count for outcome, count in counted.items() if count}


async def counts(gateway: RunningGateway) -> dict[str, Any]:
    """The list's line of the task."""
    async with gateway.http() as http:
        (line,) = (await http.get(LIST)).json()["reviews"]
    return dict(line)


async def find_in_redis(redis: Any, word: bytes) -> list[str]:
    """The keys in Redis whose name or raw value has the word, whatever their kind."""
    readers = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"list": lambda key: redis.lrange(key, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1),
        b"stream": redis.xrange,
    }
    found = []
    async for key in redis.scan_iter("*"):
        kind = await redis.type(key)
        if kind != b"none" and word in repr((key, await readers[kind](key))).encode():
            found.append(key.decode())
    return sorted(found)
