"""Writer of a training's files, in its own process: `python -m monitoring.training.preparation`.

It reads a PreparationJob as a line of JSON, writes `rows.jsonl` and `heldout.jsonl` into a folder, and prints a
Preparation. It ends at once when its input is closed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from monitoring.datasets.folder import FILES_FOLDER, keep_requests
from monitoring.datasets.rows import list_requests, name_requests
from monitoring.evaluation.dataset import DatasetError, DatasetLimits
from monitoring.helper_process import run_job
from monitoring.synced_files import lock_folder
from monitoring.training.preparation_job import HELDOUT_FILE, ROWS_FILE, Preparation, PreparationJob
from monitoring.training.rows import HELDOUT_ROWS_MAX, as_line, draw_rows, read_rows, rehearse, split_heldout


def prepare(job: PreparationJob) -> Preparation:
    """Write the files of a training. No erasure changes the rows meanwhile. Raises OSError."""
    with lock_folder(Path(job.datasets), shared=True):
        return _write_rows(job)


def _write_rows(job: PreparationJob) -> Preparation:
    limits = DatasetLimits(job.rows_max, job.bytes_max, job.bytes_max)  # the trainer leaves out rows that are too long
    try:
        rows = read_rows(Path(job.train), limits)
        heldout = read_rows(Path(job.heldout), limits) if _has_rows(job.heldout) else []
        older = [row for path in job.older if _has_rows(path) for row in read_rows(Path(path), limits)]
    except DatasetError as error:
        return Preparation(error=str(error))
    rows, heldout = name_requests(rows, (*rows, *heldout)), name_requests(heldout, (*rows, *heldout))
    if Path(job.train).parent.name == FILES_FOLDER:  # a data set has them beside its rows
        requests = "".join(f"{each}\n" for each in list_requests(rows)).encode()
        keep_requests(Path(job.datasets), Path(job.train).name, requests)
    if not heldout:
        rows, heldout = split_heldout(rows, job.heldout_share, job.seed)
    rehearsed = rehearse(rows, heldout, older, job.rehearsal_share, job.seed) if older else []
    heldout = draw_rows(heldout, HELDOUT_ROWS_MAX, job.seed)
    folder = Path(job.folder)
    _write(folder / HELDOUT_FILE, (as_line(row, "new") for row in heldout))
    lines = [as_line(row, "new") for row in rows] + [as_line(row, "older") for row in rehearsed]
    _write(folder / ROWS_FILE, lines)
    return Preparation(len(rows), len(heldout), len(rehearsed))


def _has_rows(path: str) -> bool:
    """True if a file is named, and not empty. Raises OSError."""
    return bool(path) and Path(path).stat().st_size > 0


def _write(path: Path, lines: Iterable[dict[str, object]]) -> None:
    """Write a file whole or not at all."""
    aside = path.with_suffix(".new")
    with aside.open("wb") as file:
        file.writelines(msgspec.json.encode(line) + b"\n" for line in lines)
    aside.replace(path)


def run(job: PreparationJob) -> Preparation:
    """The preparation, or the name of a file that can't be read or written."""
    try:
        return prepare(job)
    except OSError as error:
        name = Path(error.filename or job.folder).name
        return Preparation(error=f"{name} can't be read or written: {error.strerror or error}.")


if __name__ == "__main__":
    run_job(PreparationJob, run)
