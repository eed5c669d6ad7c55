"""A task's traffic is read from the archive, past damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis.asyncio import Redis

from monitoring.archive.run import ArchiveJob, run
from monitoring.readiness.evidence import ArchivedTask
from monitoring.readiness.traffic import read_traffic
from tests.monitoring.test_archive import damage, parts, put
from tests.monitoring.test_merging import made_on
from tests.monitoring.test_texts import NOW, job

__all__ = ["job"]


async def test_traffic_is_counted_without_the_requests_of_a_damaged_file(redis: Redis, job: ArchiveJob) -> None:
    archived = ArchivedTask(folder=job.folder, redis_url=job.redis_url, bucket=None, task="returns", now=NOW)
    Path(job.folder).mkdir()
    assert read_traffic(archived) is None
    made = [made_on(day, outcome="ok", task="returns") for day in (4, 3, 2, 1)]
    costs = [("returns@v1", 1.0, 3.0), ("returns@v1", 8.0, 8.0), (None, 4.0, None), ("returns@v1", 2.0, None)]
    for record, (version, cost, saving) in zip(made, costs, strict=True):
        record.version, record.cost_usd, record.saving_usd = version, cost, saving
    await put(redis, *made)
    run(job)
    whole = read_traffic(archived)
    assert whole is not None
    assert (whole.requests, whole.deferred, whole.small_usd, whole.general_usd) == (4, 0.25, 11.0 / 3, 4.0)
    damage(parts(job)[1], "cost_usd")
    rest = read_traffic(archived)
    assert rest is not None
    assert (rest.requests, rest.deferred, rest.small_usd, rest.general_usd) == (3, 1 / 3, 1.5, 4.0)
    assert rest.requests_per_month == pytest.approx(0.75 * whole.requests_per_month)
