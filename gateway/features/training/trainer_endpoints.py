"""Endpoints for trainers elsewhere: they fetch a training's files, report its progress, and send the adapter. The key
of a training gives access to this training only, while it runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from fastapi.responses import FileResponse
from pydantic import ConfigDict, Field

from gateway.endpoint_parts import Body, Identified
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.training.endpoints import find_training
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.trainer_keys import parts_of
from gateway.features.training.training_end import TrainingFault, end_training, enter_result
from gateway.features.training.training_run import JOB_FILE
from gateway.openapi_parts import BYTES, FORM_ERRORS, as_form, with_answer, with_body, with_errors
from monitoring.training.preparation_job import HELDOUT_FILE, ROWS_FILE
from serving.adapters.adapter_folder import ADAPTER_FILES
from serving.training.trainer import REMOTE_TRAINER, TRAINER

TRAINER_ERRORS = ("not_found", "role_required", "state_conflict")
MESSAGE_BYTES_MAX = 4096
MESSAGE_DEPTH_MAX = 32
"""Levels of lists and objects: a reader of the training could not be sent many more."""
PREPARED = (JOB_FILE, ROWS_FILE, HELDOUT_FILE)
FileName = Literal[
    "job.json",
    "rows.jsonl",
    "heldout.jsonl",
    "lora_trainer.py",
    "remote_trainer.py",
    "adapter_config.json",
    "adapter_model.safetensors",
]
router = APIRouter(prefix="/v1", tags=["callers"])


class TrainerMessage(Body):
    """A message of a trainer; docs/guides/train.md has the kinds."""

    model_config = ConfigDict(extra="allow")

    kind: Literal["started", "step", "heldout", "ended", "failed"]
    step: int = Field(0, ge=0, le=10_000_000)
    loss: float = Field(0.0, allow_inf_nan=False)
    right: float = Field(0.0, allow_inf_nan=False)
    seconds_each: float | None = Field(None, allow_inf_nan=False)
    text: str = Field("", max_length=2000)


async def training_of(request: Request, training: str, caller: Identified) -> Training:
    """The training whose key the request has. Raises Problem: 403, 404, and 409 if it no longer runs."""
    trainings = feature_of(request, Trainings)
    record, _ = await find_training(trainings, training)
    if caller.public != parts_of(trainings, record)[0]:
        raise Problem("role_required", "This address is for the trainer of this training alone.")
    if record.status != "running":
        raise Problem("state_conflict", f"The training is {record.status}: nothing is taken of it any more.")
    return record


Trained = Annotated[Training, Depends(training_of)]


@router.get(
    "/trainings/{training}/files/{name}",
    responses=with_errors(*TRAINER_ERRORS) | with_answer(200, "The file.", {"application/octet-stream": {}}),
    response_class=FileResponse,
)
async def read_file(request: Request, name: FileName, training: Trained) -> FileResponse:
    """A file of a training: options, rows, trainer, or first adapter."""
    trainings = feature_of(request, Trainings)
    path = _path(trainings, training, name)
    if not await asyncio.to_thread(path.is_file):
        raise Problem("state_conflict", f"{name} is not here: another gateway has it, or it is not ready. Try again.")
    return FileResponse(path)


@router.post("/trainings/{training}/messages", responses=with_errors(*TRAINER_ERRORS, "body_too_large"))
async def take_message(request: Request, message: TrainerMessage, training: Trained) -> dict[str, Any]:
    """Take a trainer's message about its training; `failed` ends it."""
    trainings = feature_of(request, Trainings)
    if message.kind == "failed":
        await end_training(trainings, training, "failed", message.text or "Its trainer failed.")
    else:
        fields = message.model_dump(exclude_unset=message.kind not in ("step", "heldout"))  # a point is whole
        if _is_deeper(fields, MESSAGE_DEPTH_MAX):
            raise Problem("invalid_json", f"A message has at most {MESSAGE_DEPTH_MAX} levels: send less at once.")
        if len(msgspec.json.encode(fields)) > MESSAGE_BYTES_MAX:
            raise Problem("body_too_large", f"A message has at most {MESSAGE_BYTES_MAX} bytes: send less at once.")
        await trainings.store.note_progress(training.id, fields)
    return {"training": training.id}


@router.post(
    "/trainings/{training}/result",
    responses=with_errors(*TRAINER_ERRORS, "stale_generation", *FORM_ERRORS),
    openapi_extra=with_body(as_form(dict.fromkeys(ADAPTER_FILES, BYTES), ADAPTER_FILES)),
)
async def take_result(request: Request, training: Trained, caller: Identified) -> dict[str, Any]:
    """Take the trained adapter, verify it and register it as a push would."""
    trainings = feature_of(request, Trainings)
    uploads = trainings.services.control.adapters.uploads
    async with uploads.receive(request, ADAPTER_FILES, ()) as upload:
        await training_of(request, training.id, caller)  # it may have ended while the adapter came
        ended = (await trainings.store.progress(training.id))["ended"] or {}
        try:
            await enter_result(trainings, training, upload.folder, ended)
        except TrainingFault as fault:
            raise Problem("adapter_rejected", str(fault)) from None
    after, _ = await trainings.store.get(training.id)
    return {"training": training.id, "version": None if after is None else after.version}


def _is_deeper(value: object, levels: int) -> bool:
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else None
    return parts is not None and (levels == 0 or any(_is_deeper(part, levels - 1) for part in parts))


def _path(trainings: Trainings, training: Training, name: FileName) -> Path:
    """Raises Problem (409)."""
    if name in (TRAINER.name, REMOTE_TRAINER.name):
        return TRAINER.with_name(name)
    if name in PREPARED:
        return trainings.folder_of(training) / name
    begin = trainings.services.snapshot.current.versions.get(training.begin or "")
    if begin is None:
        raise Problem("state_conflict", "The training begins with a fresh adapter: it has no such file.")
    return trainings.services.control.adapters.store.path(begin.digest) / name
