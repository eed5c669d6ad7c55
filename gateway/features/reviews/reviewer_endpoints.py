"""Endpoints for reviewers: get requests that were drawn for people to judge, one at a time, or skip one."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import AfterValidator, Field

from gateway.audit import enter_event
from gateway.callers import Caller
from gateway.configuration.settings import FeedbackMetricSettings
from gateway.endpoint_parts import Body, Reviewer, refuse_blank, require_task, see_that_it_reviews
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.reviews.answered_reviews import redact_words
from gateway.features.reviews.budgets import budget_of, find_retention, find_waiting_seconds, settings_of
from gateway.features.reviews.gold import HeldQuestion
from gateway.features.reviews.job import count_reviews
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import Counts, Leased, NoneLeft, Skip
from gateway.openapi_parts import OK, with_errors

router = APIRouter(tags=["reviewers"])
TOLD_TASKS_MAX = 5
"""Most tasks for which an answer gives the reason why no review waits."""
UNSEEN: Mapping[str, Any] = MappingProxyType(dict.fromkeys(("version", "pool", "reason", "caller")))
"""Fields of a review that its reviewer does not see: which arm answered, for which caller, and the reason."""
OfTask = Annotated[str | None, Query(max_length=63, description="Only of this task.")]


class SkipIn(Body):
    """The reason why a reviewer gives a review back."""

    reason: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(refuse_blank)]


@router.get("/v1/reviews/next", responses=with_errors("no_review", "not_found") | OK)
async def next_review(request: Request, reviewer: Reviewer, task: OfTask = None) -> Response:
    """The review that has waited longest, leased to this key until `leased_until`. A key that has one gets it again.
    Answer it by `POST /v1/feedback`. The audit names the reader.
    """
    reviews = feature_of(request, Reviews)
    counts = await count_reviews(reviews, tasks_of(reviews, reviewer, task))
    held = await reviews.store.find_held(counts, reviewer.public)
    gold = await _give_gold(reviews, reviewer, counts, held)
    if gold is not None:
        return Response(msgspec.json.encode(gold), media_type="application/json")
    none: dict[str, NoneLeft] = {}
    for name in sorted(counts, key=lambda name: (name not in held, counts[name].oldest_at or float("inf"))):
        lease_seconds, kept_seconds = settings_of(reviews, name).lease_seconds, find_waiting_seconds(reviews, name)
        leased: Leased | NoneLeft = NoneLeft(0, 0)
        if counts[name].waiting:
            leased = await reviews.store.next(name, reviewer.public, lease_seconds, kept_seconds)
        if isinstance(leased, Leased):
            if leased.new:
                reviews.services.meters.reviews.add(1, name, "given")
            if not leased.entered:  # before its text is given: nobody reads one of whom the audit does not say so
                await enter_event(reviews.services, reviewer, "review.give", leased.review.request_id, {"task": name})
                known_seconds = reviews.services.settings.records.retention_seconds
                await reviews.store.note_given(reviewer.public, leased.review.request_id, known_seconds)
            content = _show_review(reviews, reviewer, name, leased, counts[name])
            return Response(msgspec.json.encode(content), media_type="application/json")
        none[name] = leased
    raise Problem("no_review", _why_none(reviews, counts, none), None if task is None else "task")


@router.post("/v1/reviews/{request_id}/skip", responses=with_errors("no_review", "state_conflict"))
async def skip_review(request: Request, request_id: str, reviewer: Reviewer, body: SkipIn) -> dict[str, Any]:
    """Give a leased review back, unjudged. It is counted, with its reason."""
    reviews = feature_of(request, Reviews)
    lease = await reviews.gold.find_held(reviewer.public)
    if lease is not None and lease.request_id == request_id:
        await reviews.gold.give_back(lease, reviewer.public)
        return {"request_id": request_id, "task": lease.task, "skipped": True}
    task = await reviews.store.task_of(request_id)
    outcome = "gone"
    if task is not None:
        reason = await redact_words(reviews, task, body.reason)
        skip = Skip(request_id=request_id, by=reviewer.public, reason=reason)
        outcome = await reviews.store.skip(task, skip, find_retention(reviews, task))
    if task is None or outcome == "gone":
        raise Problem("no_review", f"No request with the id {request_id[:80]!r} waits for review.", "request_id")
    if outcome == "other":
        raise Problem("state_conflict", "This review is not leased to you: ask /v1/reviews/next for one.", "request_id")
    reviews.services.meters.reviews.add(1, task, "skipped")
    return {"request_id": request_id, "task": task, "skipped": True}


async def _give_gold(
    reviews: Reviews, reviewer: Caller, counts: dict[str, Counts], held: Set[str]
) -> dict[str, Any] | None:
    """A gold question that looks like a review; None if none is drawn, or the reviewer holds a review."""
    current = await reviews.gold.find_held(reviewer.public)
    if current is None and held:
        return None
    chance = secrets.randbelow(1 << 30) / (1 << 30)  # one for all tasks: several would add up
    for name, counted_now in counts.items():
        settings = settings_of(reviews, name)
        share = float(chance < settings.gold_share)
        leased = await reviews.gold.draw(name, reviewer.public, current, share, settings.lease_seconds)
        if leased is not None:
            review = leased.review
            if current is None and await reviews.store.was_given(reviewer.public, review.request_id):
                await reviews.gold.give_back(HeldQuestion(name, review.request_id), reviewer.public)
                continue  # a repeated answer would show nothing
            await enter_event(reviews.services, reviewer, "review.give", review.request_id, {"task": name})
            return _show_review(reviews, reviewer, name, leased, counted_now)
    return None


def tasks_of(reviews: Reviews, reviewer: Caller, task: str | None) -> list[str]:
    """The named task, or all tasks that the key reviews. Raises Problem (403, 404)."""
    if task is None:
        return [name for name in sorted(reviews.services.settings.tasks) if reviewer.reviews(name)]
    see_that_it_reviews(reviewer, task)
    return [require_task(reviews.services, task)]


def _show_review(reviews: Reviews, reviewer: Caller, task: str, leased: Leased, counts: Counts) -> dict[str, Any]:
    name, metric = metric_of(reviews, task)
    review: dict[str, Any] = msgspec.to_builtins(leased.review)
    if reviewer.judges_only:
        review |= UNSEEN
    return {
        "review": review,
        "leased_until": leased.until,
        "waiting": counts.waiting,
        "say": said_of(name, metric),
        "examples": _examples(leased.review.request_id, name, metric),
    }


def metric_of(reviews: Reviews, task: str) -> tuple[str, FeedbackMetricSettings | None]:
    """The reviewers' metric: the task's or, if the task names none, the first declared one."""
    declared = reviews.services.settings.feedback_metrics
    name = reviews.services.settings.plan(task).feedback_metric or next(iter(declared), "")
    return name, declared.get(name)


def said_of(name: str, metric: FeedbackMetricSettings | None) -> dict[str, Any] | None:
    """A metric's declaration for reviewers; None if there is no metric."""
    return None if metric is None else {"metric": name, **metric.model_dump(mode="json")}


def _examples(request_id: str, name: str, metric: FeedbackMetricSettings | None) -> list[dict[str, Any]]:
    """Bodies of `POST /v1/feedback` to fill in: for a right answer, then for a wrong one."""
    if metric is None:
        return []
    values: list[Any] = [True, False]
    if metric.kind == "float":
        values = [1.0 if metric.maximum is None else metric.maximum, metric.minimum or 0.0]
    if metric.kind == "category":
        return [{"request_id": request_id, "metric": name, "value": metric.categories[0]}] if metric.categories else []
    right, wrong = values if metric.better == "higher" else values[::-1]
    hints = {"comment": "why it is wrong", "demonstration": "what it should have been"}
    body = {"request_id": request_id, "metric": name}
    return [{**body, "value": right}, {**body, "value": wrong, **hints}]


def _why_none(reviews: Reviews, counts: dict[str, Counts], none: dict[str, NoneLeft]) -> str:
    """The reason why no review waits, in sentences."""
    budgets = {task: budget_of(reviews, task) for task in none}
    blocked = [task for task in none if budgets[task] or counts[task].waiting] or list(none)[:1]
    if len(blocked) > TOLD_TASKS_MAX:
        return f"None of {len(blocked)} tasks has a review that waits for you. Name one to learn why."
    return (
        " ".join(_why(reviews, task, budgets[task], counts[task], none[task]) for task in blocked)
        or "There is no task."
    )


def _why(reviews: Reviews, task: str, budget: int, counts: Counts, none: NoneLeft) -> str:
    if none.sealed:
        return f"{none.sealed} reviews of {task} lie under keys that texts.keys of this gateway lacks."
    if none.leased or none.skipped:
        return f"Of {task} {none.leased} reviews are leased to others, and {none.skipped} you have skipped or answered."
    if not budget:
        return f"No request of {task} is drawn: tasks.{task}.monitor.reviews.per_week is 0."
    if counts.drawn >= budget:
        return f"No review of {task} waits, and the {budget} of seven days are drawn."
    watched = reviews.services.snapshot.current.policy.watched.get(task)
    if watched is None or not watched.review_share:
        return f"No request of {task} is drawn yet: the monitor has first to see how many come in a week."
    return f"No review of {task} waits: {100 * watched.review_share:.3g}% of its requests are drawn."
