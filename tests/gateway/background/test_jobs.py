"""The log of jobs that fail."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import ResponseError

from gateway.background.jobs import run_jobs
from tests.waiting import until


async def test_an_outage_inside_a_group_of_tasks_is_told_as_one_and_without_a_trace(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def ask() -> None:
        raise Disconnected("it was closed")

    async def job() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(asyncio.Event().wait())

    snapshot: Any = SimpleNamespace(fresh_at=0.0)
    async with run_jobs({"keep": job}, snapshot):
        await until(lambda: caplog.records)
    [told] = caplog.records
    assert (told.levelno, told.exc_info) == (logging.WARNING, None)
    assert told.getMessage().startswith("Redis can't be used: it was closed.")


@pytest.mark.parametrize(("error", "said"), [(ConnectionResetError("a webhook"), "a web"), (TimeoutError(), "Time")])
async def test_what_fails_elsewhere_is_told_by_its_job_and_is_no_outage_of_redis(
    caplog: pytest.LogCaptureFixture, error: Exception, said: str
) -> None:
    async def job() -> None:
        raise error

    snapshot: Any = SimpleNamespace(fresh_at=0.0)
    async with run_jobs({"send": job}, snapshot):
        await until(lambda: caplog.records)
    assert caplog.messages[0].startswith(f"job send: {said}")


@pytest.mark.parametrize("error", [ResponseError("WRONGTYPE"), TimeoutError("WRONGTYPE")])
async def test_what_is_no_loss_of_redis_is_told_once_and_hides_no_outage(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    tried = 0

    async def lose() -> None:
        await until(lambda: tried == 3)
        raise Disconnected("it was closed")

    async def miswrite() -> None:
        nonlocal tried
        tried += 1
        raise error

    snapshot: Any = SimpleNamespace(fresh_at=0.0)
    async with run_jobs({"keep": lose, "write": miswrite}, snapshot):
        await until(lambda: len(caplog.records) == 2)
    assert [message.split(".")[0] for message in caplog.messages] == [
        "job write: WRONGTYPE",
        "Redis can't be used: it was closed",
    ]


async def test_each_fault_of_a_group_of_tasks_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(error: Exception) -> None:
        raise error

    async def job() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail(Disconnected("it was closed")))
            group.create_task(fail(KeyError("a fault of ours")))

    snapshot: Any = SimpleNamespace(fresh_at=0.0)
    async with run_jobs({"keep": job}, snapshot):
        await until(lambda: caplog.records)
    assert KeyError in [record.exc_info[0] for record in caplog.records if record.exc_info]
