"""Admin endpoints for API keys. A secret is shown once, when it is made."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from msgspec.structs import replace
from pydantic import Field

from gateway.approvers import (
    find_approver_left_out,
    remember_owner,
    see_that_it_may_be_approved,
    see_that_it_may_change,
)
from gateway.audit import change_objects
from gateway.callers import PUBLIC_LENGTH, Caller, CallerLimits, Former, join_key, limits_of, new_key, new_secret
from gateway.console.sessions import ENDS
from gateway.endpoint_parts import (
    OBJECTS_MAX,
    Admin,
    Body,
    ExpectedGeneration,
    Moment,
    Operator,
    Short,
    see_that_it_is_to_come,
    services_of,
)
from gateway.errors import Problem
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from gateway.roles import Role
from gateway.services import Services
from monitoring.redis_time import read_redis_time
from router.policy import AUTO, UnknownFields
from serving.object_store import Change, LenientReader, ObjectStore

router = APIRouter(prefix="/admin/v1", tags=["admins"])
OVERLAP_SECONDS_MAX = 30 * 86_400
Public = Annotated[str, Path(pattern=f"^[a-z0-9]{{{PUBLIC_LENGTH}}}$")]


class LimitsIn(Body):
    """Limits of a key at all gateways together; what is left out is not bounded."""

    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000_000)
    tokens_per_minute: int | None = Field(None, ge=1, le=1_000_000_000_000)
    usd_per_day: float | None = Field(None, gt=0, le=1_000_000, allow_inf_nan=False)
    usd_per_month: float | None = Field(None, gt=0, le=1_000_000, allow_inf_nan=False)

    def limits(self) -> CallerLimits | None:
        """The same, as a caller has them."""
        return limits_of(self.model_dump())


Owner = Annotated[
    str | None, Field(min_length=1, max_length=100, pattern=r"\S", description="The person who answers for it.")
]


class CallerIn(Body):
    """A new key."""

    name: str = Field(min_length=1, max_length=100)
    owner: Owner = Field(None, description="The person who answers for it; unset: the owner of the key that makes it.")
    role: Role = "caller"
    models: list[Short] = Field(default_factory=lambda: ["*"], min_length=1, max_length=1000)
    expires_at: Moment | None = Field(None, description="Unix seconds.")
    limits: LimitsIn = LimitsIn()
    unknown_fields: UnknownFields | None = Field(None, description="As a task's; null: as the task has it.")


class CallerChange(Body):
    """Changes of a key. Of `limits`, too, only what is named is changed; null takes a limit away."""

    name: str | None = Field(None, min_length=1, max_length=100)
    owner: Owner = None
    models: list[Short] | None = Field(None, min_length=1, max_length=1000)
    expires_at: Moment | None = Field(None, description="Unix seconds; null: never.")
    limits: LimitsIn | None = Field(None, description="null: none.")
    unknown_fields: UnknownFields | None = Field(None, description="null: as the task has it.")
    expected_generation: int | None = Field(None, ge=0, le=2**53, description="409 if the key has changed since.")


class RotateIn(Body):
    """The terms on which a key gets a new secret."""

    overlap_seconds: float = Field(
        3600, ge=0, le=OVERLAP_SECONDS_MAX, description="How long the old secret works beside the new one."
    )
    expected_generation: int | None = Field(None, ge=0, le=2**53, description="409 if the key has changed since.")


@router.get("/callers")
async def list_callers(request: Request, _: Operator) -> dict[str, Any]:
    """All keys by their public part."""
    snapshot = await services_of(request).snapshot.refresh()
    return {"callers": [_caller_shown(caller) for caller in snapshot.callers.values()]}


@router.post("/callers", status_code=201, responses=with_errors("state_conflict"))
async def make_caller(request: Request, body: CallerIn, admin: Admin) -> dict[str, Any]:
    """Make a key. Only this answer ever shows the whole key. If `release.approver_must_differ`
    is set, an admin key works only after an admin of another owner has approved it."""
    services = services_of(request)
    if len(services.snapshot.current.callers) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} keys already: delete some.")
    see_that_it_is_to_come("expires_at", body.expires_at, time.time())
    key, public, digest = new_key()
    models, limits = frozenset(body.models), body.limits.limits()
    caller = Caller(public, body.name, body.role, digest, models, body.expires_at, limits)
    pending = find_approver_left_out(services, admin, body.role)
    caller = replace(caller, unknown_fields=body.unknown_fields, owner=body.owner or admin.person, pending=pending)
    step = services.begin_step(admin.public)
    step.note("caller.make", public, None, _caller_shown(caller))
    await step.take([Change(services.objects.callers, public, caller.to_json(), 0)])
    await services.snapshot.refresh()
    return {**_caller_shown(caller), "key": key, "warnings": _unknown_models(services, body.models)}


@router.get("/callers/{public}", responses=with_errors("not_found"))
async def read_caller(request: Request, public: str, _: Operator) -> dict[str, Any]:
    """One key, with what is spent of its limits."""
    services = services_of(request)
    caller = (await services.snapshot.refresh()).callers.get(public)
    if caller is None:
        raise _no_key(public)
    generation = await services.objects.callers.generation(public)
    return {**_caller_shown(caller), "generation": generation, "usage": await services.limits.usage(caller)}


@router.patch("/callers/{public}", responses=with_errors(*CHANGE_ERRORS, "approver_must_differ"))
async def change_caller(request: Request, public: str, body: CallerChange, admin: Admin) -> dict[str, Any]:
    """Change a key's limits, models, name, owner or expiry."""
    services = services_of(request)
    before, generation = await _fetch_key(services, public)
    set_fields = body.model_fields_set
    changed = replace(
        before,
        name=body.name if body.name is not None else before.name,
        owner=body.owner or before.person,
        models=frozenset(body.models) if body.models is not None else before.models,
        expires_at=body.expires_at if "expires_at" in set_fields else before.expires_at,
        limits=_limits_changed(before, body) if "limits" in set_fields else before.limits,
        unknown_fields=body.unknown_fields if "unknown_fields" in set_fields else before.unknown_fields,
    )
    if changed.expires_at != before.expires_at:
        see_that_it_is_to_come("expires_at", changed.expires_at, time.time())
    see_that_it_may_change(services, admin, before, changed)
    expected = generation if body.expected_generation is None else body.expected_generation
    shown = await _put(services, admin, "caller.change", before, changed, expected)
    return {**shown, "warnings": _unknown_models(services, body.models or [])}


@router.post("/callers/{public}/rotate", responses=with_errors(*CHANGE_ERRORS, "approver_must_differ"))
async def rotate_caller(request: Request, public: str, admin: Admin, body: RotateIn | None = None) -> dict[str, Any]:
    """Give a key a new secret, shown once. The old one also works until the overlap is over."""
    services = services_of(request)
    before, generation = await _fetch_key(services, public)
    secret, digest = new_secret()
    wanted = body or RotateIn()
    until = time.time() + wanted.overlap_seconds
    former = Former(before.secret_digest, until) if wanted.overlap_seconds else None
    changed = replace(before, secret_digest=digest, former=former)
    see_that_it_may_change(services, admin, before, changed)
    expected = generation if wanted.expected_generation is None else wanted.expected_generation
    shown = await _put(services, admin, "caller.rotate", before, changed, expected)
    return {**shown, "key": join_key(public, secret), "warnings": _ended_secrets(before.former)}


@router.post("/callers/{public}/approve", responses=with_errors(*CHANGE_ERRORS, "approver_must_differ"))
async def approve_caller(
    request: Request, public: str, admin: Admin, expected_generation: ExpectedGeneration = None
) -> dict[str, Any]:
    """Approve an admin key that another owner's key has made."""
    services = services_of(request)
    before, generation = await _fetch_key(services, public)
    if before.pending is None:
        raise Problem("state_conflict", f"{public} does not wait for approval.")
    see_that_it_may_be_approved(services, admin, before)
    expected = generation if expected_generation is None else expected_generation
    return await _put(services, admin, "caller.approve", before, replace(before, pending=None), expected)


@router.delete("/callers/{public}", responses=with_errors("not_found", "stale_generation"))
async def delete_caller(
    request: Request, public: str, admin: Admin, expected_generation: ExpectedGeneration = None
) -> dict[str, Any]:
    """Revoke a key on every gateway."""
    services = services_of(request)
    written = (await services.objects.callers.written([public])).get(public)
    if written is None:
        raise _no_key(public)
    # one that can't be read goes, too
    before = LenientReader().read(f"the key {public}", written, dict) or {}
    shown = {name: before.get(name) for name in ("name", "role", "owner")}
    removal = Change(ObjectStore(services.redis, "callers"), public, None, expected_generation)
    changes = [removal, *remember_owner(services, public, before)]
    await change_objects(services, admin, "caller.delete", public, changes, before=shown)
    return {"public": public}


@router.delete("/sessions/{public}", responses=with_errors("invalid_value"))
async def end_sessions(request: Request, public: Public, admin: Admin) -> dict[str, Any]:
    """End all console sessions of a key or a person, as the audit names them. They may sign in again."""
    services = services_of(request)
    now = await read_redis_time(services.redis)
    step = services.begin_step(admin.public)
    step.note("console.end", public, None, {"ended_at": now})
    await step.take([Change(ObjectStore(services.redis, ENDS), public, {"at": now})])
    return {"public": public, "ended_at": now}


def _ended_secrets(former: Former | None) -> list[str]:
    """A warning if the overlap of an earlier rotation was not over. A key has only one former secret."""
    if former is None or former.until <= time.time():
        return []
    until = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(former.until))
    return [f"An earlier secret of this key, which was to work until {until}, no longer works."]


def _unknown_models(services: Services, models: list[str]) -> list[str]:
    """Warnings of names that no task, pool or version has now. Such a version may still be added."""
    snapshot, settings = services.snapshot.current, services.settings
    models_here = {"*", AUTO, *settings.tasks, *settings.pools, *snapshot.versions}
    return [
        f"Nothing is named {name!r}: the key can ask for it once there is."
        for name in models
        if name not in models_here
    ]


async def _fetch_key(services: Services, public: str) -> tuple[Caller, int]:
    """A key from Redis, and its generation. Raises Problem (404), and Unreadable."""
    caller, generation = await services.objects.callers.fetch(public, partial(Caller.from_json, public))
    if caller is None:
        raise _no_key(public)
    return caller, generation


async def _put(
    services: Services, admin: Caller, action: str, before: Caller, after: Caller, generation: int
) -> dict[str, Any]:
    """Change a key. Return the changed key as admins see it. Raises Problem (409)."""
    change = Change(services.objects.callers, after.public, after.to_json(), generation)
    former, shown = _caller_shown(before), _caller_shown(after)
    await change_objects(services, admin, action, after.public, [change], before=former, after=shown)
    return shown


def _limits_changed(before: Caller, body: CallerChange) -> CallerLimits | None:
    if body.limits is None:
        return None
    had: Mapping[str, float | None] = dict(before.limits.items()) if before.limits else {}
    return limits_of({**had, **body.limits.model_dump(exclude_unset=True)})


def _no_key(public: str) -> Problem:
    return Problem("not_found", f"There is no key {public[:20]!r} among those that were made here.")


def _caller_shown(caller: Caller) -> dict[str, Any]:
    shown = {"public": caller.public, "limits": {}, "pending": None, **caller.to_json(), "owner": caller.person}
    del shown["secret_digest"]
    former = shown.pop("former", None)
    shown["former_until"] = former["until"] if former else None
    return shown
