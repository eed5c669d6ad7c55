"""All jobs, and how they are begun again: the table of what happens beside requests."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from redis.exceptions import RedisError

from gateway.admin.audit_head_job import keep_audit_head
from gateway.features.evaluations.job import keep_evaluating
from gateway.features.fitting.job import keep_fitting
from gateway.features.quality.job import keep_monitoring
from gateway.features.quality.judgements import follow_judgements
from gateway.features.records.archiving import keep_archiving
from gateway.features.records.rewriting import keep_rewriting
from gateway.features.releases.reconciling import keep_reconciling
from gateway.features.reviews.job import keep_reviewing
from gateway.features.shadows.job import run_shadows
from gateway.fleet_health import keep_checking_health
from gateway.services import Services

log = logging.getLogger(__name__)
PRESENCE_INTERVAL_SECONDS = 0.5
LAG_INTERVAL_SECONDS = 0.1
STATE_INTERVAL_SECONDS = 30.0
OUTAGE_INTERVAL_SECONDS = 0.5
WELL_SECONDS = 4.0
"""Longer than the wait between two tries of a job."""
RETRY_SECONDS = 0.25
RETRY_SECONDS_MAX = 2.0
STOP_SECONDS_MAX = 5.0


@asynccontextmanager
async def running_jobs(services: Services) -> AsyncIterator[None]:
    """All jobs run while the block does. One that fails is logged and begun again; it takes nothing else down."""
    stopping, outage = asyncio.Event(), Outage()
    jobs: dict[str, Callable[[Services], Awaitable[None]]] = {
        "follow_snapshot": _follow_snapshot,
        "check_health": keep_checking_health,
        "reconcile": keep_reconciling,
        "tell_presence": _tell_presence,
        "lease_quotas": _lease_quotas,
        "run_shadows": _run_shadows,
        "keep_reviews": keep_reviewing,
        "monitor": keep_monitoring,
        "follow_judgements": follow_judgements,
        "keep_audit_head": keep_audit_head,
        "flush_records": _flush_records,
        "archive_records": keep_archiving,
        "run_evaluations": keep_evaluating,
        "fit_models": keep_fitting,
        "rewrite_append_only_file": keep_rewriting,
        "watch_lag": _watch_lag,
        "watch_state": _watch_state,
        "watch_outage": outage.watch,
    }
    tasks = [
        asyncio.create_task(_again_and_again(services, name, job, stopping, outage), name=name)
        for name, job in jobs.items()
    ]
    try:
        yield
    finally:
        stopping.set()
        left = set(tasks)
        until = time.monotonic() + STOP_SECONDS_MAX
        while left and time.monotonic() < until:
            for task in left:
                task.cancel()  # more than once: a library may have taken the first for a time-out of its own
            _, left = await asyncio.wait(left, timeout=0.2)
        for task in left:
            log.error("job %s did not stop", task.get_name())


class Outage:
    """Whether Redis fails the jobs. The log has an outage's beginning and its end, and not each try between them."""

    def __init__(self) -> None:
        self._began_at: float | None = None
        self._failed_at = 0.0

    def failed(self, job: str, error: Exception) -> None:
        """A job has failed, and is tried again."""
        self._failed_at = time.monotonic()
        if self._began_at is None:
            self._began_at = self._failed_at
            log.warning("Redis can't be reached: %s. Requests go on; jobs wait for it, such as %s", error, job)

    async def watch(self, services: Services) -> None:
        """Say so when it is over: Redis was read since, and no job has failed for a while."""
        while True:
            await asyncio.sleep(OUTAGE_INTERVAL_SECONDS)
            quiet = time.monotonic() - self._failed_at > WELL_SECONDS
            if self._began_at is not None and quiet and services.snapshot.fresh_at > self._failed_at:
                log.warning("Redis answers again, after %.0f s", self._failed_at - self._began_at)
                self._began_at = None


async def _again_and_again(
    services: Services,
    name: str,
    job: Callable[[Services], Awaitable[None]],
    stopping: asyncio.Event,
    outage: Outage,
) -> None:
    wait_seconds = RETRY_SECONDS
    while not stopping.is_set():
        began = time.monotonic()
        try:
            await job(services)
        except (RedisError, ConnectionError, TimeoutError) as error:
            outage.failed(name, error)
        except OSError as error:
            log.warning("job %s: %s", name, error)
        except Exception:
            log.exception("job %s failed", name)
        lasted = time.monotonic() - began > RETRY_SECONDS_MAX
        wait_seconds = RETRY_SECONDS if lasted else min(2 * wait_seconds, RETRY_SECONDS_MAX)
        await asyncio.sleep(wait_seconds)


async def _follow_snapshot(services: Services) -> None:
    await services.snapshot.follow(services.settings.snapshot_interval_seconds)


async def _run_shadows(services: Services) -> None:
    await run_shadows(services)


async def _tell_presence(services: Services) -> None:
    try:
        while True:
            await services.presence.tell()
            await asyncio.sleep(PRESENCE_INTERVAL_SECONDS)
    except asyncio.CancelledError:  # not where Redis failed for a moment: what is under way here still counts
        with contextlib.suppress(RedisError, OSError):  # it is forgotten by itself
            await services.presence.leave()
        raise


async def _lease_quotas(services: Services) -> None:
    await services.limits.quotas.keep(services.fallback_caps.look)


async def _flush_records(services: Services) -> None:
    await services.flow.run()


async def _watch_lag(services: Services) -> None:
    while True:
        began = time.monotonic()
        await asyncio.sleep(LAG_INTERVAL_SECONDS)
        lag = time.monotonic() - began - LAG_INTERVAL_SECONDS
        services.meters.event_loop_lag_seconds.observe(max(0.0, lag))


async def _watch_state(services: Services) -> None:
    while True:
        await asyncio.sleep(STATE_INTERVAL_SECONDS)
        await services.durability.look()
