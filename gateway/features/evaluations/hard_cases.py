"""Hard cases that production found: a process reads kept texts and their labels, and writes the rows of a suite."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

from gateway.background.job_process import make_command, run_process
from gateway.errors import Problem
from gateway.features.evaluations.state import Evaluations
from gateway.features.records.archiving import find_kept_source
from gateway.state.private_files import make_private_folder
from monitoring.datasets.build_job import HardCasesJob, HardCasesResult
from monitoring.datasets.folder import FILES_FOLDER, PARTIAL
from monitoring.synced_files import lock_folder

RUN_SECONDS_MAX = 600.0
LOOK_INTERVAL_SECONDS = 0.2
COMMAND = make_command("monitoring.datasets.hard_run")


@asynccontextmanager
async def hold_off_erasures(evaluations: Evaluations) -> AsyncIterator[None]:
    """Hold the lock of the data sets, as their building does: an erasure finds the suite, or its texts are gone.

    Raises Problem (504) where an erasure goes on for too long.
    """
    folder = evaluations.services.settings.dataset_folder
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as stack:
        try:
            async with asyncio.timeout(RUN_SECONDS_MAX):
                while True:
                    with suppress(BlockingIOError):
                        stack.enter_context(lock_folder(folder, shared=True, wait=False))
                        break
                    await asyncio.sleep(LOOK_INTERVAL_SECONDS)
        except TimeoutError:
            raise Problem("timeout", "An erasure of texts goes on: add the suite once it is done.") from None
        yield


@asynccontextmanager
async def find_hard_cases(evaluations: Evaluations, task: str, since: float) -> AsyncIterator[Path]:
    """A file of rows: requests since then with a wrong answer and an agreed right one. Raises Problem."""
    settings, now = evaluations.services.settings, time.time()
    files = settings.dataset_folder / FILES_FOLDER  # an erasure finds there what a killed gateway has left
    make_private_folder(files)
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=files) as folder:
        path = Path(folder) / "rows.jsonl"
        source = await find_kept_source(evaluations.services, task, since, since, now)
        job = HardCasesJob(task, source, str(path), settings.evaluation.rows_max)
        result = await run_process(COMMAND, job, HardCasesResult, RUN_SECONDS_MAX, advice="name a later `since`")
        if result.error:
            raise Problem("invalid_value", result.error, "since")
        if not result.rows:
            counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(result.counts.items()))
            text = "No kept text since then has a wrong answer whose right one is agreed"
            raise Problem("invalid_value", f"{text} ({counts or 'no text is kept'}): have requests labelled.", "since")
        yield path
