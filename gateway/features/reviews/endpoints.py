"""Admin endpoints for the queue of reviews: read its state, delete texts from it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from gateway.endpoint_parts import Admin, Reviewer
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.reviews.budgets import budget_of, is_raised
from gateway.features.reviews.job import count_reviews
from gateway.features.reviews.reviewer_endpoints import OfTask, metric_of, said_of, tasks_of
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import Counts
from gateway.openapi_parts import with_errors

router = APIRouter(prefix="/admin/v1", tags=["admins"])


@router.get("/reviews", responses=with_errors("not_found"))
async def list_reviews(request: Request, reviewer: Reviewer, task: OfTask = None) -> dict[str, Any]:
    """Each task's reviews, its budget, and the newest skipped ones."""
    reviews = feature_of(request, Reviews)
    counts = await count_reviews(reviews, tasks_of(reviews, reviewer, task))
    listed = [_listed(reviews, name, of_task) for name, of_task in counts.items()]
    if reviewer.judges_only:  # what others gave back is not this one's to judge
        listed = [{**each, "skips": []} for each in listed]
    return {"reviews": listed}


@router.delete("/reviews/{task}", responses=with_errors("not_found"))
async def delete_reviews(
    request: Request,
    task: str,
    admin: Admin,
    request_id: Annotated[str | None, Query(max_length=200, description="Only of this request; unset: all.")] = None,
) -> dict[str, Any]:
    """Delete the texts of a task's reviews, or of one request's. They stay drawn: the budget and the
    records do not change.
    """
    reviews = feature_of(request, Reviews)
    all_of_it = request_id is None and task in reviews.services.settings.tasks
    deleted = await reviews.store.delete(task, request_id, reviews.services.begin_step(admin.public), all_of_it)
    if not deleted.waiting and not deleted.answered and not all_of_it:
        missing = "reviews" if request_id is None else f"review of {request_id[:80]!r}"
        raise Problem("not_found", f"{task[:80]!r} has no {missing} of which texts are kept.")
    counts: dict[str, Any] = {"task": task, "request_id": request_id, **deleted._asdict()}
    if task in reviews.services.settings.tasks:
        reviews.services.meters.reviews.add(deleted.waiting, task, "dropped")
        await count_reviews(reviews, [task])
    return counts


def _listed(reviews: Reviews, task: str, counts: Counts) -> dict[str, Any]:
    budget = budget_of(reviews, task)
    watched = reviews.services.snapshot.current.policy.watched.get(task)
    name, metric = metric_of(reviews, task)
    return {
        "task": task,
        **{key: value for key, value in msgspec.to_builtins(counts).items() if key != "expired_now"},
        "per_week": budget,
        "raised": is_raised(reviews, task) and budget > reviews.services.settings.plan(task).reviews_per_week,
        "left": max(0, budget - counts.drawn),
        "share": watched.review_share if watched is not None else 0.0,
        "say": said_of(name, metric),
    }
