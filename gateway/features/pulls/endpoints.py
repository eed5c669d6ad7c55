"""Admin endpoints for pulls: adapters that the gateway fetches from another place."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field

from gateway.approvers import find_owner_to_keep
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
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.pulls.state import Pull, Pulls
from gateway.openapi_parts import with_errors
from monitoring.ids import make_timed_id
from serving.adapters.sources.fetch_job import scheme_of, see_that_it_is_allowed
from serving.adapters.sources.source import SourceError

router = APIRouter(prefix="/admin/v1", tags=["admins"])


class PullIn(Body):
    """An adapter to pull."""

    address: str = Field(max_length=1024, description="An s3://, gs://, hf:// or oci:// address, or another of fsspec.")
    task: str = Field(max_length=63)
    pool: str | None = Field(
        None, max_length=63, description="The pool it is for; unset: the first whose base it fits."
    )
    digest: str | None = Field(
        None, pattern="^sha256:[0-9a-f]{64}$", description="The adapter's own digest; another one is refused."
    )
    manifest: dict[str, Any] | None = Field(None, description="Unset: manifest.yaml beside the adapter.")


@router.post("/pulls", status_code=202, responses=with_errors("not_found", "adapter_rejected"))
async def pull_adapter(request: Request, body: PullIn, admin: Admin) -> dict[str, Any]:
    """Pull an adapter from elsewhere, and enter it as the task's next version. GET /pulls/{id} shows the progress.

    The same address again continues after the bytes that an earlier pull has fetched.
    """
    pulls = feature_of(request, Pulls)
    require_task(pulls.services, body.task)
    try:
        scheme_of(body.address)
        see_that_it_is_allowed(body.address, pulls.services.settings.pulls.allowed)
    except SourceError as error:
        raise Problem("adapter_rejected", str(error), "address") from None
    now = time.time()
    pull = Pull(
        id=make_timed_id(now),
        address=body.address,
        task=body.task,
        pool=body.pool,
        digest=body.digest or "",
        manifest=body.manifest,
        by=admin.public,
        owner=find_owner_to_keep(pulls.services, admin),
        created_at=now,
    )
    step = pulls.services.begin_step(admin.public)
    step.note("pull.begin", body.task, None, _audited(pull))
    await pulls.store.begin(pull, step)
    await pulls.services.snapshot.refresh()
    return await _shown(pulls, pull)


@router.get("/pulls", responses=with_errors("not_found"))
async def list_pulls(request: Request, _: Operator, task: OfTask = None) -> dict[str, Any]:
    """The latest pulls, the newest first."""
    pulls = feature_of(request, Pulls)
    listed = [pull for pull in await pulls.store.all() if task in (None, pull.task)]
    see_that_list_has_task(pulls.services, task, listed)
    return {"pulls": [await _shown(pulls, pull) for pull in listed]}


@router.get("/pulls/{pull}", responses=with_errors("not_found", "state_conflict"))
async def read_pull(request: Request, pull: str, _: Operator) -> dict[str, Any]:
    """One pull: how far it is, its version, or why it failed."""
    pulls = feature_of(request, Pulls)
    return await _shown(pulls, require_found(await pulls.store.get(pull), "pull", pull))


@router.delete("/pulls/{pull}", responses=with_errors("not_found", "state_conflict", "stale_generation"))
async def cancel_pull(request: Request, pull: str, admin: Admin) -> dict[str, Any]:
    """End a pull that waits or is under way: it has failed then. The fetched bytes are kept for a day."""
    pulls = feature_of(request, Pulls)
    record = require_found(await pulls.store.get(pull), "pull", pull)
    if record.state != "running":
        raise Problem("state_conflict", f"The pull {record.id} has ended ({record.state}): there is nothing to cancel.")
    error = f"It was cancelled by {admin.public}. What came is kept: pull it again to go on."
    ended = msgspec.structs.replace(record, state="failed", error=error, ended_at=time.time())
    step = pulls.services.begin_step(admin.public)
    step.note("pull.cancel", record.task, _audited(record), _audited(ended))
    with conflicts():
        await pulls.store.cancel(ended, step)
    await pulls.services.snapshot.refresh()
    return await _shown(pulls, ended)


def _audited(pull: Pull) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(pull)
    del fields["manifest"], fields["owner"]
    return fields


async def _shown(pulls: Pulls, pull: Pull) -> dict[str, Any]:
    return _audited(pull) | {"progress": msgspec.to_builtins(await pulls.store.progress(pull))}
