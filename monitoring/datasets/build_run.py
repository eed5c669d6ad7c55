"""One build of a data set, in its own process: `python -m monitoring.datasets.build_run`.

It reads a DatasetJob as a line of JSON. It prints lines of JSON: ProgressSteps, and at the end a DatasetResult. It ends
at once when its input is closed, so it never outlives its gateway.
"""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import Any

import duckdb
from redis.exceptions import RedisError
from threadpoolctl import threadpool_limits

from monitoring.datasets.build import BuiltSet, build_set
from monitoring.datasets.build_job import DatasetJob, DatasetResult
from monitoring.datasets.card import card_of
from monitoring.datasets.earlier_sides import list_earlier_sides
from monitoring.datasets.folder import write_set
from monitoring.datasets.rows import DataRow, LeftOut, share_tools
from monitoring.datasets.rows_from_files import read_rows
from monitoring.datasets.rows_from_traffic import KeptRows, read_kept
from monitoring.evaluation.dataset import FAULTS_SHOWN, DatasetError
from monitoring.evaluation.erasure import add_own_ids, find_erased, find_forgotten
from monitoring.helper_process import run_job, tell_step
from monitoring.redis_address import open_redis
from monitoring.synced_files import lock_folder
from monitoring.texts import FORGOTTEN_KEY

AT_ONCE = 500


def run(job: DatasetJob) -> DatasetResult:
    """Build the set. An erasure waits for its end. Raises OSError; then nothing of the set is left."""
    folder = Path(job.folder)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with lock_folder(folder, shared=True), threadpool_limits(1):
        return _build(job)


def _build(job: DatasetJob) -> DatasetResult:
    tell_step("reading", 0.0)
    try:
        rows, faults = _read(job)
        kept_rows = KeptRows() if job.kept is None else read_kept(job.task, job.kept, job.rows_max - len(rows))
        rows = _drop_forgotten(rows, job)
    except DatasetError as error:
        return DatasetResult(error=str(error))
    except (RedisError, duckdb.Error) as error:
        return DatasetResult(error=f"Kept texts can't be read ({type(error).__name__}: {error}): try again later.")
    rows += kept_rows.rows
    if faults and not job.options.leave_out_faults:
        return _refused(faults)
    if not rows:
        return DatasetResult(error=_why_empty(kept_rows))
    tell_step("comparing rows", 0.2)
    earlier = list_earlier_sides(Path(job.folder), job.task, job.options.heldout_share)
    built = build_set(rows, faults, job.options, earlier)
    fault = _fault_of(built)
    if fault:
        return DatasetResult(error=fault)
    tell_step("measuring", 0.6)
    card = {"task": job.task, "built_at": round(time.time(), 3)} | card_of(built, job.options, kept_rows)
    tell_step("writing", 0.9)
    return DatasetResult(write_set(Path(job.folder), built, card))


def _read(job: DatasetJob) -> tuple[list[DataRow], list[LeftOut]]:
    """The rows of all sources, and the faults of unreadable rows. Raises DatasetError and OSError."""
    rows: list[DataRow] = []
    faults: list[LeftOut] = []
    tools: dict[bytes, list[dict[str, Any]]] = {}
    for file in job.files:
        if not Path(file.path).exists():
            raise DatasetError(
                f"{file.name} is no longer there, as after an erasure of a request in it: send it again."
            )
        for row in read_rows(file):
            if isinstance(row, LeftOut):
                faults.append(row)
            else:
                rows.append(share_tools(row, tools))
            if len(rows) + len(faults) > job.rows_max:
                raise DatasetError(f"There are more than {job.rows_max} rows (datasets.rows_max): give fewer.")
    return rows, faults


def _drop_forgotten(rows: list[DataRow], job: DatasetJob) -> list[DataRow]:
    """The rows of files, without those of requests that were erased since the files were sent. Raises RedisError."""
    if job.kept is None:
        return rows
    names = [add_own_ids(row.id, row.request, row.parent) for row in rows]
    every, erased = list(dict.fromkeys(name for of_row in names for name in of_row)), set[str]()
    with open_redis(job.kept.texts.redis_url, socket_timeout=30) as redis:
        for at in range(0, len(every), AT_ONCE):
            some = every[at : at + AT_ONCE]
            erased |= find_forgotten(some, redis.mget([FORGOTTEN_KEY + name for name in some]))
    gone = {*find_erased(names, erased)} if erased else set()
    return [row for place, row in enumerate(rows) if place not in gone]


def _why_empty(kept_rows: KeptRows) -> str:
    """The reason why there are no rows."""
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in sorted(kept_rows.counts.items()) if count)
    texts = (
        f"no kept text has a right answer ({counts})"
        if counts
        else "no text of a request is kept (tasks.TASK.texts.keep)"
    )
    return (
        f"There is no row: {texts}. Give files with a question and its answer in each row, or have requests labelled."
    )


def _refused(faults: list[LeftOut]) -> DatasetResult:
    texts = [f"{each.source}: {each.fault}" for each in faults[:FAULTS_SHOWN]]
    count = f"{len(faults)} rows" if len(faults) > 1 else "1 row"
    text = f"{count} can't be read. {texts[0]} Fix them, or build with leave_out_faults."
    return DatasetResult(error=text, faults=texts)


def _fault_of(built: BuiltSet) -> str:
    """The reason why nothing can be trained on a set; empty if something can."""
    if built.train:
        return ""
    conflicts = sum(each.because == "conflict" for each in built.left_out)
    why = f": {conflicts} contradict each other" if conflicts else ""
    return f"No row is left to train on{why}. Give more rows, or hold out fewer."


def build(job: DatasetJob) -> DatasetResult:
    """The result of a build, or the reason why the set can't be written."""
    try:
        return run(job)
    except OSError as error:
        room = " Make room, then build it again." if error.errno == errno.ENOSPC else ""
        return DatasetResult(error=f"The data set can't be written: {error.strerror or error}.{room}")


if __name__ == "__main__":
    run_job(DatasetJob, build)
