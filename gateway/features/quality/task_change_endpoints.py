"""Admin endpoints to announce a change of a task's rules, which the organisation knows before any label shows it.

One atomic step marks the task's present versions as stale, sets a rule, and opens a request to train. The rule begins
with the change, and expires by itself. To take the announcement back is one atomic step, too.
"""

from __future__ import annotations

import hashlib
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field

from gateway.endpoint_parts import OBJECTS_MAX, Admin, Body, When, require_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.quality.endpoints import Expected, Generation, change_quality
from gateway.features.quality.state import Quality
from gateway.features.retraining.requests_to_train import draft_retraining
from gateway.features.rules.endpoints import find_fallback_fault, list_cap_warnings
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from monitoring.quality.phrases import format_day
from monitoring.quality.verdicts import task_changes as changing
from monitoring.quality.verdicts.quality import Action, Changed, TaskQuality
from monitoring.quality.verdicts.retraining import Retraining, close_request
from monitoring.redis_time import read_redis_time
from serving.adapters.versions_and_aliases import PLACED
from serving.object_store import Change

HOLDS_SECONDS = 14 * 86_400.0
"""Life of the rule of a change, if nobody says otherwise."""
RULE_NAME_MAX = 63
YEAR_SECONDS = 365.25 * 86_400
PAST_YEARS_MAX, AHEAD_YEARS_MAX = 1, 5
"""Greatest distance of a change from now: a date that is further away was mistyped."""
router = APIRouter(prefix="/admin/v1", tags=["admins"])


class ChangedIn(Body):
    """A change of the task's rules from some time on, and where its requests go until a version knows the new ones."""

    effective_at: When = Field(
        description="From when on: Unix seconds, or a date or a time in ISO 8601 (UTC without a zone). At most 1 year "
        "past and 5 years to come."
    )
    note: str = Field("", max_length=1000, description="What changes.")
    override: Literal["general", "refuse"] | None = Field(
        None,
        description="Where its requests go meanwhile; null: to its versions. Unset: general, if it has a fallback.",
    )
    message: str | None = Field(None, max_length=1000, description="With refuse: the message that callers get.")
    expires_at: When | None = Field(
        None, description="When the rule ends; unset: 14 days after the change, or after now if the change is past."
    )
    expected_generation: Generation = None


@router.post("/tasks/{task}/changed", responses=with_errors(*CHANGE_ERRORS))
async def announce_change(request: Request, task: str, body: ChangedIn, admin: Admin) -> dict[str, Any]:
    """Announce a change of a task's rules. Its versions become stale at that time, a rule sends its requests
    elsewhere, and a request to train is opened. A second announcement replaces the first.
    """
    quality = feature_of(request, Quality)
    now = await read_redis_time(quality.services.redis)
    require_task(quality.services, task)
    _see_that_it_can_be(body.effective_at, now)
    snapshot = await quality.services.snapshot.refresh()
    versions = [version.name for version in snapshot.versions_by_task.get(task, ())]
    live = [name for name in versions if snapshot.versions[name].state in PLACED]
    before, _ = await quality.store.of(task)
    rule = await _rule(quality, task, body, before.changed, now)
    retraining, opening = await _retraining(quality, task, live, body, before.changed, admin.public)
    announced = Changed(
        effective_at=body.effective_at,
        by=admin.public,
        note=body.note,
        at=now,
        override=None if rule is None else rule.name,
        retraining=None if retraining is None else retraining.id,
    )
    parts = (rule, opening, *_left_behind(quality, before.changed, announced))
    changes = [change for change in parts if change is not None]

    def step(current: TaskQuality) -> tuple[TaskQuality, Action]:
        if current.changed != before.changed:
            raise Problem("state_conflict", f"Somebody else has said at this moment that {task} changes: look again.")
        return changing.announce(current, live, announced)

    try:
        answer = await change_quality(quality, task, step, body.expected_generation, changes)
    except Problem:
        if opening is not None and opening.expected_generation == 0:
            await quality.retraining.store.forget_examples(opening.name)  # no other object refers to them
        raise
    await quality.retraining.store.tidy()
    value = None if rule is None else rule.value
    warnings = [] if value is None else list_cap_warnings(quality.services, value["action"], task)
    fields = {"changed": msgspec.to_builtins(announced), "stale": live, "rule": value, "warnings": warnings}
    return answer | fields


@router.delete("/tasks/{task}/changed", responses=with_errors(*CHANGE_ERRORS))
async def take_change_back(
    request: Request, task: str, admin: Admin, expected_generation: Expected = None
) -> dict[str, Any]:
    """Withdraw the announcement. Its rule is removed, its versions are not stale, its request to train is closed."""
    quality = feature_of(request, Quality)
    now = await read_redis_time(quality.services.redis)
    task_quality, _ = await quality.store.of(require_task(quality.services, task))
    announced = task_quality.changed
    changes: list[Change] = []
    if announced is not None:
        changes += _left_behind(quality, announced, None)
        retraining, generation = await quality.retraining.store.get(announced.retraining or "")
        if retraining is not None and retraining.state == "open":
            changes.append(quality.retraining.store.change(close_request(retraining, admin.public, now), generation))

    def step(current: TaskQuality) -> tuple[TaskQuality, Action]:
        if announced is not None and current.changed != announced:
            raise Problem("state_conflict", f"Somebody else has moved this at this moment: look at {task} again.")
        after, _, action = changing.take_back(current, admin.public, now)
        return after, action

    return await change_quality(quality, task, step, expected_generation, changes)


def _see_that_it_can_be(effective_at: float, now: float) -> None:
    """Raises Problem (400) for a time that is so far from now that it must be a mistake."""
    first, last = now - PAST_YEARS_MAX * YEAR_SECONDS, now + AHEAD_YEARS_MAX * YEAR_SECONDS
    if not first <= effective_at <= last:
        text = (
            f"effective_at is {format_day(effective_at)}: a change is at most {PAST_YEARS_MAX} year past and "
            f"{AHEAD_YEARS_MAX} years to come, so from {format_day(first)} to {format_day(last)}."
        )
        raise Problem("invalid_value", text, "effective_at")


async def _rule(quality: Quality, task: str, body: ChangedIn, before: Changed | None, now: float) -> Change | None:
    """The rule for requests during the change; None if they still go to the versions. Raises Problem (400, 409)."""
    starts_at = body.effective_at
    action = body.override
    if "override" not in body.model_fields_set:
        action = "general" if find_fallback_fault(quality.services, "general", task) is None else None
    if action is None:
        if body.message is not None or body.expires_at is not None:
            raise Problem("invalid_value", "Without a rule there is nothing to end, or to say.", "override")
        return None
    if (fault := find_fallback_fault(quality.services, action, task)) is not None:
        raise Problem("invalid_value", fault, "override")
    if body.message is not None and action != "refuse":
        raise Problem("invalid_value", "message goes with the override refuse, and only with it.", "message")
    ends_at = max(starts_at, now) + HOLDS_SECONDS if body.expires_at is None else body.expires_at
    if ends_at <= max(starts_at, now):
        raise Problem("invalid_value", "expires_at has to be after effective_at, and to come.", "expires_at")
    name = name_rule(task)
    generation = await quality.services.objects.overrides.generation(name)
    rule = await quality.services.objects.overrides.get(name)
    if rule is not None and (before is None or before.override != name):
        raise Problem("state_conflict", f"There is a rule {name} already: delete it, or name it otherwise.")
    if rule is None and len(await quality.services.objects.overrides.all()) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} rules already.")
    value: dict[str, Any] = {"action": action, "task": task, "metadata": {}, "mode": "enforce"}
    value |= {"starts_at": starts_at, "expires_at": ends_at}
    value |= {} if body.message is None else {"message": body.message}
    return Change(quality.services.objects.overrides, name, value, generation)


def _left_behind(quality: Quality, before: Changed | None, announced: Changed | None) -> list[Change]:
    """The removal of an earlier announcement's rule, unless the new announcement has the same rule."""
    if before is None or before.override is None or (announced is not None and before.override == announced.override):
        return []
    return [Change(quality.services.objects.overrides, before.override, None)]


async def _retraining(
    quality: Quality, task: str, live: list[str], body: ChangedIn, before: Changed | None, by: str
) -> tuple[Retraining, Change] | tuple[None, None]:
    """The request to train, and its change for the step. While the earlier announcement's request is open, it is used.
    Else there is a new one, whose examples are stored first. None without a version."""
    opened, generation = (
        await quality.retraining.store.get(before.retraining or "") if before is not None else (None, 0)
    )
    if opened is not None and opened.state == "open":
        return opened, quality.retraining.store.change(opened, generation)
    alias = (await quality.services.snapshot.refresh()).aliases.get(task)
    version = alias.leading if alias is not None else next(iter(live), None)
    if version is None:
        return None, None
    because = f"The task's rules change: {body.note}" if body.note else "The task's rules change."
    evidence = {"effective_at": body.effective_at}
    retraining, examples = await draft_retraining(quality.retraining, task, version, because, evidence, by)
    await quality.retraining.store.keep(retraining.id, examples)
    return retraining, quality.retraining.store.change(retraining, 0)


def name_rule(task: str) -> str:
    """The name of the rule for a change. A long name is cut, and gets a digest of the whole name."""
    name = f"changed-{task}"
    if len(name) <= RULE_NAME_MAX:
        return name
    return f"{name[: RULE_NAME_MAX - 9]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
