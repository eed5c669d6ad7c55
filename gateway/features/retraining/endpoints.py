"""Admin endpoints for requests to retrain a task's adapter, with examples of its wrong answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import Field

from gateway.audit import change_objects, enter_event
from gateway.endpoint_parts import (
    Admin,
    Body,
    OfTask,
    Operator,
    Reason,
    When,
    require_found,
    require_task,
    require_version,
    see_that_list_has_task,
)
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.retraining.requests_to_train import draft_retraining, read_rows
from gateway.features.retraining.state import RetrainingRequests
from gateway.openapi_parts import CHANGE_ERRORS, LINES, with_answer, with_errors
from monitoring.quality.verdicts.retraining import Retraining, close_request, is_complete
from monitoring.redis_time import read_redis_time

router = APIRouter(prefix="/admin/v1", tags=["admins"])
State = Literal["open", "closed"]


class RetrainingIn(Body):
    """A request to train, by hand."""

    task: str = Field(max_length=63)
    version: str | None = Field(None, max_length=100, description="Whose successor; unset: of the one that leads.")
    reason: Reason
    since: When | None = Field(
        None, description="Only what was judged bad since then: Unix seconds, or a date or time in ISO 8601."
    )


@router.get("/retraining", responses=with_errors("not_found"))
async def list_retraining(
    request: Request, _: Operator, task: OfTask = None, state: Annotated[State | None, Query()] = None
) -> dict[str, Any]:
    """All requests to train, the newest first."""
    requests = feature_of(request, RetrainingRequests)
    rows = [
        retraining
        for retraining in await requests.store.all()
        if task in (None, retraining.task) and state in (None, retraining.state)
    ]
    see_that_list_has_task(requests.services, task, rows)
    return {"retraining": [msgspec.to_builtins(retraining) for retraining in rows]}


@router.get("/retraining/{retraining}", responses=with_errors("not_found", "timeout"))
async def read_retraining(request: Request, retraining: str, _: Operator) -> dict[str, Any]:
    """One request to train, with its evidence."""
    requests = feature_of(request, RetrainingRequests)
    opened, generation = await _find(requests, retraining)
    counted = {"kept": 0, "complete": 0, "without_text": 0, "without_demonstration": 0}
    async for row in await read_rows(requests, await requests.store.examples(opened.id)):
        counted["kept"] += 1
        counted["complete"] += is_complete(row)
        counted["without_text"] += "messages" not in row and "prompt" not in row
        counted["without_demonstration"] += "expected" not in row
    fields: dict[str, Any] = msgspec.to_builtins(opened)
    return {**fields, "generation": generation, **counted}


@router.get(
    "/retraining/{retraining}/examples",
    responses=with_errors("not_found", "timeout") | with_answer(200, "JSON lines.", LINES),
    response_class=StreamingResponse,
)
async def read_examples(
    request: Request,
    retraining: str,
    operator: Operator,
    complete: Annotated[bool, Query(description="Only those that `apprentice evaluate --data` reads.")] = False,
) -> StreamingResponse:
    """Its examples as JSON lines. The audit names the reader."""
    requests = feature_of(request, RetrainingRequests)
    opened, _ = await _find(requests, retraining)
    examples = await requests.store.examples(opened.id)
    rows = await read_rows(requests, examples)
    event = {"id": opened.id, "examples": len(examples)}
    await enter_event(requests.services, operator, "retraining.give", opened.version, event)

    async def lines() -> AsyncIterator[bytes]:
        async for row in rows:
            if not complete or is_complete(row):
                yield msgspec.json.encode(row) + b"\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/retraining", status_code=201, responses=with_errors("not_found"))
async def ask_retraining(request: Request, body: RetrainingIn, admin: Admin) -> dict[str, Any]:
    """Open a request to train by hand."""
    requests = feature_of(request, RetrainingRequests)
    require_task(requests.services, body.task)
    version = body.version
    if version is None:
        alias = (await requests.services.snapshot.refresh()).aliases.get(body.task)
        if alias is None:
            raise Problem("not_found", f"No version leads {body.task}: name one.", "version")
        version = alias.leading
    await require_version(requests.services, body.task, version)
    opened, examples = await draft_retraining(requests, body.task, version, body.reason, {}, admin.public, body.since)
    await requests.store.keep(opened.id, examples)
    fields: dict[str, Any] = msgspec.to_builtins(opened)
    step = requests.services.begin_step(admin.public)
    step.note("retraining.open", version, after=fields)
    try:
        await step.take([requests.store.change(opened, 0)])
    except Exception:
        if await requests.store.object_store.get(opened.id) is None:
            await requests.store.forget_examples(opened.id)  # it was not opened: nothing refers to them
        raise
    await requests.store.tidy()
    await requests.services.snapshot.refresh()
    return fields


@router.post("/retraining/{retraining}/close", responses=with_errors(*CHANGE_ERRORS))
async def close_retraining(
    request: Request,
    retraining: str,
    admin: Admin,
    expected_generation: Annotated[int | None, Query(ge=0, le=2**53, description="409 if it has moved on.")] = None,
) -> dict[str, Any]:
    """Close a request to train. Its examples stay as long as feedback does."""
    requests = feature_of(request, RetrainingRequests)
    opened, generation = await _find(requests, retraining)
    if opened.state == "closed":
        raise Problem("state_conflict", f"It was closed already, by {opened.closed_by}.")
    after = close_request(opened, admin.public, await read_redis_time(requests.services.redis))
    fields: dict[str, Any] = msgspec.to_builtins(after)
    change = requests.store.change(after, generation if expected_generation is None else expected_generation)
    entry = {"before": msgspec.to_builtins(opened), "after": fields}
    await change_objects(requests.services, admin, "retraining.close", opened.version, [change], **entry)
    return fields


async def _find(retraining: RetrainingRequests, name: str) -> tuple[Retraining, int]:
    """Raises Problem (404)."""
    opened, generation = await retraining.store.get(name) if name.isalnum() and len(name) <= 64 else (None, 0)
    return require_found(opened, "request to train", name), generation
