"""Admin endpoints for trainings: begin one on a data set, watch it, stop it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from gateway.approvers import find_owner_to_keep
from gateway.configuration.training import RunnerName, TrainingParameters
from gateway.endpoint_parts import (
    Admin,
    Body,
    OfTask,
    Operator,
    conflicts,
    require_found,
    require_task,
    see_that_list_has_task,
)
from gateway.feature import feature_of
from gateway.features.releases.adding import Pusher
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.training_end import cancel_training
from gateway.features.training.training_start import WantedTraining, begin_run, draft_training
from gateway.openapi_parts import CHANGE_ERRORS, with_answer, with_errors
from monitoring.training.loss_plot import draw_losses

SVG: Mapping[str, Any] = {"image/svg+xml": {"schema": {"type": "string"}}}
router = APIRouter(prefix="/admin/v1", tags=["admins"])


class TrainingIn(Body):
    """A training to begin."""

    task: str = Field(max_length=63)
    data: str = Field(
        pattern="^[0-9a-f]{8,64}$", description="Digest of a data set, or of a file sent to /datasets/files."
    )
    pool: str | None = Field(None, max_length=63, description="The pool it is for; unset: the first with a base.")
    begin: str | None = Field(None, max_length=100, description="A version to go on from; unset: a fresh adapter.")
    runner: RunnerName | None = Field(None, description="Unset: training.runner.")
    parameters: TrainingParameters = Field(
        TrainingParameters(), description="Those that are left out are as `training.parameters` says."
    )
    manifest: dict[str, Any] | None = Field(None, description="Of the result; unset: that of the task's last version.")


@router.post(
    "/trainings",
    status_code=201,
    responses=with_errors(*CHANGE_ERRORS) | with_answer(200, "It was there already, or goes on."),
)
async def begin_training(
    request: Request,
    response: Response,
    body: TrainingIn,
    admin: Admin,
    again: Annotated[bool, Query(description="Begin again, and forget how far it was.")] = False,
) -> dict[str, Any]:
    """Train an adapter for a task. The same training again (200) continues from its checkpoint, or exists already."""
    trainings = feature_of(request, Trainings)
    require_task(trainings.services, body.task)
    pusher = Pusher(admin.public, find_owner_to_keep(trainings.services, admin))
    parameters = trainings.services.settings.training.parameters.model_dump()
    parameters |= body.parameters.model_dump(exclude_unset=True)
    training = await draft_training(trainings, WantedTraining(**body.model_dump() | {"parameters": parameters}), pusher)
    with conflicts():
        begun, is_known = await begin_run(trainings, training, again)
    response.status_code = 200 if is_known else 201
    return await _shown(trainings, begun)


@router.get("/trainings", responses=with_errors("not_found"))
async def list_trainings(request: Request, _: Operator, task: OfTask = None) -> dict[str, Any]:
    """All trainings, the newest first."""
    trainings = feature_of(request, Trainings)
    rows = [msgspec.to_builtins(each) for each in await trainings.store.all() if task in (None, each.task)]
    see_that_list_has_task(trainings.services, task, rows)
    return {"trainings": [{name: value for name, value in row.items() if name != "manifest"} for row in rows]}


@router.get("/trainings/{training}", responses=with_errors("not_found"))
async def read_training(request: Request, training: str, _: Operator) -> dict[str, Any]:
    """One training: its progress, and what came of it."""
    trainings = feature_of(request, Trainings)
    return await _shown(trainings, (await find_training(trainings, training))[0])


@router.get(
    "/trainings/{training}/plot",
    responses=with_errors("not_found") | with_answer(200, "An SVG.", SVG),
    response_class=Response,
)
async def plot_training(request: Request, training: str, _: Operator) -> Response:
    """The losses of a training by step, as a picture."""
    trainings = feature_of(request, Trainings)
    record, _generation = await find_training(trainings, training)
    progress = await trainings.store.progress(record.id)
    picture = draw_losses(f"{record.task}, training {record.id}", progress["losses"], progress["heldout"])
    return Response(picture, media_type="image/svg+xml")


@router.delete("/trainings/{training}", responses=with_errors(*CHANGE_ERRORS))
async def stop_training(request: Request, training: str, admin: Admin) -> dict[str, Any]:
    """Stop a training that runs; forget one that does not."""
    trainings = feature_of(request, Trainings)
    record, generation = await find_training(trainings, training)
    if record.status == "running":
        return await _shown(trainings, await cancel_training(trainings, record, admin.public))
    step = trainings.services.begin_step(admin.public)
    step.note("training.forget", record.task, {"training": record.id}, None, generation=generation + 1)
    with conflicts():
        await step.take([trainings.store.forgetting(record.id, generation)])
    await trainings.store.forget_progress(record.id)
    await trainings.services.snapshot.refresh()
    return {"id": record.id, "status": "forgotten"}


async def find_training(trainings: Trainings, name: str) -> tuple[Training, int]:
    """A training and its generation. Raises Problem (404)."""
    record, generation = await trainings.store.get(name) if name.isalnum() and len(name) <= 64 else (None, 0)
    return require_found(record, "training", name), generation


async def _shown(trainings: Trainings, training: Training) -> dict[str, Any]:
    """A training for the API, with its progress."""
    now = time.time()
    fields: dict[str, Any] = msgspec.to_builtins(training)
    progress = await trainings.store.progress(training.id)
    seconds = (training.ended_at or now) - training.begun_at
    return fields | {"progress": progress, "seconds": round(seconds, 1)}
