"""The audit: what admins did is entered here, and read here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from gateway.admin.access import Operator
from gateway.callers import Caller
from gateway.endpoints import house_of
from gateway.house import House
from gateway.state.drafts import Drafts
from monitoring.audit import Entry, Wanted
from serving.shelf import Change, change_together

router = APIRouter(prefix="/admin/v1", tags=["admins"])


async def audit(
    house: House,
    admin: Caller,
    action: str,
    name: str,
    before: Any = None,
    after: Any = None,
    evidence: Any = None,
    generation: int | None = None,
) -> None:
    """Enter what an admin did into the audit."""
    await house.audit.append(
        admin.public, action, name, before=before, after=after, evidence=evidence, generation=generation
    )


async def step_with_audit(house: House, changes: Sequence[Change], draft: Entry) -> int:
    """Make changes and note them in the audit in one step, which is entered then; the new generation of the first
    object. Raises Stale and RedisError."""
    drafts = Drafts(house.redis, house.audit)
    noted = drafts.change(draft)
    generation = await change_together(house.redis, [*changes, noted])
    await drafts.enter(noted.name)
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
) -> dict[str, Any]:
    """The audit, oldest first: who changed what, when, from what to what. Hash-chained. `next_after` is the `after`
    that goes on from there, null at its end."""
    found = await house_of(request).audit.find(Wanted(action, of, actor, since), after, limit, newest)
    return {"entries": [msgspec.to_builtins(entry) for entry in found.entries], "next_after": found.next_after}
