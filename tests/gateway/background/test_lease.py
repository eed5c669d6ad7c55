"""One gateway at a time does a job; the next one takes it over at once, or after the lease of one that was killed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as TimedOut

from gateway.background.lease import JobLease, JobPasses, announce_work
from gateway.state.snapshot import ConfiguredPolicy, SnapshotKeeper
from router.policy import AttemptLimits
from serving.object_store import CHANGED_CHANNEL, ObjectStore
from tests.waiting import until

KEY = "apprentice:duty:test"
LEASE_SECONDS = 3.0
INTERVAL_SECONDS = 0.01
SECONDS_MAX = 60.0


def lease_of(redis: Redis, owner: str, lease_seconds: float = LEASE_SECONDS) -> JobLease:
    keeper = SnapshotKeeper(redis, ConfiguredPolicy({}, frozenset(), AttemptLimits()), {}, lambda _: None)
    return JobLease(redis, keeper, JobPasses(), "test", owner, lease_seconds)


async def count_calls(redis: Redis, command: str) -> int:
    return int((await redis.info("commandstats")).get(f"cmdstat_{command}", {"calls": 0})["calls"])


def working(events: asyncio.Queue[str], name: str) -> Callable[[], Awaitable[None]]:
    async def work() -> None:
        events.put_nowait(name)

    return work


async def test_next_gateway_works_at_once_after_a_stop_and_does_not_ask_before(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    first, second = (lease_of(redis, name, 600.0) for name in ("first", "second"))
    async with asyncio.timeout(SECONDS_MAX):
        working_first = asyncio.create_task(first.repeat(working(events, "first"), INTERVAL_SECONDS))
        assert await events.get() == "first"
        asked = await count_calls(redis, "evalsha")
        following = asyncio.create_task(second._snapshot.follow(600.0))
        await until(lambda: _has_listener(redis))
        working_second = asyncio.create_task(second.repeat(working(events, "second"), INTERVAL_SECONDS))
        await until(lambda: _has_asked(redis, asked))
        assert {await events.get() for _ in range(20)} == {"first"}
        assert await _has_asked(redis, asked), "neither has asked again"
        await stopped(working_first)
        while await events.get() != "second":
            pass
        await stopped(working_second)
        await stopped(following)
    assert second.is_new
    assert await redis.exists(KEY) == 0


async def _has_listener(redis: Redis) -> bool:
    [(_, listeners)] = await redis.pubsub_numsub(CHANGED_CHANNEL)
    return bool(listeners)


async def _has_asked(redis: Redis, before: int) -> bool:
    return await count_calls(redis, "evalsha") == before + 1


async def stopped(task: asyncio.Task[None]) -> None:
    while not task.done():
        task.cancel()  # more than once: redis-py may take the first for a time-out of its own
        await asyncio.wait([task], timeout=0.1)


async def test_next_gateway_works_once_the_lease_of_a_killed_one_has_run_out(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    await redis.set(KEY, "killed", px=500)
    async with asyncio.timeout(SECONDS_MAX):
        task = asyncio.create_task(lease_of(redis, "second").repeat(working(events, "second"), INTERVAL_SECONDS))
        assert await events.get() == "second"
        await stopped(task)


async def test_holder_asks_before_it_works_on_what_has_changed(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    lease = lease_of(redis, "first", 600.0)
    work = working(events, "first")
    assert await lease.do(work)
    await redis.set(KEY, "second")
    assert await lease.do(work), "no third of the lease is over, and nothing has changed"
    await ObjectStore(redis, "overrides").put("rule", {"action": "general", "contains": "a word"})
    await lease._snapshot.refresh()
    assert not await lease.do(work)


async def test_work_is_cancelled_once_another_gateway_has_the_lease(redis: Redis) -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with asyncio.timeout(SECONDS_MAX):
        doing = asyncio.create_task(lease_of(redis, "first").do(work))
        await began.wait()
        await redis.set(KEY, "second")
        assert await doing is False
    assert cancelled.is_set()


async def test_work_is_cancelled_once_the_lease_runs_out_while_redis_is_silent(redis: Redis) -> None:
    cancelled = asyncio.Event()

    async def work() -> None:
        await redis.client_pause(60_000, all=False)  # what writes waits
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    try:
        async with asyncio.timeout(SECONDS_MAX / 2):
            with pytest.raises(TimedOut, match="lease"):
                await lease_of(redis, "first", 1.0).do(work)
    finally:
        await redis.client_unpause()
    assert cancelled.is_set()


async def test_work_that_gives_the_lease_back_lets_another_gateway_have_the_job(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    first, second = (lease_of(redis, name, 600.0) for name in ("first", "second"))

    async def work() -> None:
        await first.give_back()

    assert await first.do(work)
    assert await second.do(working(events, "second"))
    assert not await first.do(working(events, "first"))


async def test_pass_that_does_not_end_or_fails_is_measured(redis: Redis) -> None:
    lease = lease_of(redis, "first")
    began, go_on, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    def read() -> float:
        return lease._passes.read_seconds()[("test",)]

    async def fail() -> None:
        raise OSError("no disk")

    async def work() -> None:
        began.set()
        await go_on.wait()
        ended.set()

    async def is_waiting() -> bool:
        return read() == 0.0

    async with asyncio.timeout(SECONDS_MAX):
        with pytest.raises(OSError, match="no disk"):
            await lease.repeat(fail, 600.0)
        failing = read()
        assert failing > 0
        repeating = asyncio.create_task(lease.repeat(work, 600.0))
        await began.wait()
        assert read() > failing, "since the first try, which failed"
        go_on.set()
        await ended.wait()
        await until(is_waiting)
        await stopped(repeating)


async def test_wake_ends_the_wait_and_stop_comes_before_the_lease_is_given_back(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    wake = asyncio.Event()

    async def stop() -> None:
        events.put_nowait(f"stopped, {await redis.exists(KEY)} held")

    lease = lease_of(redis, "first", 60.0)
    async with asyncio.timeout(SECONDS_MAX):
        running = asyncio.create_task(lease.repeat(working(events, "worked"), 600.0, wake=wake, stop=stop))
        assert await events.get() == "worked"
        wake.set()
        assert await events.get() == "worked"
        running.cancel()
        await asyncio.wait([running])
    assert events.get_nowait() == "stopped, 1 held"
    assert await redis.exists(KEY) == 0


async def test_what_the_work_raises_gives_the_lease_back(redis: Redis) -> None:
    async def fail() -> None:
        raise ConnectionError("a fault")

    with pytest.raises(ConnectionError):
        await lease_of(redis, "first").repeat(fail, INTERVAL_SECONDS)
    assert await redis.exists(KEY) == 0


async def test_waiting_work_begins_at_a_snapshot_and_where_it_is_announced(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    lease = lease_of(redis, "first", 600.0)
    keeper = lease._snapshot
    async with asyncio.timeout(SECONDS_MAX):
        following = asyncio.create_task(keeper.follow(600.0))
        await until(lambda: _has_listener(redis))
        running = asyncio.create_task(lease.repeat(working(events, "worked"), INTERVAL_SECONDS, waits=True))
        assert await events.get() == "worked"
        await ObjectStore(redis, "overrides").put("rule", {"action": "general", "contains": "a word"})
        assert await events.get() == "worked"
        assert events.empty()
        await announce_work(redis, "test")
        assert await events.get() == "worked"
        await stopped(running)
        await stopped(following)
    assert not keeper.woken


async def test_waiting_work_is_not_begun_by_changes_while_another_gateway_has_the_lease(redis: Redis) -> None:
    events: asyncio.Queue[str] = asyncio.Queue()
    lease = lease_of(redis, "first", 600.0)
    await redis.set(KEY, "second", px=600_000)
    async with asyncio.timeout(SECONDS_MAX):
        asked = await count_calls(redis, "evalsha")
        running = asyncio.create_task(lease.repeat(working(events, "worked"), INTERVAL_SECONDS, waits=True))
        await until(lambda: _has_asked(redis, asked))
        await lease._snapshot.refresh()
        assert not lease._snapshot.woken
        await redis.delete(KEY)
        lease._snapshot.given_back[KEY.encode()].set()
        assert await events.get() == "worked"
        await stopped(running)


async def test_work_that_is_short_needs_no_task_beside_its_own(redis: Redis) -> None:
    tasks: list[set[asyncio.Task[object]]] = []

    async def work() -> None:
        tasks.append(asyncio.all_tasks())

    before = asyncio.all_tasks()
    assert await lease_of(redis, "first", 600.0).do(work)
    assert tasks == [before]


async def test_time_limit_of_the_work_is_its_own_fault_and_its_lease_is_renewed(redis: Redis) -> None:
    lease = lease_of(redis, "first")

    async def work() -> None:
        began = lease._ends_at
        await until(lambda: _is_later(lease, began))
        raise TimeoutError("its own")

    async with asyncio.timeout(SECONDS_MAX):
        with pytest.raises(TimeoutError, match="its own"):
            await lease.do(work)
    assert await redis.get(KEY) == b"first"


async def _is_later(lease: JobLease, ends_at: float) -> bool:
    return lease._ends_at > ends_at


async def test_work_that_is_stopped_is_cancelled_and_nothing_renews_its_lease(redis: Redis) -> None:
    began, before = asyncio.Event(), asyncio.all_tasks()

    async def work() -> None:
        began.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(SECONDS_MAX):
        doing = asyncio.create_task(lease_of(redis, "first").do(work))
        await began.wait()
        await until(lambda: _has_tasks(len(before) + 2))
        doing.cancel()
        await asyncio.wait([doing])
    assert doing.cancelled()
    assert asyncio.all_tasks() == before


async def _has_tasks(count: int) -> bool:
    return len(asyncio.all_tasks()) >= count
