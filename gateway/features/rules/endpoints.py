"""Admin endpoints for rules that overrule the routing. Each change is one atomic step."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from pydantic import Field, model_validator

from gateway.approvers import see_that_another_pushed
from gateway.audit import change_objects
from gateway.endpoint_parts import (
    OBJECTS_MAX,
    Admin,
    Body,
    Moment,
    Operator,
    Short,
    require_task,
    see_that_it_is_to_come,
    services_of,
)
from gateway.errors import Problem
from gateway.features.rules.dry_run import try_rule
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from gateway.release_gate import GatePass, PastGate, pass_gate
from gateway.services import Services
from gateway.state.snapshot import read_override
from router.overrides import OverrideAction, OverrideMode, find_pattern_fault
from serving.adapters.versions_and_aliases import PLACED
from serving.object_store import Change

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
    starts_at: Moment | None = Field(None, description="Unix seconds; unset: at once.")
    expires_at: Moment | None = Field(None, description="Unix seconds.")

    @model_validator(mode="after")
    def _whole(self) -> OverrideIn:
        if (self.action == "version") != (self.version is not None):
            raise ValueError("version goes with the action version, and only with it")
        if self.version is not None and self.version.partition("@")[0] != self.task:
            raise ValueError("a version answers its own task alone: give that task")
        if (self.action == "system") != (self.system is not None):
            raise ValueError("system goes with the action system, and only with it")
        if self.contains is not None and not self.contains.strip():
            raise ValueError("contains: white space alone is in every text: leave it out")
        if self.system is not None and not self.system.strip():
            raise ValueError("system: there is nothing but white space in it")
        if self.starts_at is not None and self.expires_at is not None and self.expires_at <= self.starts_at:
            raise ValueError("expires_at: it is over before it has begun: let it be after starts_at")
        if self.pattern is not None and (fault := find_pattern_fault(self.pattern)) is not None:
            raise ValueError(f"pattern: {fault}")
        return self


class RuleIn(OverrideIn):
    """A rule that is set."""

    past_gate: PastGate = None
    expected_generation: int | None = Field(
        None, ge=0, le=2**53, description="409 if the rule has been set or deleted since."
    )


def _see_that_it_fits(services: Services, name: str, body: OverrideIn) -> None:
    """Raises Problem (400, 404) if the name is invalid, or the rule names a thing that does not exist."""
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or len(name) > 63:
        raise Problem("invalid_value", "A rule's name has letters, digits, - and _, at most 63.", "name")
    if body.task is not None:
        require_task(services, body.task)
    if (fault := find_fallback_fault(services, body.action, body.task)) is not None:
        raise Problem("invalid_value", fault, "action")
    if body.version is not None and body.version not in services.snapshot.current.versions:
        raise Problem("not_found", f"There is no version {body.version[:80]!r}.", "version")


def _doubts(services: Services, body: OverrideIn) -> list[str]:
    """Warnings of a caller or version in the rule that does not exist, and of caps. They do not prevent the rule."""
    snapshot, warnings = services.snapshot.current, []
    if body.caller is not None and body.caller not in snapshot.callers:
        warnings.append(f"There is no key {body.caller!r}: until there is one, the rule matches nothing.")
    version = snapshot.versions.get(body.version or "")
    if version is not None and version.state not in PLACED:
        warnings.append(f"{version.name} is {version.state}: until it is placed, the task's fallback answers.")
    return [*warnings, *list_cap_warnings(services, body.action, body.task)]


async def list_rules_to(services: Services, version: str) -> list[str]:
    """The names of rules that have not expired and send to a version. Raises RedisError."""
    rules, now = await services.objects.overrides.all(), time.time()
    return sorted(name for name, raw in rules.items() if raw.get("version") == version and not _is_over(raw, now))


def find_fallback_fault(services: Services, action: str, task: str | None) -> str | None:
    """The reason why this task can't have a rule with this action: it has no fallback for the requests."""
    settings = services.settings.tasks.get(task or "")
    if action != "general" or settings is None or settings.has_fallback("override"):
        return None
    return f"The task {task} has no fallback: set tasks.{task}.fallback_pool or fallbacks.override, or let it refuse."


def list_cap_warnings(services: Services, action: str, task: str | None) -> list[str]:
    """Warnings of the caps that apply to a rule with this action; without a task, of all tasks' caps."""
    if action != "general":
        return []
    caps = (
        (f"tasks.{name}.{cap}", getattr(settings, cap))
        for name, settings in services.settings.tasks.items()
        for cap in ("general_share_max", "general_usd_per_day")
        if task in (None, name)
    )
    return [f"{key} is {most:g}: past it the next fallback applies, or 503." for key, most in caps if most is not None]


def _is_over(raw: dict[str, Any], now_unix: float) -> bool:
    expires_at = raw.get("expires_at")
    return expires_at is not None and expires_at <= now_unix


@router.get("/overrides")
async def list_overrides(request: Request, _: Operator) -> dict[str, Any]:
    """All rules, in the order in which they are tried. A rule before its start or after its expiry matches nothing;
    it stays until it is deleted.
    """
    services = services_of(request)
    generations = await services.objects.overrides.generations()  # before the rules: never newer than their content
    rules, now = sorted((await services.objects.overrides.all()).items()), time.time()
    states = {name: version.state for name, version in services.snapshot.current.versions.items()}
    return {
        "overrides": [
            {
                "id": name,
                **raw,
                "to_come": (raw.get("starts_at") or 0.0) > now,
                "expired": _is_over(raw, now),
                "version_state": states.get(raw.get("version", "")),
                "generation": generations.get(name, 0),
            }
            for name, raw in rules
        ]
    }


@router.put("/overrides/{name}", responses=with_errors(*CHANGE_ERRORS, "approver_must_differ", "gate_not_passed"))
async def set_override(request: Request, name: str, body: RuleIn, admin: Admin) -> dict[str, Any]:
    """Set a rule. Rules are tried in the order of their names; the first that matches decides. If it is enforced and
    sends to a version, the gate is asked.
    """
    services = services_of(request)
    _see_that_it_fits(services, name, body)
    see_that_it_is_to_come("expires_at", body.expires_at, time.time())
    version, passed = services.snapshot.current.versions.get(body.version or ""), GatePass()
    if version is not None:
        await see_that_another_pushed(services, admin, version, "send to it")
        if body.mode == "enforce":
            passed = await pass_gate(services, admin, [version], body.past_gate, {version.name: name})
    generation = body.expected_generation
    if generation is None:
        generation = await services.objects.overrides.generation(name)
    before = await services.objects.overrides.get(name)
    if before is None and len(await services.objects.overrides.all()) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} rules already.")
    value = body.model_dump(exclude_none=True, exclude={"past_gate", "expected_generation"})
    changes = [Change(services.objects.overrides, name, value, generation), *passed.changes]
    entry = {"before": before, "after": value, "generation": generation + 1}
    entry |= {"evidence": {"gate": passed.evidence}} if passed.evidence else {}
    generation = await change_objects(services, admin, "override.set", name, changes, **entry)
    warnings = [*passed.warnings, *_doubts(services, body)]
    return {"id": name, **value, "generation": generation, "warnings": warnings}


@router.post("/overrides/{name}/dry-run", responses=with_errors("not_found"))
async def try_override(request: Request, name: str, body: OverrideIn, _: Operator) -> dict[str, Any]:
    """Try a rule on the last 1,000 requests. Nothing is set."""
    services = services_of(request)
    _see_that_it_fits(services, name, body)
    tried = await try_rule(services, read_override(name, body.model_dump(exclude_none=True)))
    return {"id": name, **tried.to_json()}


@router.delete("/overrides/{name}", responses=with_errors("not_found", "stale_generation"))
async def delete_override(
    request: Request, name: str, admin: Admin, expected_generation: Annotated[int | None, Query(ge=0, le=2**53)] = None
) -> dict[str, Any]:
    """Remove a rule."""
    services = services_of(request)
    generation = expected_generation
    if generation is None:
        generation = await services.objects.overrides.generation(name)
    before = await services.objects.overrides.get(name)
    if before is None:
        raise Problem("not_found", f"There is no rule {name[:80]!r}.")
    change = Change(services.objects.overrides, name, None, generation)
    entry = {"before": before, "after": None, "generation": generation + 1}
    generation = await change_objects(services, admin, "override.delete", name, [change], **entry)
    return {"id": name, "generation": generation}
