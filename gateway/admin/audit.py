"""The audit: what admins did is entered here, and read here."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from gateway.admin.access import Operator
from gateway.callers import Caller
from gateway.endpoints import house_of
from gateway.house import House

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


@router.get("/audit")
async def read_audit(
    request: Request,
    _: Operator,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The audit, oldest first: who changed what, when, from what to what. Hash-chained."""
    entries = await house_of(request).audit.read(after, limit)
    return {"entries": [msgspec.to_builtins(entry) for entry in entries]}
