"""Hard cases that production found: a process reads kept texts and their labels, and writes the rows of a suite."""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from gateway.background.child_process import child, hear
from gateway.errors import Problem
from gateway.features.evaluations.evaluations import Evaluations
from gateway.features.records.archiving import text_source_of
from gateway.request_labels import read_rules
from monitoring.datasets.build_job import KeptSource
from monitoring.datasets.hard_cases_job import HardCasesJob, HardCasesResult

RUN_SECONDS_MAX = 600.0
COMMAND = (sys.executable, "-P", "-m", "monitoring.datasets.hard_run")


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
        result = await _run(HardCasesJob(task, kept, str(path), settings.evaluation.rows_max))
        if result.error:
            raise Problem("invalid_value", result.error, "since")
        if not result.rows:
            counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(result.counts.items()))
            text = "No kept text since then has a wrong answer whose right one is agreed"
            raise Problem("invalid_value", f"{text} ({counts or 'no text is kept'}): have requests labelled.", "since")
        yield path


async def _run(job: HardCasesJob) -> HardCasesResult:
    try:
        async with child(COMMAND) as process, asyncio.timeout(RUN_SECONDS_MAX):
            code, output = await hear(process, msgspec.json.encode(job) + b"\n")
    except TimeoutError:
        return HardCasesResult(error=f"Reading kept texts took over {RUN_SECONDS_MAX:g} s: name a later `since`.")
    if code != 0:
        raise Problem("internal_error", f"Kept texts can't be read, exit code {code}: the log says why.")
    return msgspec.json.decode(output, type=HardCasesResult)
