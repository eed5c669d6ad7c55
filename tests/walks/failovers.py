"""Load on a gateway while its Redis changes: no request is refused, and nothing is lost that was acknowledged."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gateway.features.records.archiving import archive_once
from monitoring.feedback import STREAM_KEY
from monitoring.redis_address import open_async_redis
from tests.fakes.valkey import Valkey
from tests.waiting import until
from tests.walks.gateway import RunningGateway, run_gateway

KEEPS = ("--appendonly", "yes", "--appendfsync", "always")


@dataclass
class Load:
    """Requests and judgements of four callers: the answers' status, and the requests of acknowledged feedback."""

    gateway: RunningGateway
    answers: set[int] = field(default_factory=set)
    acknowledged: set[str] = field(default_factory=set)
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def goes_on(self) -> None:
        """Wait until 20 more are acknowledged."""
        before = len(self.acknowledged)
        await until(lambda: len(self.acknowledged) > before + 20 or any(task.done() for task in self.tasks))

    async def judge(self) -> None:
        """Ask and judge, one request after another: none is refused, and feedback either acknowledged or not."""
        async with self.gateway.http() as http:
            while True:
                body = {"model": "general", "messages": [{"role": "user", "content": "How many days has a week?"}]}
                answer = await http.post("/v1/chat/completions", json=body)
                self.answers.add(answer.status_code)
                request = answer.headers["x-request-id"]
                told = await http.post("/v1/feedback", json={"request_id": request, "metric": "correct", "value": True})
                if told.status_code < 300:
                    self.acknowledged.add(request)


@asynccontextmanager
async def loaded(gateway: RunningGateway) -> AsyncIterator[Load]:
    """A gateway under load for as long as the block runs."""
    load = Load(gateway)
    load.tasks = [asyncio.create_task(load.judge()) for _ in range(4)]
    try:
        await load.goes_on()
        yield load
    finally:
        for task in load.tasks:
            task.cancel()
        ends = await asyncio.gather(*load.tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 4, ends


async def check_nothing_is_lost(load: Load, url: str) -> None:
    """Look into the Redis that an address leads to, and have a helper process do its work there."""
    async with open_async_redis(url) as redis, redis.pipeline(transaction=False) as pipe:
        for request in load.acknowledged:
            pipe.hlen(f"{STREAM_KEY}:{request}")
        assert all(await pipe.execute()), "each is stored, also where its record waits in the spool"
        await until(lambda: are_in_stream(redis, load.acknowledged), "all of it in the stream, behind its record")
    assert load.answers == {200}
    services = load.gateway.services
    assert await archive_once(services.settings, services.meters) is not None, "helper processes find it, too"


async def are_in_stream(redis: Any, requests: set[str]) -> bool:
    stored = b" ".join(value for _, fields in await redis.xrange(STREAM_KEY) for value in fields.values())
    return all(request.encode() in stored for request in requests)


async def check_failover(configuration: dict[str, Any], primary: Valkey) -> None:
    """Kill a primary that has replicas under a gateway's load, and see that one that took over has all."""
    url = configuration["redis_url"]
    configuration = configuration | {"redis": {"replicas_acked_min": 1}}
    async with open_async_redis(url) as redis:
        before = (await redis.info("server"))["run_id"]
    async with run_gateway(configuration) as gateway:
        async with loaded(gateway) as load:
            await primary.end(signal.SIGKILL)
            await load.goes_on()
        await check_nothing_is_lost(load, url)
    async with open_async_redis(url) as promoted:
        assert (await promoted.info("server"))["run_id"] != before
