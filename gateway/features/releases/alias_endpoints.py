"""Admin endpoints for releases: the versions that answer a task's requests, on trial or permanently.

A release moves an alias in one atomic step. It loads nothing: a version must be ready before it may get requests.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import Field, model_validator

from gateway.approvers import see_that_another_pushed
from gateway.audit import take_step
from gateway.callers import Caller
from gateway.endpoint_parts import Admin, Body, Operator, Reason, find_version, require_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.releases.adapter_endpoints import show_canary
from gateway.features.releases.availability import describe_canary, explain_unready, find_obstacles
from gateway.features.releases.state import Releases
from gateway.features.releases.unjudged_checks import COMMAND_OF, lacks, list_answering_versions
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from gateway.release_gate import GatePass, PastGate, keep_leaders, pass_gate
from monitoring.quality.explanations import obstacles as in_words
from monitoring.quality.verdicts.canary_verdict import CanaryPlan
from monitoring.redis_time import read_redis_time
from serving.adapters.registry import Noted
from serving.adapters.versions_and_aliases import PLACED, AliasEntry
from serving.object_store import Change, Stale, Unchanged

router = APIRouter(prefix="/admin/v1", tags=["admins"])
RELEASE_ERRORS = ("approver_must_differ", "gate_not_passed")
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Generation = Annotated[int | None, Field(ge=0, le=2**53, description="409 if the alias has moved on since.")]


class AliasIn(Body):
    """The versions of a task's requests from now on: one version, or versions with weights that add up to 1."""

    version: str | None = Field(None, max_length=100)
    weights: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = Field(None, min_length=1, max_length=16)
    past_gate: PastGate = None
    expected_generation: Generation = None

    @model_validator(mode="after")
    def _require_one(self) -> AliasIn:
        if (self.version is None) == (self.weights is None):
            raise ValueError("give either version or weights")
        return self


class ShadowIn(Body):
    """A version that is to get a copy of a share of the task's requests. Nobody sees its answers; 0 ends it."""

    version: str = Field(max_length=100)
    share: Share
    expected_generation: Generation = None


class CanaryIn(Body):
    """A version that is to answer a share of the task's sessions, and the plan by which it is judged, if by itself."""

    version: str = Field(max_length=100)
    share: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
    plan: dict[str, Any] | None = Field(
        None, max_length=20, description="Unset: a canary on trial keeps its plan. Null: people judge it."
    )
    past_gate: PastGate = None
    expected_generation: Generation = None


class PromoteIn(Body):
    """The version that is to answer all of the task's requests."""

    version: str = Field(max_length=100)
    past_gate: PastGate = None
    expected_generation: Generation = None


class RollbackIn(Body):
    """The way back: a canary ends; without one, the version that led before leads again, or `version`."""

    version: str | None = Field(None, max_length=100)
    canary_only: bool = Field(False, description="Only end a canary: 409 where there is none, and nobody else moves.")
    reason: Reason | None = None
    expected_generation: Generation = None

    @model_validator(mode="after")
    def _check_form(self) -> RollbackIn:
        if self.canary_only and self.version is not None:
            raise ValueError("give either version or canary_only")
        return self


@router.get("/aliases")
async def list_aliases(request: Request, _: Operator) -> dict[str, Any]:
    """All aliases with weights, shadows and canaries."""
    releases = feature_of(request, Releases)
    snapshot = await releases.services.snapshot.refresh()
    return {"aliases": {task: await _alias_shown(releases, task) for task in sorted(snapshot.aliases)}}


@router.get("/aliases/{task}", responses=with_errors("not_found"))
async def read_alias(request: Request, task: str, _: Operator) -> dict[str, Any]:
    """One alias, with the evidence on its canary."""
    releases = feature_of(request, Releases)
    return await _alias_shown(releases, await _known_alias(releases, task))


@router.put("/aliases/{task}", responses=with_errors(*CHANGE_ERRORS, *RELEASE_ERRORS))
async def move_alias(request: Request, task: str, body: AliasIn, admin: Admin) -> dict[str, Any]:
    """Send the task's new requests to these versions. Running requests keep their versions."""
    releases = feature_of(request, Releases)
    weights = body.weights or {body.version or "": 1.0}
    require_task(releases.services, task, param=None)
    passed = await _see_that_they_may_serve(releases, task, admin, weights, body.past_gate)
    change = partial(releases.services.control.registry.point, task, weights, body.expected_generation)
    return await _change_alias(releases, admin, task, "alias.move", change, passed)


@router.delete("/aliases/{task}", responses=with_errors(*CHANGE_ERRORS))
async def remove_alias(
    request: Request, task: str, admin: Admin, expected_generation: Annotated[int | None, Query(ge=0, le=2**53)] = None
) -> dict[str, Any]:
    """Leave the task without a version: its fallback answers."""
    releases = feature_of(request, Releases)
    await _known_alias(releases, task)
    keep = await keep_leaders(releases.services, task)

    async def remove(noted: Noted) -> bool:
        return await releases.services.control.registry.remove_alias(
            task, expected_generation, lambda before, *then: [*noted(before, *then), keep(before)]
        )

    return await _change_alias(releases, admin, task, "alias.remove", remove)


@router.post("/aliases/{task}/shadow", responses=with_errors(*CHANGE_ERRORS, *RELEASE_ERRORS))
async def shadow(request: Request, task: str, body: ShadowIn, admin: Admin) -> dict[str, Any]:
    """Copy a share of the task's requests to a version."""
    releases = feature_of(request, Releases)
    require_task(releases.services, task, param=None)
    if body.share:
        await _see_that_they_may_serve(releases, task, None, {body.version: body.share})
    share, expected = body.share, body.expected_generation
    change = partial(releases.services.control.registry.shadow, task, body.version, share, expected)
    return await _change_alias(releases, admin, task, "alias.shadow", change)


@router.post("/aliases/{task}/canary", responses=with_errors(*CHANGE_ERRORS, *RELEASE_ERRORS))
async def canary(request: Request, task: str, body: CanaryIn, admin: Admin) -> dict[str, Any]:
    """Send a share of the task's sessions to a version. With a plan the gateway promotes it or rolls it back."""
    releases = feature_of(request, Releases)
    require_task(releases.services, task, param=None)
    plan = None if body.plan is None else _plan(releases, task, body.plan)
    passed = await _see_that_they_may_serve(releases, task, admin, {body.version: body.share}, body.past_gate)
    expected, keeps_plan = body.expected_generation, "plan" not in body.model_fields_set
    canary_of = partial(releases.services.control.registry.canary, task, body.version, body.share, admin.public)
    change = partial(canary_of, plan, expected, keeps_plan=keeps_plan)
    return await _change_alias(releases, admin, task, "alias.canary", change, passed)


@router.post("/aliases/{task}/promote", responses=with_errors(*CHANGE_ERRORS, *RELEASE_ERRORS))
async def promote(request: Request, task: str, body: PromoteIn, admin: Admin) -> dict[str, Any]:
    """Send all of the task's requests to a version. The one that led becomes the previous version, and stays loaded."""
    releases = feature_of(request, Releases)
    require_task(releases.services, task, param=None)
    passed = await _see_that_they_may_serve(releases, task, admin, {body.version: 1.0}, body.past_gate)
    change = partial(releases.services.control.registry.promote, task, body.version, body.expected_generation)
    return await _change_alias(releases, admin, task, "alias.promote", change, passed)


@router.post("/aliases/{task}/rollback", responses=with_errors(*CHANGE_ERRORS, *RELEASE_ERRORS))
async def roll_back(request: Request, task: str, admin: Admin, body: RollbackIn | None = None) -> dict[str, Any]:
    """End a canary, or go back to the previous version."""
    releases = feature_of(request, Releases)
    require_task(releases.services, task, param=None)
    wanted = body or RollbackIn()
    alias, _ = await releases.services.control.registry.alias(task)
    passed = GatePass()
    if wanted.version is not None and wanted.version not in _leaders(alias):
        # it has never led, so this is a release and not a way back
        passed = await _see_that_they_may_serve(releases, task, admin, {wanted.version: 1.0})
    back = partial(releases.services.control.registry.roll_back, task, wanted.version, wanted.expected_generation)
    change = partial(back, canary_only=wanted.canary_only)
    return await _change_alias(releases, admin, task, "alias.rollback", change, passed, wanted.reason)


async def _known_alias(releases: Releases, task: str) -> str:
    """The task. One that the configuration lacks is accepted while it has an alias. Raises Problem (404)."""
    snapshot = await releases.services.snapshot.refresh()
    return task if task in snapshot.aliases else require_task(releases.services, task, param=None)


async def _change_alias(
    releases: Releases,
    admin: Caller,
    task: str,
    action: str,
    change: Callable[..., Awaitable[bool]],
    passed: GatePass | None = None,
    reason: str | None = None,
) -> dict[str, Any]:
    """Take one step of a release together with its audit entry. Return the new alias. `changed` is false if the step
    changed nothing. `warnings` hold the gate's warnings, checks without a model for the versions, and obstacles between
    requests and the versions."""
    passed = passed or GatePass()
    before, _ = await releases.services.control.registry.alias(task)
    evidence = {name: value for name, value in (("gate", passed.evidence), ("reason", reason)) if value}
    async with take_step(releases.services, admin) as step:
        noted = step.noted(action, task, evidence=evidence or None)

        def note(was: Any, now: Any, generation: int) -> list[Change | Unchanged]:
            if passed.judged_for not in (None, _leaders(was)):  # the gate judged beside other versions
                raise Stale(task, generation - 1)
            return [*noted(was, now, generation), *passed.changes]

        changed = await change(noted=note)
    after, _ = await releases.services.control.registry.alias(task)
    await releases.services.snapshot.refresh()
    warnings = [] if after is None else await _warnings(releases, task, before, after)
    return {
        **await _alias_shown(releases, task),
        "changed": changed,
        "warnings": [*passed.warnings, *warnings],
    }


async def _warnings(releases: Releases, task: str, before: AliasEntry | None, after: AliasEntry) -> list[str]:
    """Sentences on models that the task's checks, and `auto`, lack for the versions that answer now, and on obstacles
    that keep requests from these versions."""
    settings = releases.services.settings.tasks.get(task)
    if settings is None or not after.weights:
        return []
    checks, missing = settings.checks.used(), []
    for version in list_answering_versions(after):
        leads = version == after.leading
        entries = await releases.services.control.fitted.of(version)
        missing += [(lack.missing, lack.advice) for lack in lacks(version, entries, checks, settings.selector, leads)]
        compared = before.leading if before is not None and leads and "out_of_scope" not in checks else version
        fitted = releases.services.control.fitted
        if "scope" not in entries and compared != version and "scope" in await fitted.of(compared):
            lack = f"{version} has no scope model: auto does not find its task any more"
            missing.append((lack, f"Run {COMMAND_OF['scope'].format(version=version)}."))
    now = await read_redis_time(releases.services.redis)
    beside = find_obstacles(releases, releases.services.snapshot.current, task, now, after.weights)
    away = in_words.describe_obstacles(task, beside, [name for name, weight in after.weights.items() if weight])
    paused = describe_canary(releases.services, releases.services.snapshot.current, task, after)
    return [*paused, *(f"{lack.rstrip('.')}. {advice}" for lack, advice in missing), *away]


async def _see_that_they_may_serve(
    releases: Releases, task: str, admin: Caller | None, weights: dict[str, Any], reason: str | None = None
) -> GatePass:
    """Raises Problem for a version that is not ready on a quorum of its replicas, that this admin has pushed and may
    not release, or that needs a `reason` to pass the gate. Without an `admin` (a shadow) only readiness counts."""
    alias, _ = await releases.services.control.registry.alias(task)
    snapshot = await releases.services.snapshot.refresh()
    released = []
    for name in weights:
        version = await find_version(releases.services, name)
        if admin is not None:
            await see_that_another_pushed(releases.services, admin, version, "release it")
        if version.task != task or version.state not in PLACED:
            continue  # the registry has a better message
        released.append(version)
        if why := await explain_unready(releases.services, snapshot, version):
            raise Problem("state_conflict", f"{why}: wait, or see `why`.")
    passed = GatePass() if admin is None else await pass_gate(releases.services, admin, released, reason)
    return replace(passed, judged_for=_leaders(alias) if passed.evidence else None)


def _leaders(alias: AliasEntry | None) -> list[str]:
    return [] if alias is None else [alias.leading, *alias.previous]


def _plan(releases: Releases, task: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The plan with its defaults: labels of the task's metric can roll the canary back. Raises Problem if the plan
    can't be used."""
    if "feedback_metric" not in fields:
        metric = releases.services.settings.plan(task).feedback_metric
        fields = {"feedback_required": False, **fields, "feedback_metric": metric}
    try:
        plan = msgspec.convert(fields, CanaryPlan)
    except (msgspec.ValidationError, ValueError) as error:
        raise Problem("invalid_value", f"The plan can't be used: {str(error).rstrip('.')}.", "plan") from None
    if plan.feedback_metric is not None and plan.feedback_metric not in releases.services.settings.feedback_metrics:
        raise Problem("invalid_value", f"The metric {plan.feedback_metric!r} is not declared.", "plan")
    built: dict[str, Any] = msgspec.to_builtins(plan)
    return built


async def _alias_shown(releases: Releases, task: str) -> dict[str, Any]:
    alias, generation = await releases.services.control.registry.alias(task)
    return {
        "task": task,
        "weights": alias.weights if alias else {},
        "shadow": alias.shadow if alias else {},
        "previous": alias.previous if alias else [],
        "canary": await show_canary(releases, task, alias.canary) if alias and alias.canary else None,
        "generation": generation,
    }
