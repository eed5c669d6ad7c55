"""Hard cases that production found: a process reads kept texts and their labels, and writes the rows of a suite."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.background.job_process import make_command, run_process
from gateway.errors import Problem
from gateway.features.evaluations.evaluations import Evaluations
from gateway.features.records.archiving import text_source_of
from gateway.request_labels import read_rules
from monitoring.datasets.build_job import KeptSource
from monitoring.datasets.hard_cases_job import HardCasesJob, HardCasesResult

RUN_SECONDS_MAX = 600.0
COMMAND = make_command("monitoring.datasets.hard_run")


@asynccontextmanager
async def find_hard_cases(evaluations: Evaluations, task: str, since: float) -> AsyncIterator[Path]:
    """A file of rows: requests since then with a wrong answer and an agreed right one. Raises Problem."""
    with tempfile.TemporaryDirectory(prefix="suite") as folder:
        path = Path(folder) / "rows.jsonl"
        settings, now = evaluations.services.settings, time.time()
        kept = KeptSource(
            texts=text_source_of(settings),
            rules=await read_rules(evaluations.services, task),
            since=since,
            looked_since=since,
            until=now,
        )
        job = HardCasesJob(task, kept, str(path), settings.evaluation.rows_max)
        result = await run_process(COMMAND, job, HardCasesResult, RUN_SECONDS_MAX, advice="name a later `since`")
        if result.error:
            raise Problem("invalid_value", result.error, "since")
        if not result.rows:
            counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(result.counts.items()))
            text = "No kept text since then has a wrong answer whose right one is agreed"
            raise Problem("invalid_value", f"{text} ({counts or 'no text is kept'}): have requests labelled.", "since")
        yield path
