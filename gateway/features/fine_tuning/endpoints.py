"""Endpoints for clients of OpenAI's fine-tuning API, with `/admin/v1` as their base URL and an admin's key. A job is a
training; its model is loaded once the training is done. The gate still decides on canary and promotion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from gateway.approvers import find_owner_to_keep
from gateway.endpoint_parts import Admin, Operator, conflicts, require_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.fine_tuning.job_request import (
    FILE_PREFIX,
    JOB_PREFIX,
    JobIn,
    draft_manifest_of,
    resolve_parameters,
)
from gateway.features.fine_tuning.job_view import cut_page, list_checkpoints, list_events, show_job
from gateway.features.releases.adding import Pusher
from gateway.features.training.endpoints import find_training
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.training_end import cancel_training
from gateway.features.training.training_start import WantedTraining, begin_run, draft_training
from gateway.openapi_parts import CHANGE_ERRORS, with_errors

router = APIRouter(prefix="/admin/v1", tags=["admins"])
After = Annotated[str | None, Query(max_length=200, description="The last id of the page before.")]
OUR_FIELDS: Mapping[str, str] = {"begin": "model", "data": "training_file", "heldout": "validation_file"}
"""The fields of a training that errors name, and the fields of a job from which they come."""
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post("/fine_tuning/jobs", responses=with_errors(*CHANGE_ERRORS))
async def create_job(request: Request, body: JobIn, admin: Admin) -> dict[str, Any]:
    """Train an adapter, as OpenAI's clients ask for it. The same job again continues, or exists already."""
    trainings = feature_of(request, Trainings)
    task, _, number = body.model.partition("@")
    require_task(trainings.services, task, param="model")
    path = trainings.datasets.require_file(body.training_file.removeprefix(FILE_PREFIX), "training_file")
    heldout = (body.validation_file or "").removeprefix(FILE_PREFIX)
    defaults = trainings.services.settings.training.parameters
    has_version = bool(trainings.services.snapshot.current.versions_by_task.get(task))
    wanted = WantedTraining(
        task=task,
        data=path.name,
        heldout=heldout,
        begin=body.model if number else None,
        parameters=await asyncio.to_thread(resolve_parameters, body, defaults, path),
        first_manifest=None if has_version else await asyncio.to_thread(draft_manifest_of, task, path),
        stage=True,
        request={
            "hyperparameters": body.wanted_hyperparameters.model_dump(),
            "suffix": body.suffix,
            "metadata": body.metadata,
        },
    )
    pusher = Pusher(admin.public, find_owner_to_keep(trainings.services, admin))
    try:
        training = await draft_training(trainings, wanted, pusher)
    except Problem as problem:
        problem.param = OUR_FIELDS.get(problem.param or "", problem.param)
        raise
    with conflicts():
        begun, _ = await begin_run(trainings, training)
    return await _shown(trainings, begun)


@router.get("/fine_tuning/jobs", responses=with_errors("not_found"))
async def list_jobs(request: Request, _: Operator, after: After = None, limit: Limit = 20) -> dict[str, Any]:
    """All trainings as OpenAI's jobs, the newest first."""
    trainings = feature_of(request, Trainings)
    jobs = {JOB_PREFIX + each.id: each for each in await trainings.store.all()}
    page = cut_page([{"id": name} for name in jobs], after, limit)
    return page | {"data": [await _shown(trainings, jobs[row["id"]]) for row in page["data"]]}


@router.get("/fine_tuning/jobs/{job}", responses=with_errors("not_found"))
async def read_job(request: Request, job: str, _: Operator) -> dict[str, Any]:
    """One job."""
    trainings = feature_of(request, Trainings)
    return await _shown(trainings, await _training_of(trainings, job))


@router.get("/fine_tuning/jobs/{job}/events", responses=with_errors("not_found"))
async def list_job_events(
    request: Request, job: str, _: Operator, after: After = None, limit: Limit = 20
) -> dict[str, Any]:
    """The events of a job, with its losses, the newest first."""
    trainings = feature_of(request, Trainings)
    training = await _training_of(trainings, job)
    return cut_page(list_events(training, await trainings.store.points(training.id)), after, limit)


@router.get("/fine_tuning/jobs/{job}/checkpoints", responses=with_errors("not_found"))
async def list_job_checkpoints(
    request: Request, job: str, _: Operator, after: After = None, limit: Limit = 10
) -> dict[str, Any]:
    """The checkpoint of a job that is kept: the best one, which is its version."""
    trainings = feature_of(request, Trainings)
    return cut_page(list_checkpoints(await _training_of(trainings, job)), after, limit)


@router.post("/fine_tuning/jobs/{job}/cancel", responses=with_errors("not_found", "state_conflict"))
async def cancel_job(request: Request, job: str, admin: Admin) -> dict[str, Any]:
    """Stop a job that runs."""
    trainings = feature_of(request, Trainings)
    training = await _training_of(trainings, job)
    return await _shown(trainings, await cancel_training(trainings, training, admin.public))


async def _training_of(trainings: Trainings, job: str) -> Training:
    """Raises Problem (404)."""
    return (await find_training(trainings, job.removeprefix(JOB_PREFIX)))[0]


async def _shown(trainings: Trainings, training: Training) -> dict[str, Any]:
    return show_job(training, await trainings.store.progress(training.id), time.time())
