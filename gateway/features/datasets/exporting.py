"""A part of a data set as a file for others: made in a process of its own, and gone once it was sent."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from pathlib import Path

from fastapi.responses import FileResponse
from starlette.background import BackgroundTask

from gateway.background.job_process import make_command, run_process
from gateway.errors import Problem
from gateway.features.datasets.state import Datasets
from gateway.state.private_files import make_private_folder
from monitoring.datasets.build_job import ExportFormat, ExportJob, ExportResult
from monitoring.datasets.folder import PARTIAL

COMMAND = make_command("monitoring.datasets.export_run")


async def send_export(datasets: Datasets, folder: Path, part: str, form: ExportFormat) -> FileResponse:
    """The part in this format as an answer. Raises Problem without a row (409), and where it fails (503, 500)."""
    await asyncio.to_thread(make_private_folder, datasets.files)
    aside = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=PARTIAL, dir=datasets.files))
    target = aside / f"{part}.{'parquet' if form == 'parquet' else 'jsonl'}"
    try:
        job = ExportJob(str(folder / f"{part}.jsonl"), str(target), form)
        result = await run_process(COMMAND, job, ExportResult)
        try:
            status = await asyncio.to_thread(os.stat, aside if result.error else target)
        except FileNotFoundError:
            raise Problem("overload", "Texts were erased while the file was made: ask again.") from None
        if result.error:
            raise Problem("overload", f"{result.error} Make room for data sets, or try again later.")
        if not result.rows:
            lack = "no worse answer beside a right one, as dpo needs" if form == "dpo" else "no row"
            raise Problem("state_conflict", f"The part {part} of the data set has {lack}: there is nothing to export.")
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    headers = {"x-rows": str(result.rows)}
    done = BackgroundTask(shutil.rmtree, aside, ignore_errors=True)
    return FileResponse(
        target, media_type="application/octet-stream", headers=headers, background=done, stat_result=status
    )
