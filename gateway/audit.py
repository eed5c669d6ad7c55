"""The audit: functions that enter the actions of admins, and the endpoint that reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from gateway.callers import Caller
from gateway.endpoint_parts import Operator, conflicts, services_of
from gateway.services import Services
from gateway.state.audited_step import AuditedStep
from monitoring.audit import Wanted
from serving.object_store import Change

router = APIRouter(prefix="/admin/v1", tags=["admins"])


async def enter_event(services: Services, actor: Caller, action: str, name: str, evidence: Any) -> None:
    """Enter an event that changes no state: texts that are about to be given out, an adapter that was rejected."""
    await services.control.audit.append(actor.public, action, name, evidence=evidence)


@asynccontextmanager
async def take_step(services: Services, admin: Caller) -> AsyncIterator[AuditedStep]:
    """A step of the registry by this admin, whose entries are appended after the block. Raises Problem (409)."""
    step = services.begin_step(admin.public)
    with conflicts():
        yield step
    await step.enter()


async def change_objects(
    services: Services, admin: Caller, action: str, name: str, changes: Sequence[Change], **entry: Any
) -> int:
    """Make changes with one audit entry in one step, and read the new state. Return the first one's generation.

    `entry` is what `note` takes besides. Raises Problem (409) and RedisError.
    """
    step = services.begin_step(admin.public)
    step.note(action, name, **entry)
    with conflicts():
        generation = await step.take(changes)
    await services.snapshot.refresh()
    return generation


@router.get("/audit")
async def read_audit(
    request: Request,
    _: Operator,
    after: Annotated[int, Query(ge=0, le=2**53, description="Only entries with a greater number.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    action: Annotated[str | None, Query(max_length=100, description="Only this, such as alias.rollback.")] = None,
    of: Annotated[
        str | None, Query(alias="object", max_length=200, description="Only of this, such as a task.")
    ] = None,
    actor: Annotated[str | None, Query(max_length=100, description="Only by this key (its public part).")] = None,
    since: Annotated[float, Query(ge=0, le=2**53, description="Only from then on, in Unix seconds.")] = 0.0,
    newest: Annotated[bool, Query(description="The newest first, not the oldest.")] = False,
    before: Annotated[
        int | None, Query(ge=1, le=2**53, description="Of the newest only entries with a smaller number.")
    ] = None,
) -> dict[str, Any]:
    """The audit, oldest first. Hash-chained. `next_after` is the `after` that goes on from there, null at its end; of
    the newest `next_before` the `before`.
    """
    page = await services_of(request).control.audit.find(Wanted(action, of, actor, since), after, limit, newest, before)
    entries = [msgspec.to_builtins(entry) for entry in page.entries]
    return {"entries": entries, "next_after": page.next_after, "next_before": page.next_before}
