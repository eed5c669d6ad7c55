"""Endpoints for clients of OpenAI's files API: files of rows to train on. A file's id follows from its bytes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse

from gateway.audit import enter_event
from gateway.endpoint_parts import Admin, Operator
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.datasets.job import FILE_SECONDS_MAX
from gateway.features.datasets.receiving import receive_file
from gateway.features.datasets.state import DIGEST, Datasets
from gateway.features.fine_tuning.job_request import FILE_PREFIX
from gateway.features.fine_tuning.job_view import cut_page
from gateway.openapi_parts import BYTES, FORM_ERRORS, as_form, with_answer, with_body, with_errors
from gateway.server.file_form import FileForm

PURPOSE = "fine-tune"
FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
FORM: Mapping[str, Any] = as_form(
    {"file": BYTES, **{name: {"type": "string", "maxLength": 1000} for name in FIELDS}}, ["file", "purpose"]
)
router = APIRouter(prefix="/admin/v1", tags=["admins"])


@router.post("/files", responses=with_errors(*FORM_ERRORS[:-1], "not_found", "overload"), openapi_extra=with_body(FORM))
async def create_file(request: Request, _: Admin) -> dict[str, Any]:
    """Keep a file of examples, as OpenAI's clients send it, for a day at most. The same bytes are the same file."""
    datasets, form = feature_of(request, Datasets), FileForm(request.headers, FIELDS)
    bytes_max = datasets.services.settings.datasets.file_bytes_max

    def end() -> None:
        form.end()
        if form.fields.get("purpose") != PURPOSE:
            raise Problem("invalid_value", f"purpose must be {PURPOSE}: files serve for nothing else here.", "purpose")

    path = await receive_file(request, datasets.files, bytes_max, form.feed, end)
    name_key = _name_key(path.name)
    await datasets.services.redis.set(name_key, form.file_name or "rows.jsonl", ex=round(FILE_SECONDS_MAX))
    return await _shown(datasets, path)


@router.get("/files", responses=with_errors("not_found"))
async def list_files(
    request: Request,
    _: Operator,
    after: Annotated[str | None, Query(max_length=200)] = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    purpose: Annotated[str | None, Query(max_length=80)] = None,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
) -> dict[str, Any]:
    """The files that were sent, and wait for a job."""
    datasets = feature_of(request, Datasets)
    files = await asyncio.to_thread(_list_files, datasets.files) if purpose in (None, PURPOSE) else []
    files.sort(key=lambda each: (each["created_at"], each["id"]), reverse=order == "desc")
    page = cut_page(files, after, limit)
    return page | {"data": [await _named(datasets, file) for file in page["data"]]}


@router.get("/files/{file}", responses=with_errors("not_found"))
async def read_file(request: Request, file: str, _: Operator) -> dict[str, Any]:
    """One file."""
    datasets = feature_of(request, Datasets)
    return await _shown(datasets, _path_of(datasets, file))


@router.get(
    "/files/{file}/content",
    responses=with_errors("not_found") | with_answer(200, "The file.", {"application/octet-stream": {"schema": BYTES}}),
    response_class=FileResponse,
)
async def read_file_content(request: Request, file: str, admin: Admin) -> FileResponse:
    """The bytes of a file. The audit names the reader."""
    datasets = feature_of(request, Datasets)
    path = _path_of(datasets, file)
    await enter_event(datasets.services, admin, "file.give", path.name, {})
    return FileResponse(path, media_type="application/octet-stream")


@router.delete("/files/{file}", responses=with_errors("not_found", "state_conflict"))
async def delete_file(request: Request, file: str, admin: Admin) -> dict[str, Any]:
    """Delete a file that no job reads."""
    datasets = feature_of(request, Datasets)
    path = _path_of(datasets, file)
    if str(path) in await datasets.find_used():
        raise Problem("state_conflict", "A training or a building reads the file: end that first.", "file")
    await enter_event(datasets.services, admin, "file.delete", path.name, {})
    await asyncio.to_thread(path.unlink, missing_ok=True)
    return {"id": FILE_PREFIX + path.name, "object": "file", "deleted": True}


def _path_of(datasets: Datasets, file: str) -> Path:
    """Raises Problem (404)."""
    return datasets.require_file(file.removeprefix(FILE_PREFIX), "file")


async def _shown(datasets: Datasets, path: Path) -> dict[str, Any]:
    """A file for the answer. Raises Problem (404) if it was deleted at this moment."""
    try:
        return await _named(datasets, await asyncio.to_thread(_show_file, path))
    except FileNotFoundError:
        raise Problem("not_found", f"There is no file {path.name} any more: send it again.", "file") from None


def _list_files(folder: Path) -> list[dict[str, Any]]:
    files = []
    for path in folder.glob("*"):
        if DIGEST.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # it was deleted at this moment
                files.append(_show_file(path))
    return files


def _show_file(path: Path) -> dict[str, Any]:
    """A file as OpenAI's clients read it. Raises FileNotFoundError if it was deleted at this moment."""
    status = path.stat()
    return {
        "object": "file",
        "id": FILE_PREFIX + path.name,
        "bytes": status.st_size,
        "created_at": round(status.st_mtime),
        "expires_at": round(status.st_mtime + FILE_SECONDS_MAX),
        "filename": f"{path.name[:12]}.jsonl",
        "purpose": PURPOSE,
        "status": "processed",
    }


async def _named(datasets: Datasets, file: dict[str, Any]) -> dict[str, Any]:
    """The file with the name from its upload, if that is known."""
    redis: Any = datasets.services.redis  # replies are bytes; redis-py's types say bytes or str
    name = await redis.get(_name_key(file["id"].removeprefix(FILE_PREFIX)))
    return file if name is None else file | {"filename": name.decode()}


def _name_key(digest: str) -> str:
    return f"apprentice:datasets:file_name:{digest}"
