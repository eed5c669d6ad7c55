"""One gateway at a time does a job; the next one takes it over at once, or after the lease of one that was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from gateway.background.lease import JobLease

LEASE_SECONDS = 3.0
INTERVAL_SECONDS = 0.01
SECONDS_MAX = 60.0


def working(events: asyncio.Queue[str], name: str) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        events.put_nowait(name)

    return work


async def test_one_gateway_works_and_the_next_one_does_once_it_stops(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    leases = [JobLease(redis, "test", name, LEASE_SECONDS) for name in ("first", "second")]
    async with asyncio.timeout(SECONDS_MAX):
        first = asyncio.create_task(leases[0].repeat(working(events, "first"), INTERVAL_SECONDS))
        assert await events.get() == "first"
        second = asyncio.create_task(leases[1].repeat(working(events, "second"), INTERVAL_SECONDS))
        assert {await events.get() for _ in range(20)} == {"first"}
        first.cancel()
        await asyncio.wait([first])
        while await events.get() != "second":
            pass
        second.cancel()
        await asyncio.wait([second])
    assert leases[1].is_new
    assert await redis.exists("apprentice:duty:test") == 0


async def test_work_is_cancelled_once_another_gateway_has_the_lease(redis: Redis) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with asyncio.timeout(SECONDS_MAX):
        doing = asyncio.create_task(JobLease(redis, "test", "first", LEASE_SECONDS).do(work))
        await began.wait()
        await redis.set("apprentice:duty:test", "second")
        assert await doing is False
    assert cancelled.is_set()


async def test_wake_ends_the_wait_and_stop_comes_before_the_lease_is_given_back(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    wake = asyncio.Event()

    async def stop() -> None:
        events.put_nowait(f"stopped, {await redis.exists('apprentice:duty:test')} held")

    lease = JobLease(redis, "test", "first", 60.0)
    async with asyncio.timeout(SECONDS_MAX):
        running = asyncio.create_task(lease.repeat(working(events, "worked"), 600.0, wake=wake, stop=stop))
        assert await events.get() == "worked"
        wake.set()
        assert await events.get() == "worked"
        running.cancel()
        await asyncio.wait([running])
    assert events.get_nowait() == "stopped, 1 held"
    assert await redis.exists("apprentice:duty:test") == 0


async def test_what_the_work_raises_gives_the_lease_back(redis: Redis) -> None:
    async def fail() -> None:
        raise ConnectionError("a fault")

    with pytest.raises(ConnectionError):
        await JobLease(redis, "test", "first").repeat(fail, INTERVAL_SECONDS)
    assert await redis.exists("apprentice:duty:test") == 0
