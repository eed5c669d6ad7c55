"""Background job that builds data sets one by one, each in its own process. Each folder has one gateway for it.

A build stays in Redis until it has ended. If this gateway stops, the next one that holds the lease starts the build
again. Only a complete data set appears in the folder. The digest of its rows is its name, so no set is there twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import time
from collections.abc import Collection
from functools import partial
from pathlib import Path

import msgspec

from gateway.background.job_process import make_command, run_process
from gateway.background.jobs import skip_unchanged
from gateway.background.lease import list_folder_holders
from gateway.errors import Problem
from gateway.features.datasets.state import Build, Datasets
from gateway.features.records.archiving import find_kept_source
from monitoring.datasets.build_job import DatasetJob, DatasetResult
from monitoring.datasets.folder import forget_requests, sweep

LOOK_INTERVAL_SECONDS = 0.25
FILE_SECONDS_MAX = 86_400.0
"""Retention of an uploaded file, unless a build has used and deleted it earlier."""
REQUESTS_SECONDS_MAX = 90 * 86_400.0
"""Retention of a removed data set's request ids. They also stay as long as a version names the data set."""
ABANDONED_SECONDS = 3600.0
"""A build fails if no gateway has had its folder for this time, since only that folder has its files."""
ABANDONED_INTERVAL_SECONDS = 60.0
LOOKED_AT_SECONDS = 30 * 86_400.0
"""Greatest age of requests that are read to learn the present mix of requests."""
COMMAND = make_command("monitoring.datasets.build_run")


async def keep_building(datasets: Datasets) -> None:
    """Build the data sets that wait, unless another gateway with the same folder does. Runs until cancelled. Raises
    RedisError."""
    folder = await asyncio.to_thread(datasets.name_folder)
    lease = datasets.services.lease_job("datasets", key_suffix=f":{folder}")
    await lease.repeat(BuildingWork(datasets, folder).step, LOOK_INTERVAL_SECONDS, waits=True)


class BuildingWork:
    """Builder of the waiting data sets, one by one. It takes those whose files are in the folder of this name."""

    def __init__(self, datasets: Datasets, folder: str) -> None:
        self._datasets = datasets
        self._folder = folder
        self._build_new = skip_unchanged(datasets.services.snapshot, self._build_all)
        self._looked_around_at = -math.inf
        self._gone_since: dict[str, float] = {}
        """The folders of builds that no gateway has now, with the times since then, by time.monotonic."""

    async def step(self) -> None:
        """Build all data sets that wait now. Raises RedisError."""
        if time.monotonic() - self._looked_around_at >= ABANDONED_INTERVAL_SECONDS:
            await self._end_abandoned()
            self._looked_around_at = time.monotonic()
        await self._build_new()

    async def _build_all(self) -> None:
        await self._datasets.builds.drafts.enter_left()
        await asyncio.to_thread(sweep, self._datasets.folder)
        while (build := await self._next()) is not None:
            await self._end(build, await self._result(build))
        before, used = time.time() - FILE_SECONDS_MAX, await self._datasets.find_used()
        await asyncio.to_thread(forget_files, self._datasets.files, before, used)
        await self._forget_requests()

    async def _forget_requests(self) -> None:
        snapshot = self._datasets.services.snapshot.current
        if not snapshot.unreadable:  # else some versions' data sets are unknown
            learned = {digest for version in snapshot.versions.values() for digest in version.datasets}
            before = time.time() - REQUESTS_SECONDS_MAX
            await asyncio.to_thread(forget_requests, self._datasets.folder, before, learned)

    async def _end_abandoned(self) -> None:
        builds = [build for build in await self._datasets.builds.all() if build.state == "running"]
        folders, now = {build.folder for build in builds} - {"", self._folder}, time.monotonic()
        holders = await list_folder_holders(self._datasets.services.redis) if folders else {}
        self._gone_since = {folder: self._gone_since.get(folder, now) for folder in folders - holders.keys()}
        for build in builds:
            if now - self._gone_since.get(build.folder, math.inf) >= ABANDONED_SECONDS:
                error = "No gateway has run in an hour that has its files: build it again, at a gateway that runs."
                await self._end(build, DatasetResult(error=error))

    async def _next(self) -> Build | None:
        """The oldest build that is possible here."""
        builds = reversed(await self._datasets.builds.all())
        return next((each for each in builds if each.state == "running" and each.folder in ("", self._folder)), None)

    async def _result(self, build: Build) -> DatasetResult:
        """The result of a process that builds the data set."""
        settings = self._datasets.services.settings.datasets
        services, looked_since = self._datasets.services, build.until - LOOKED_AT_SECONDS
        job = DatasetJob(
            task=build.task,
            folder=str(self._datasets.folder),
            files=build.files,
            kept=await find_kept_source(services, build.task, build.since, looked_since, build.until),
            options=build.options,
            rows_max=settings.rows_max,
        )
        longest, advice = settings.building_seconds_max, "give fewer rows, or more time (datasets.building_seconds_max)"
        note = partial(self._datasets.builds.tell, build.id)
        try:
            return await run_process(COMMAND, job, DatasetResult, longest, advice=advice, note=note)
        except Problem as problem:
            return DatasetResult(error=problem.message)

    async def _end(self, build: Build, result: DatasetResult) -> None:
        """Note the end of a build, with an audit entry, and delete its files if no other build needs them."""
        ended = msgspec.structs.replace(
            build,
            state="failed" if result.error else "done",
            ended_at=time.time(),
            digest=result.digest,
            error=result.error,
            faults=result.faults,
        )
        after = {"build": build.id, "digest": result.digest, "error": result.error}
        await self._datasets.builds.end(ended, f"building.{ended.state}", after)
        used = await self._datasets.find_used()
        for file in build.files if build.folder in ("", self._folder) else ():
            if file.path not in used:
                await asyncio.to_thread(Path(file.path).unlink, missing_ok=True)


def forget_files(folder: Path, before: float, used: Collection[str] = ()) -> None:
    """Delete uploaded files that are older than `before`, in Unix seconds, and not `used`."""
    for path in folder.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it was deleted at this moment
            if path.stat().st_mtime >= before or str(path) in used:
                continue
            if path.is_dir():  # the rest of an upload whose gateway was killed
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
