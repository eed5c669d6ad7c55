"""Background jobs: each runs beside the requests, and starts again when it fails or returns."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as TimedOut

from gateway.state.snapshot import SnapshotKeeper

T = TypeVar("T")
Job = Callable[[], Awaitable[None]]
log = logging.getLogger(__name__)
OUTAGE_INTERVAL_SECONDS = 0.5
WELL_SECONDS = 4.0
"""Longer than the wait between two tries of a job."""
RETRY_SECONDS = 0.25
RETRY_SECONDS_MAX = 2.0
STOP_SECONDS_MAX = 5.0
UNCHANGED_SECONDS_MAX = 60.0


@asynccontextmanager
async def run_jobs(jobs: Mapping[str, Job], snapshot: SnapshotKeeper) -> AsyncIterator[None]:
    """Run all jobs during the block. If a job fails, that is logged, and the others go on."""
    stopping, outage = asyncio.Event(), Outage(snapshot)
    jobs = {**jobs, "watch_outage": outage.watch}
    tasks = [
        asyncio.create_task(_again_and_again(name, job, stopping, outage), name=name) for name, job in jobs.items()
    ]
    try:
        yield
    finally:
        stopping.set()
        left = set(tasks)
        until = time.monotonic() + STOP_SECONDS_MAX
        while left and time.monotonic() < until:
            for task in left:
                task.cancel()  # repeatedly: a library may mistake a cancellation for its own time-out
            _, left = await asyncio.wait(left, timeout=0.2)
        for task in left:
            log.error("job %s did not stop", task.get_name())


async def run_until(work: Coroutine[Any, Any, T], stop: Coroutine[Any, Any, None]) -> T | None:
    """The result of the work; None if `stop` ends first. The one that still runs is cancelled and waited for. Raises
    the errors of both."""
    tasks = working, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return stopping.result() if stopping.done() else working.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def skip_unchanged(snapshot: SnapshotKeeper, work: Job) -> Job:
    """A job that skips the work while the state has not changed since the work last began and succeeded. After
    `UNCHANGED_SECONDS_MAX` it does the work anyway, since things that expire need it, too."""
    seen_generation, done_at = -1, 0.0

    async def look() -> None:
        nonlocal seen_generation, done_at
        generation = snapshot.current.generation
        if generation != seen_generation or time.monotonic() - done_at >= UNCHANGED_SECONDS_MAX:
            await work()
            seen_generation, done_at = generation, time.monotonic()

    return look


class Outage:
    """Log of jobs' faults, without a line for each try. An outage of Redis is logged at its beginning and its end; of
    other faults the first of each kind."""

    def __init__(self, snapshot: SnapshotKeeper) -> None:
        self._snapshot = snapshot
        self._began_at: float | None = None
        self._failed_at = 0.0
        self._others: dict[tuple[str, type[Exception]], float] = {}
        """The other faults of jobs by kind, with the time of the last one."""

    def failed(self, job: str, error: RedisError | OSError) -> None:
        """Note that a job has failed, and will be tried again."""
        now = time.monotonic()
        if not isinstance(error, (Disconnected, TimedOut)):
            if (job, type(error)) not in self._others:
                log.warning("job %s: %s", job, str(error) or type(error).__name__)
            self._others[job, type(error)] = now
            return
        self._failed_at = now
        if self._began_at is None:
            self._began_at = now
            log.warning(
                "Redis can't be used: %s. Requests go on; jobs wait for it, such as %s", str(error).rstrip("."), job
            )

    async def watch(self) -> None:
        """Log the end of an outage: Redis was read again, and no job has failed for a while."""
        while True:
            await asyncio.sleep(OUTAGE_INTERVAL_SECONDS)
            quiet = time.monotonic() - self._failed_at > WELL_SECONDS
            if self._began_at is not None and quiet and self._snapshot.fresh_at > self._failed_at:
                log.warning("Redis answers again, after %.0f s", self._failed_at - self._began_at)
                self._began_at = None
            recent = time.monotonic() - WELL_SECONDS
            self._others = {kind: at for kind, at in self._others.items() if at > recent}


async def _again_and_again(name: str, job: Job, stopping: asyncio.Event, outage: Outage) -> None:
    wait_seconds = RETRY_SECONDS
    while not stopping.is_set():
        began = time.monotonic()
        try:
            await job()
        except Exception as error:
            _tell(name, error, outage)
        lasted = time.monotonic() - began > RETRY_SECONDS_MAX
        wait_seconds = RETRY_SECONDS if lasted else min(2 * wait_seconds, RETRY_SECONDS_MAX)
        await asyncio.sleep(wait_seconds)


def _tell(name: str, error: Exception, outage: Outage) -> None:
    if isinstance(error, ExceptionGroup):
        for each in error.exceptions:
            _tell(name, each, outage)
    elif isinstance(error, (RedisError, OSError)):
        outage.failed(name, error)
    else:
        log.error("job %s failed", name, exc_info=error)
