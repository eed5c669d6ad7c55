"""Admin endpoints for the monitor: its findings on each task, in plain words, and ways to overrule it.

Every change of a task's quality is one atomic step that checks its generation, with an audit entry that holds the value
before. Its time comes from Redis's clock, which the monitor uses, too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from msgspec.structs import replace
from pydantic import Field

from gateway.endpoint_parts import (
    Admin,
    Body,
    Operator,
    Reason,
    When,
    conflicts,
    require_task,
    require_version,
    see_that_it_is_to_come,
)
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.quality.job import roles_of
from gateway.features.quality.responding import Responding
from gateway.features.quality.state import Quality
from gateway.features.releases.availability import find_obstacles
from gateway.features.reviews.agreement_job import describe_reviewers, read_agreement
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from gateway.release_gate import describe_forced, judge_evidence
from gateway.state.gate_store import GateStore
from gateway.state.snapshot import Snapshot
from monitoring.quality.explanations.report import Situation, TaskReport, make_report
from monitoring.quality.phases import Verdict
from monitoring.quality.phrases import NOBODY_WOKEN
from monitoring.quality.verdicts import monitor_responses
from monitoring.quality.verdicts.monitor_responses import ResponseError
from monitoring.quality.verdicts.quality import Action, Judgement, Pin, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles
from monitoring.redis_time import read_redis_time
from serving.adapters.manifest import read_review_due
from serving.adapters.versions_and_aliases import PLACED
from serving.object_store import Change, Stale

TRIES_MAX = 5
"""Tries of a change where the monitor moved the quality at the same moment."""
router = APIRouter(prefix="/admin/v1", tags=["admins"])
Generation = Annotated[int | None, Field(ge=0, le=2**53, description="409 if the task's quality has moved on since.")]
Expected = Annotated[int | None, Query(ge=0, le=2**53, description="409 if the task's quality has moved on since.")]
Because = Annotated[Reason | None, Query(description="Why, for the audit and for who looks.")]
Step = Callable[[TaskQuality], tuple[TaskQuality, Action]]


class PinIn(Body):
    """A verdict that holds instead of the monitor's; without one nothing is done about the monitor's."""

    verdict: Verdict | None = None
    reason: Reason
    until: When | None = Field(
        None, description="Unix seconds, or a date or time in ISO 8601; unset: until it is released."
    )
    expected_generation: Generation = None


@router.get("/quality")
async def list_quality(request: Request, _: Operator) -> dict[str, Any]:
    """All tasks with the verdict on the version that leads."""
    quality = feature_of(request, Quality)
    services = quality.services
    snapshot = await services.snapshot.refresh()
    generations = await quality.store.object_store.generations()
    summary = quality.monitored.summary
    now = await read_redis_time(services.redis)
    rows = [_row(quality, snapshot, task, generations.get(task, 0), now) for task in sorted(services.settings.tasks)]
    caveats = [NOBODY_WOKEN] if services.settings.monitor.webhook_url is None else []
    return {
        "tasks": rows,
        "caveats": caveats,
        "judged_at": summary.at or None,
        "behind_seconds": summary.behind_seconds,
    }


@router.get("/tasks/{task}/quality", responses=with_errors("not_found"))
async def read_quality(request: Request, task: str, _: Operator) -> dict[str, Any]:
    """All that the monitor knows of a task."""
    quality = feature_of(request, Quality)
    snapshot = await quality.services.snapshot.refresh()
    return await show_quality(quality, snapshot, require_task(quality.services, task))


@router.post("/tasks/{task}/quality/{version}/pin", responses=with_errors(*CHANGE_ERRORS))
async def pin_version(request: Request, task: str, version: str, body: PinIn, admin: Admin) -> dict[str, Any]:
    """Overrule the verdict on a version, or hold it. Without a verdict the monitor judges, and does not act."""
    quality = feature_of(request, Quality)
    now = await read_redis_time(quality.services.redis)
    await require_version(quality.services, task, version)
    see_that_it_is_to_come("until", body.until, now)
    pin = Pin(verdict=body.verdict, by=admin.public, reason=body.reason, at=now, until=body.until)
    return await change_quality(
        quality, task, lambda current: monitor_responses.pin(current, version, pin, now), body.expected_generation
    )


@router.delete("/tasks/{task}/quality/{version}/pin", responses=with_errors(*CHANGE_ERRORS))
async def release_version(
    request: Request,
    task: str,
    version: str,
    admin: Admin,
    expected_generation: Expected = None,
    reason: Because = None,
) -> dict[str, Any]:
    """Let the monitor judge a version again. If a pin as degraded opened a request to train, that is closed."""
    quality = feature_of(request, Quality)
    now = await read_redis_time(quality.services.redis)
    by = admin.public
    return await change_quality(
        quality,
        require_task(quality.services, task),
        lambda current: monitor_responses.release(current, version, by, now, reason or ""),
        expected_generation,
    )


@router.post("/tasks/{task}/quality/actions/{action}/undo", responses=with_errors(*CHANGE_ERRORS))
async def undo_action(
    request: Request, task: str, action: str, admin: Admin, expected_generation: Expected = None, reason: Because = None
) -> dict[str, Any]:
    """Undo an action of the monitor. The monitor does not repeat it before the version is healthy."""
    quality = feature_of(request, Quality)
    now = await read_redis_time(quality.services.redis)
    task_quality, _ = await quality.store.of(require_task(quality.services, task))
    done = next((candidate for candidate in task_quality.actions if candidate.id == action), None)
    if done is None:
        raise Problem("not_found", f"Among the newest actions of {task} there is no {action[:80]!r}.")
    if done.kind == "changed":
        raise Problem("state_conflict", f"Take it back: `apprentice tasks changed {task} --undo`.")
    by = admin.public
    return await change_quality(
        quality,
        task,
        lambda current: monitor_responses.undo(current, action, by, now, reason or ""),
        expected_generation,
    )


async def change_quality(
    quality: Quality, task: str, step: Step, expected_generation: int | None, beside: Sequence[Change] = ()
) -> dict[str, Any]:
    """Change a task's quality and, in the same atomic step, `beside`. Return the new quality.

    If something has changed meanwhile, it tries again, unless the quality has left the expected generation.
    Raises Problem (409), also if the action is noted and could not be carried out, and RedisError.
    """
    with conflicts():
        for left in reversed(range(TRIES_MAX)):
            task_quality, generation = await quality.store.of(task)
            if expected_generation is not None and generation != expected_generation:
                raise Stale(task, generation)
            try:
                after, action = step(task_quality)
                await Responding(quality).move(task, after, generation, [action], beside)
                break
            except ResponseError as error:
                raise Problem("state_conflict", str(error)) from error
            except Stale:
                if not left:
                    raise
    shown = await show_quality(quality, await quality.services.snapshot.refresh(), task)
    failed = next((noted["failed"] for noted in shown["quality"]["actions"] if noted["id"] == action.id), None)
    if failed is not None:
        raise Problem("state_conflict", f"It is noted, but it was not carried out: {failed}")
    return {"action": msgspec.to_builtins(action), **shown}


# ---- answers -----------------------------------------------------------------------------------------


async def show_quality(quality: Quality, snapshot: Snapshot, task: str) -> dict[str, Any]:
    """A task's quality for the API. Raises RedisError."""
    task_quality, generation = await quality.store.of(task)
    state = read_situation(quality, snapshot, task, await read_redis_time(quality.services.redis), task_quality)
    agreement = await read_agreement(quality.reviews, task)
    notes = [] if agreement is None else list(describe_reviewers(task, agreement))
    forced = await _list_forced(quality, snapshot, state.roles, notes)
    state = replace(state, notes=notes, forced=forced)
    return {
        "task": task,
        "generation": generation,
        "report": msgspec.to_builtins(make_report(state)),
        "quality": msgspec.to_builtins(task_quality),
        "judgements": {name: msgspec.to_builtins(judgement) for name, judgement in state.judgements.items()},
        "roles": msgspec.to_builtins(state.roles),
        "plan": msgspec.to_builtins(state.plan),
        "review_by": state.review_by,
        "retraining": state.retraining,
        "obstacles": msgspec.to_builtins(state.obstacles),
        "judged_at": state.judged_at,
        "behind_seconds": state.behind_seconds,
    }


async def _list_forced(quality: Quality, snapshot: Snapshot, roles: Roles, notes: list[str]) -> list[str]:
    """The versions that passed the gate by force and would not pass now. Adds `notes` on all. Raises RedisError."""
    gates, forced = GateStore(quality.services.redis), []
    for name in filter(None, (roles.active, roles.canary, roles.previous_version)):
        version = snapshot.versions.get(name)
        if version is None or not (steps := describe_forced(name, await gates.forced(name))):
            continue
        notes += steps
        if (await judge_evidence(quality.services, version)).verdict == "passed":
            notes.append(f"{name} passes the gate now.")
        else:
            forced.append(name)
    return forced


def read_situation(
    quality: Quality, snapshot: Snapshot, task: str, now: float, task_quality: TaskQuality | None = None
) -> Situation:
    """All facts on a task at a time, by Redis's clock, for its report."""
    summary, roles = quality.monitored.summary, roles_of(quality, task, snapshot)
    placed = {version.name: version for version in snapshot.versions_by_task.get(task, ()) if version.state in PLACED}
    opened = [entry for entry in snapshot.retraining.values() if entry.task == task and entry.state == "open"]
    judgements: Mapping[str, Judgement] = summary.judgements
    return Situation(
        task=task,
        now=now,
        quality=task_quality if task_quality is not None else snapshot.quality.get(task, TaskQuality()),
        plan=quality.services.settings.plan(task),
        roles=roles,
        obstacles=find_obstacles(
            quality.releases,
            snapshot,
            task,
            now,
            (roles.active, roles.canary, roles.previous_version),
            quality.reviews.queue.waiting.get(task),
        ),
        judgements={name: judged for name, judged in judgements.items() if judged.task == task and name in placed},
        judged_at=summary.at or None,
        behind_seconds=summary.behind_seconds,
        unjudged=[name for name in summary.unjudged if name in placed],
        review_by={
            name: due for name, version in placed.items() if (due := read_review_due(version.manifest)) is not None
        },
        retraining=[entry.id for entry in sorted(opened, key=lambda entry: -entry.opened_at)],
    )


def _row(quality: Quality, snapshot: Snapshot, task: str, generation: int, now: float) -> dict[str, Any]:
    state = read_situation(quality, snapshot, task, now)
    report: TaskReport = make_report(state)
    verdict = state.quality.versions.get(report.version or "", VersionQuality())
    return {
        "task": task,
        "version": report.version,
        "verdict": report.verdict,
        "since": report.since,
        "line": report.line,
        "kept": verdict.kept,
        "to": verdict.to,
        "pinned": verdict.pin is not None,
        "stale_from": verdict.stale_from,
        "review_due": state.review_by.get(report.version or ""),
        "retraining_open": len(state.retraining),
        "caveats": len(report.caveats),
        "generation": generation,
    }
