"""The table URL → function for admins, rules that overrule the routing. Each change is one atomic step."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from gateway.admin.access import OBJECTS_MAX, Admin, Body, Moment, Operator, Short
from gateway.admin.audit import audit
from gateway.endpoints import house_of
from gateway.errors import Problem
from router.overrides import OverrideAction, OverrideMode, pattern_fault

router = APIRouter(prefix="/admin/v1", tags=["admins"])


class OverrideIn(Body):
    """A rule that overrules the routing of a task, or of all."""

    action: OverrideAction
    task: str | None = Field(None, max_length=63)
    contains: str | None = Field(None, min_length=1, max_length=500, description="Text, without regard to case.")
    pattern: str | None = Field(None, min_length=1, max_length=1000, description="A regular expression of RE2.")
    caller: str | None = Field(None, max_length=63, description="A caller's public part.")
    metadata: dict[Short, Short] = Field(default_factory=dict, max_length=16)
    version: str | None = None
    message: str | None = Field(None, max_length=1000)
    system: str | None = Field(
        None, min_length=1, max_length=10_000, description="What is added to the system's message."
    )
    mode: OverrideMode = Field("enforce", description="`observe`: only noted on the records of what it matches.")
    expires_at: Moment | None = Field(None, description="Unix seconds.")

    @model_validator(mode="after")
    def _whole(self) -> OverrideIn:
        if (self.action == "version") != (self.version is not None):
            raise ValueError("version goes with the action version, and only with it")
        if self.version is not None and self.version.partition("@")[0] != self.task:
            raise ValueError("a version answers its own task alone: give that task")
        if (self.action == "system") != (self.system is not None):
            raise ValueError("system goes with the action system, and only with it")
        if self.pattern is not None and (fault := pattern_fault(self.pattern)) is not None:
            raise ValueError(f"pattern: {fault}")
        return self


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
