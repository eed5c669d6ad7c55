"""The queue of reviews: requests that were drawn for people to judge, one at a time, by operators and admins."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from gateway.admin.access import Body, Operator
from gateway.duties.reviewing import budget_of, counted, is_raised, retention_seconds, settings_of
from gateway.endpoints import house_of
from gateway.errors import Problem
from gateway.house import House
from gateway.settings import FeedbackMetricSettings
from gateway.state.reviews import Counts, Leased, NoneLeft, Skip

router = APIRouter(tags=["reviewers"])
TOLD_TASKS_MAX = 5
"""Tasks of which it is told why no review waits."""
OfTask = Annotated[str | None, Query(max_length=63, description="Only of this task.")]


class SkipIn(Body):
    """Why a reviewer gives a review back."""

    reason: str = Field(min_length=1, max_length=256)


@router.get("/v1/reviews/next")
async def next_review(request: Request, reviewer: Operator, task: OfTask = None) -> Response:
    """The review that has waited longest, leased to this key until `leased_until`: what was asked, what was answered,
    and what to say of it. Who has one already gets that one again. Answered by `POST /v1/feedback`."""
    house = house_of(request)
    counts = {name: await counted(house, name) for name in _tasks(house, task)}
    none: dict[str, NoneLeft] = {}
    for name in sorted(counts, key=lambda name: counts[name].oldest_at or float("inf")):
        lease_seconds = settings_of(house, name).lease_seconds
        found = await house.reviews.next(name, reviewer.public, lease_seconds, retention_seconds(house, name))
        if isinstance(found, Leased):
            told = _told(house, name, found, counts[name])
            return Response(msgspec.json.encode(told), media_type="application/json")
        none[name] = found
    raise Problem("no_review", _why_none(house, counts, none), None if task is None else "task")


@router.post("/v1/reviews/{request_id}/skip")
async def skip_review(request: Request, request_id: str, reviewer: Operator, body: SkipIn) -> dict[str, Any]:
    """Give a leased review back, unjudged: others get it, this key does not. It is counted, with its reason."""
    house = house_of(request)
    task = await house.reviews.task_of(request_id)
    skip = Skip(request_id=request_id, by=reviewer.public, reason=body.reason)
    told = "gone" if task is None else await house.reviews.skip(task, skip, retention_seconds(house, task))
    if task is None or told == "gone":
        raise Problem("no_review", f"No request with the id {request_id[:80]!r} waits for review.", "request_id")
    if told == "other":
        raise Problem("state_conflict", "This review is not leased to you: ask /v1/reviews/next for one.", "request_id")
    house.meters.reviews.add(1, task, "skipped")
    return {"request_id": request_id, "task": task, "skipped": True}


@router.get("/admin/v1/reviews")
async def list_reviews(request: Request, _: Operator, task: OfTask = None) -> dict[str, Any]:
    """Each task's reviews: how many wait and are leased, what was done in the last seven days, the budget and what is
    left of it, and the newest that were skipped, with their reasons."""
    house = house_of(request)
    return {"reviews": [_listed(house, name, await counted(house, name)) for name in _tasks(house, task)]}


def _tasks(house: House, task: str | None) -> list[str]:
    """The one that is named, or all. Raises Problem (404)."""
    if task is not None and task not in house.settings.tasks:
        raise Problem("not_found", f"The configuration has no task {task[:80]!r}.", "task")
    return sorted(house.settings.tasks) if task is None else [task]


def _told(house: House, task: str, found: Leased, counts: Counts) -> dict[str, Any]:
    if found.new:
        house.meters.reviews.add(1, task, "given")
    name, metric = _metric(house, task)
    return {
        "review": msgspec.to_builtins(found.review),
        "leased_until": found.until,
        "waiting": counts.waiting,
        "say": _say(name, metric),
        "examples": _examples(found.review.request_id, name, metric),
    }


def _metric(house: House, task: str) -> tuple[str, FeedbackMetricSettings | None]:
    """What reviewers are asked to say: the task's labels; where it names none, the first metric that is declared."""
    declared = house.settings.feedback_metrics
    name = house.settings.plan(task).feedback_metric or next(iter(declared), "")
    return name, declared.get(name)


def _say(name: str, metric: FeedbackMetricSettings | None) -> dict[str, Any] | None:
    return None if metric is None else {"metric": name, **metric.model_dump(mode="json")}


def _examples(request_id: str, name: str, metric: FeedbackMetricSettings | None) -> list[dict[str, Any]]:
    """Bodies of `POST /v1/feedback`, to be filled in: of a right answer, then of a wrong one."""
    if metric is None:
        return []
    values: list[Any] = [True, False]
    if metric.kind == "float":
        values = [1.0 if metric.maximum is None else metric.maximum, metric.minimum or 0.0]
    if metric.kind == "category":
        return [{"request_id": request_id, "metric": name, "value": metric.categories[0]}] if metric.categories else []
    right, wrong = values if metric.better == "higher" else values[::-1]
    said = {"comment": "why it is wrong", "demonstration": "what it should have been"}
    body = {"request_id": request_id, "metric": name}
    return [{**body, "value": right}, {**body, "value": wrong, **said}]


def _listed(house: House, task: str, counts: Counts) -> dict[str, Any]:
    budget = budget_of(house, task)
    watched = house.snapshot.current.policy.watched.get(task)
    name, metric = _metric(house, task)
    return {
        "task": task,
        **{key: value for key, value in msgspec.to_builtins(counts).items() if key != "expired_now"},
        "per_week": budget,
        "raised": is_raised(house, task),
        "left": max(0, budget - counts.drawn),
        "share": watched.review_share if watched is not None else 0.0,
        "say": _say(name, metric),
    }


def _why_none(house: House, counts: dict[str, Counts], none: dict[str, NoneLeft]) -> str:
    """Why no review waits, in sentences."""
    budgets = {task: budget_of(house, task) for task in none}
    told = [task for task in none if budgets[task] or counts[task].waiting] or list(none)[:1]
    if len(told) > TOLD_TASKS_MAX:
        return f"None of {len(told)} tasks has a review that waits for you. Name one to be told why."
    return " ".join(_why(house, task, budgets[task], counts[task], none[task]) for task in told) or "There is no task."


def _why(house: House, task: str, budget: int, counts: Counts, none: NoneLeft) -> str:
    if none.leased or none.skipped:
        return f"Of {task} {none.leased} reviews are leased to others, and {none.skipped} you have skipped."
    if not budget:
        return f"No request of {task} is drawn: tasks.{task}.monitor.reviews.per_week is 0."
    if counts.drawn >= budget:
        return f"No review of {task} waits, and the {budget} of seven days are drawn."
    watched = house.snapshot.current.policy.watched.get(task)
    if watched is None or not watched.review_share:
        return f"No request of {task} is drawn yet: the monitor has first to see how many come in a week."
    return f"No review of {task} waits: {100 * watched.review_share:.3g}% of its requests are drawn."
