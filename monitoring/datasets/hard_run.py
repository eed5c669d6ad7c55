"""Export of production's hard cases, in its own process: `python -m monitoring.datasets.hard_run`.

It reads a HardCasesJob as a line of JSON, writes the rows as JSON lines, and prints a HardCasesResult. It ends at once
when its input is closed.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import msgspec
from redis.exceptions import RedisError

from monitoring.datasets.build_job import HardCasesJob, HardCasesResult
from monitoring.datasets.rows_from_traffic import read_kept
from monitoring.evaluation.dataset import DatasetError
from monitoring.helper_process import run_job


def write_hard_cases(job: HardCasesJob) -> HardCasesResult:
    """Write the rows. Raises OSError."""
    try:
        kept_rows = read_kept(job.task, job.kept, job.rows_max)
    except DatasetError as error:
        return HardCasesResult(error=str(error))
    except (RedisError, duckdb.Error) as error:
        return HardCasesResult(error=f"Kept texts can't be read ({type(error).__name__}: {error}): try again later.")
    rows = [row for row in kept_rows.rows if row.origin == "demonstrated"]
    Path(job.target).write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return HardCasesResult(len(rows), {name: count for name, count in kept_rows.counts.items() if count})


if __name__ == "__main__":
    run_job(HardCasesJob, write_hard_cases)
