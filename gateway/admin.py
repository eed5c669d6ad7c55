"""The table URL → function for admins. Each change is one atomic step, and stands in the audit with who did it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.callers import Caller, Role, new_key, require
from gateway.endpoints import caller_of, house_of
from gateway.errors import Problem
from gateway.house import House
from router.overrides import OverrideAction
from serving.adapters.registry import RegistryError
from serving.shelf import Stale

OBJECTS_MAX = 1000
Short = Annotated[str, Field(max_length=256)]


def admin_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """The caller, if it is an admin. Raises Problem (401, 403)."""
    return require(caller, "admin")


def operator_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """The caller, if it is an operator or an admin. Raises Problem (401, 403)."""
    return require(caller, "operator", "admin")


Admin = Annotated[Caller, Depends(admin_of)]
Operator = Annotated[Caller, Depends(operator_of)]
router = APIRouter(prefix="/admin/v1", tags=["admins"])


class Body(BaseModel):
    """A body of an admin call: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class OverrideIn(Body):
    """A rule that overrules the routing of a task, or of all."""

    action: OverrideAction
    task: str | None = Field(None, max_length=63)
    contains: str | None = Field(None, min_length=1, max_length=500, description="Text, without regard to case.")
    caller: str | None = Field(None, max_length=63, description="A caller's public part.")
    metadata: dict[Short, Short] = Field(default_factory=dict, max_length=16)
    version: str | None = None
    message: str | None = Field(None, max_length=1000)
    expires_at: float | None = Field(None, gt=0, allow_inf_nan=False, description="Unix seconds.")

    @model_validator(mode="after")
    def _whole(self) -> OverrideIn:
        if (self.action == "version") != (self.version is not None):
            raise ValueError("version goes with the action version, and only with it")
        if self.version is not None and self.version.partition("@")[0] != self.task:
            raise ValueError("a version answers its own task alone: give that task")
        return self


class CallerIn(Body):
    """A new key."""

    name: str = Field(min_length=1, max_length=100)
    role: Role = "caller"
    models: list[Short] = Field(default_factory=lambda: ["*"], min_length=1, max_length=1000)
    expires_at: float | None = Field(None, gt=0, allow_inf_nan=False, description="Unix seconds.")


@router.get("/overrides")
async def list_overrides(request: Request, _: Operator) -> dict[str, Any]:
    """All rules, in the order in which they are tried."""
    return {
        "overrides": [{"id": name, **raw} for name, raw in sorted((await house_of(request).overrides.all()).items())]
    }


@router.put("/overrides/{name}")
async def set_override(request: Request, name: str, body: OverrideIn, admin: Admin) -> dict[str, Any]:
    """Set a rule. Rules are tried in the order of their names; the first that matches decides."""
    house = house_of(request)
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or len(name) > 63:
        raise Problem("invalid_value", "A rule's name has letters, digits, - and _, at most 63.", "name")
    if body.task is not None and body.task not in house.settings.tasks:
        raise Problem("not_found", f"The configuration has no task {body.task!r}.", "task")
    if body.version is not None and body.version not in house.snapshot.current.versions:
        raise Problem("not_found", f"There is no version {body.version[:80]!r}.", "version")
    version = house.snapshot.current.versions.get(body.version or "")
    if version is not None and version.created_by == admin.public and house.settings.release.approver_must_differ:
        raise Problem(
            "approver_must_differ", f"{version.name} was pushed with this key: another admin has to send to it."
        )
    before = await house.overrides.get(name)
    if before is None and len(await house.overrides.all()) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} rules already.")
    value = body.model_dump(exclude_none=True)
    generation = await house.overrides.put(name, value)
    await audit(house, admin, "override.set", name, before, value, generation=generation)
    await house.snapshot.refresh()
    return {"id": name, **value, "generation": generation}


@router.delete("/overrides/{name}")
async def delete_override(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Remove a rule."""
    house = house_of(request)
    before = await house.overrides.get(name)
    if before is None:
        raise Problem("not_found", f"There is no rule {name[:80]!r}.")
    generation = await house.overrides.delete(name)
    await audit(house, admin, "override.delete", name, before, None, generation=generation)
    await house.snapshot.refresh()
    return {"id": name, "generation": generation}


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


def _caller_shown(caller: Caller) -> dict[str, Any]:
    shown = {"public": caller.public, **caller.to_json()}
    del shown["secret_digest"]
    return shown


class conflicts:  # noqa: N801 - reads as a verb where it is used
    """Translate what the state does not allow into a 409."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Stale):
            raise Problem("stale_generation", str(error)) from error
        if isinstance(error, RegistryError):
            raise Problem("state_conflict", str(error)) from error


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


def add_to(app: FastAPI) -> None:
    """Put the admins' endpoints into the application."""
    app.include_router(router)
