"""Admin endpoints for data sets: build one from kept texts, labels and files; read, export or delete one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import Field
from starlette.background import BackgroundTask

from gateway.audit import enter_event
from gateway.background.job_process import make_command, run_process
from gateway.endpoint_parts import (
    Admin,
    Body,
    OfTask,
    Operator,
    When,
    require_found,
    require_task,
    see_that_list_has_task,
)
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.datasets.receiving import receive_file
from gateway.features.datasets.state import DIGEST, Build, Datasets, read_card
from gateway.openapi_parts import TEXT, with_answer, with_body, with_errors
from gateway.state.private_files import make_private_folder
from monitoring.datasets.build_job import DatasetOptions, ExportFormat, ExportJob, ExportResult
from monitoring.datasets.card_page import make_card_page
from monitoring.datasets.folder import PARTIAL, remove_set
from monitoring.datasets.rows_from_files import SourceFile
from monitoring.ids import make_timed_id
from serving.object_store import Unreadable

FILES_MAX = 100
ANY_BYTES: Mapping[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
HTML: Mapping[str, Any] = {"text/html": TEXT}
router = APIRouter(prefix="/admin/v1", tags=["admins"])
COMMAND = make_command("monitoring.datasets.export_run")


class FileIn(Body):
    """A file that was sent, by its digest."""

    digest: str = Field(pattern=DIGEST.pattern, max_length=64)
    name: str = Field(min_length=1, max_length=200, description="Its ending gives its form: jsonl, json, csv, parquet.")
    columns: dict[str, str] = Field(
        default_factory=dict, max_length=20, description='Its names for ours, such as {"text": "body"}.'
    )


class DatasetIn(Body):
    """A data set to build."""

    task: str = Field(max_length=63)
    files: list[FileIn] = Field(default_factory=list, max_length=FILES_MAX)
    since: When | None = Field(
        None, description="Also requests from then on, whose texts are kept; unset: files alone."
    )
    until: When | None = Field(None, description="Requests before then; unset: now.")
    heldout_share: float = Field(0.2, ge=0, le=0.9, description="Share of the groups that is held out.")
    class_ratio_max: float | None = Field(
        None, ge=1, le=1e6, description="Training rows of a class for each of the median class, at most; unset: all."
    )
    class_field: str = Field("", max_length=200, description="The field of the answers that is the class.")
    leave_out_faults: bool = Field(False, description="Leave out rows that can't be read, instead of ending.")


@router.post(
    "/datasets/files",
    status_code=201,
    responses=with_errors("invalid_value", "body_too_large", "overload"),
    openapi_extra=with_body(ANY_BYTES, description="The bytes of a file of rows."),
)
async def send_file(request: Request, _: Admin) -> dict[str, Any]:
    """Keep a file for the next building, for a day at most."""
    datasets = feature_of(request, Datasets)
    path = await receive_file(request, datasets.files, datasets.services.settings.datasets.file_bytes_max)
    return {"digest": path.name}


@router.post("/datasets", status_code=202, responses=with_errors("not_found", "invalid_value"))
async def build_dataset(request: Request, body: DatasetIn, admin: Admin) -> dict[str, Any]:
    """Build a data set. GET /datasets/builds/{id} shows the progress."""
    datasets = feature_of(request, Datasets)
    require_task(datasets.services, body.task)
    if not body.files and body.since is None:
        raise Problem("missing_field", "files: give some, or `since`, from when on requests go in.", "files")
    sent = [(file, datasets.require_file(file.digest, "files")) for file in body.files]
    now = time.time()
    build = Build(
        id=make_timed_id(now),
        task=body.task,
        files=[SourceFile(file.name, str(path), file.columns) for file, path in sent],
        options=msgspec.convert(body, DatasetOptions, from_attributes=True),
        since=body.since,
        until=body.until or now,
        by=admin.public,
        created_at=now,
        folder=await asyncio.to_thread(datasets.name_folder),
    )
    step = datasets.services.begin_step(admin.public)
    step.note("building.begin", body.task, None, _audited(build))
    await datasets.builds.begin(build, step)
    await datasets.services.snapshot.refresh()
    return await _shown(datasets, build)


@router.get("/datasets", responses=with_errors("not_found"))
async def list_datasets(request: Request, _: Operator, task: OfTask = None) -> dict[str, Any]:
    """All data sets and the latest buildings, the newest first."""
    datasets = feature_of(request, Datasets)
    cards = [card for card in await asyncio.to_thread(datasets.cards) if task in (None, card["task"])]
    builds = [build for build in await datasets.builds.all() if task in (None, build.task)]
    see_that_list_has_task(datasets.services, task, [*cards, *builds])
    return {"datasets": cards, "builds": [await _shown(datasets, build) for build in builds]}


@router.get("/datasets/builds/{build}", responses=with_errors("not_found", "state_conflict"))
async def read_build(request: Request, build: str, _: Operator) -> dict[str, Any]:
    """One building: its progress, digest, or failure."""
    datasets = feature_of(request, Datasets)
    return await _shown(datasets, require_found(await datasets.builds.get(build), "building", build))


@router.get("/datasets/{digest}", responses=with_errors("not_found", "state_conflict"))
async def read_dataset(request: Request, digest: str, _: Operator) -> dict[str, Any]:
    """The card of a data set. The first digits of its digest are enough."""
    folder = await _folder_of(feature_of(request, Datasets), digest)
    return await asyncio.to_thread(read_card, folder)


@router.get(
    "/datasets/{digest}/export",
    responses=with_errors("not_found", "state_conflict", "overload", "timeout")
    | with_answer(200, "The file.", ANY_BYTES),
    response_class=FileResponse,
)
async def export_dataset(
    request: Request,
    digest: str,
    operator: Operator,
    part: Annotated[Literal["train", "heldout"], Query()] = "train",
    form: Annotated[ExportFormat, Query(alias="format", description="OpenAI's sft or dpo, or parquet.")] = "sft",
) -> FileResponse:
    """A part of a data set as a file for others. The audit names the reader."""
    datasets = feature_of(request, Datasets)
    folder = await _folder_of(datasets, digest)
    task = (await asyncio.to_thread(read_card, folder))["task"]
    event = {"digest": folder.name, "part": part, "format": form}
    await enter_event(datasets.services, operator, "dataset.give", task, event)
    return await send_export(datasets, folder, part, form)


@router.get(
    "/datasets/{digest}/card.html",
    responses=with_errors("not_found", "state_conflict") | with_answer(200, "A page.", HTML),
    response_class=HTMLResponse,
)
async def read_card_page(request: Request, digest: str, _: Operator) -> HTMLResponse:
    """The card of a data set as one HTML file, with plots. It holds no text of a row."""
    folder = await _folder_of(feature_of(request, Datasets), digest)
    return HTMLResponse(make_card_page(await asyncio.to_thread(read_card, folder)))


@router.delete("/datasets/{digest}", responses=with_errors("not_found"))
async def delete_dataset(request: Request, digest: str, admin: Admin) -> dict[str, Any]:
    """Delete a data set with its rows. Versions that were trained on it stay."""
    datasets = feature_of(request, Datasets)
    folder = await _folder_of(datasets, digest)
    task = ""
    with contextlib.suppress(Unreadable):  # a damaged data set can be deleted
        task = (await asyncio.to_thread(read_card, folder))["task"]
    await enter_event(datasets.services, admin, "dataset.delete", task, {"digest": folder.name})
    with contextlib.suppress(FileNotFoundError):  # another request has removed it meanwhile
        await asyncio.to_thread(remove_set, folder)
    return {"digest": folder.name, "state": "deleted"}


async def _folder_of(datasets: Datasets, digest: str) -> Path:
    """Raises Problem (404)."""
    folder = await asyncio.to_thread(datasets.find, digest)
    if folder is None:
        text = f"There is no data set {digest[:80]!r}, or more than one: give 4 digits or more of one in the list."
        raise Problem("not_found", text)
    return folder


def _audited(build: Build) -> dict[str, Any]:
    """A build as people see it: without paths."""
    fields: dict[str, Any] = msgspec.to_builtins(build)
    del fields["folder"]
    fields["files"] = [{"name": file.name, "digest": Path(file.path).name} for file in build.files]
    return fields


async def _shown(datasets: Datasets, build: Build) -> dict[str, Any]:
    return _audited(build) | {"progress": msgspec.to_builtins(await datasets.builds.progress(build))}


async def send_export(datasets: Datasets, folder: Path, part: str, form: ExportFormat) -> FileResponse:
    """The part in this format as an answer. Raises Problem: 409 without rows, 503 or 500 if the export fails."""
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
