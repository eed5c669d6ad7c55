"""The table URL → function for admins, API keys. A key is shown once, when it is made."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field

from gateway.admin.access import OBJECTS_MAX, Admin, Body, Operator, Short
from gateway.admin.audit import audit
from gateway.callers import Caller, Role, new_key
from gateway.endpoints import house_of
from gateway.errors import Problem

router = APIRouter(prefix="/admin/v1", tags=["admins"])


class CallerIn(Body):
    """A new key."""

    name: str = Field(min_length=1, max_length=100)
    role: Role = "caller"
    models: list[Short] = Field(default_factory=lambda: ["*"], min_length=1, max_length=1000)
    expires_at: float | None = Field(None, gt=0, allow_inf_nan=False, description="Unix seconds.")


@router.get("/callers")
async def list_callers(request: Request, _: Operator) -> dict[str, Any]:
    """All keys by their public part; secrets are not kept."""
    snapshot = await house_of(request).snapshot.refresh()
    return {"callers": [_caller_shown(caller) for caller in snapshot.callers.values()]}


@router.post("/callers", status_code=201)
async def make_caller(request: Request, body: CallerIn, admin: Admin) -> dict[str, Any]:
    """Make a key. The answer is the only place where the whole of it is ever shown."""
    house = house_of(request)
    if len(house.snapshot.current.callers) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} keys already: delete some.")
    key, public, digest = new_key()
    caller = Caller(public, body.name, body.role, digest, frozenset(body.models), body.expires_at)
    await house.callers.put(public, caller.to_json(), 0)
    await audit(house, admin, "caller.make", public, None, _caller_shown(caller))
    await house.snapshot.refresh()
    return {**_caller_shown(caller), "key": key}


@router.delete("/callers/{public}")
async def delete_caller(request: Request, public: str, admin: Admin) -> dict[str, Any]:
    """Revoke a key, on every gateway within the snapshot's interval."""
    house = house_of(request)
    before = await house.callers.get(public)
    if before is None:
        raise Problem("not_found", f"There is no key {public[:20]!r} that could be deleted.")
    await house.callers.delete(public)
    await audit(house, admin, "caller.delete", public, {"name": before["name"], "role": before["role"]}, None)
    await house.snapshot.refresh()
    return {"public": public}


def _caller_shown(caller: Caller) -> dict[str, Any]:
    shown = {"public": caller.public, **caller.to_json()}
    del shown["secret_digest"]
    return shown
