"""The log of jobs that fail."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as Disconnected

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
