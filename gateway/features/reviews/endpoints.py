"""The table URL → function for admins, the queue of reviews: how it stands, and what is taken out of it."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request

from gateway.access import Admin, Operator
from gateway.audit import audited
from gateway.endpoints import services_of
from gateway.errors import Problem
from gateway.features.reviews.job import budget_of, counted, is_raised
from gateway.features.reviews.reviewer_endpoints import OfTask, metric_of, said_of, tasks_of
from gateway.features.reviews.store import Counts
from gateway.services import Services

router = APIRouter(prefix="/admin/v1", tags=["admins"])


@router.get("/reviews")
async def list_reviews(request: Request, _: Operator, task: OfTask = None) -> dict[str, Any]:
    """Each task's reviews, its budget, and the newest skipped ones."""
    services = services_of(request)
    return {"reviews": [_listed(services, name, await counted(services, name)) for name in tasks_of(services, task)]}


@router.delete("/reviews/{task}")
async def delete_reviews(
    request: Request,
    task: str,
    admin: Admin,
    request_id: Annotated[str | None, Query(max_length=200, description="Only of this request; unset: all.")] = None,
) -> dict[str, Any]:
    """Delete the texts of a task's reviews, or of one request's. What was drawn stays drawn: the budget and the
    records are as they were.
    """
    services = services_of(request)
    all_of_it = request_id is None and task in services.settings.tasks
    deleted = await services.reviews.delete(task, request_id, audited(services, admin), all_of_it)
    if not deleted.waiting and not deleted.answered and not all_of_it:
        what = "reviews" if request_id is None else f"review of {request_id[:80]!r}"
        raise Problem("not_found", f"{task[:80]!r} has no {what} of which texts are kept.")
    told: dict[str, Any] = {"task": task, "request_id": request_id, **deleted._asdict()}
    if task in services.settings.tasks:
        services.meters.reviews.add(deleted.waiting, task, "dropped")
        await counted(services, task)
    return told


def _listed(services: Services, task: str, counts: Counts) -> dict[str, Any]:
    budget = budget_of(services, task)
    watched = services.snapshot.current.policy.watched.get(task)
    name, metric = metric_of(services, task)
    return {
        "task": task,
        **{key: value for key, value in msgspec.to_builtins(counts).items() if key != "expired_now"},
        "per_week": budget,
        "raised": is_raised(services, task) and budget > services.settings.plan(task).reviews_per_week,
        "left": max(0, budget - counts.drawn),
        "share": watched.review_share if watched is not None else 0.0,
        "say": said_of(name, metric),
    }
