"""Admin endpoints for the work of several reviewers: agreement, disputes, gold questions, and rater files."""

from __future__ import annotations

import time
import uuid
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from gateway.audit import change_objects, enter_event
from gateway.endpoint_parts import Admin, Body, Operator, refuse_blank, require_task
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.reviews.agreement_job import UnreadableRatings, read_agreement, read_shared, report_on
from gateway.features.reviews.answered_reviews import redact_words
from gateway.features.reviews.budgets import settings_of
from gateway.features.reviews.gold import GOLD_MAX, GoldQuestion
from gateway.features.reviews.reviewer_endpoints import metric_of, said_of
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import Review
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from gateway.request_labels import Demonstration, check_value, digest_demonstration, read_label
from monitoring.feedback import Feedback
from monitoring.labels.messages import RatingsJob

router = APIRouter(prefix="/admin/v1", tags=["admins"])
DISPUTED_TOLD_MAX = 50
Value = StrictBool | StrictInt | StrictFloat | StrictStr
Comment = Annotated[str, Field(min_length=1, max_length=4000, description="Why."), AfterValidator(refuse_blank)]


class ResolutionIn(Body):
    """The judgement that ends a dispute."""

    value: Value = Field(description="As the task's metric declares.")
    comment: Comment
    demonstration: Demonstration = None


class GoldIn(Body):
    """A review whose right judgement is known."""

    request_id: str = Field(max_length=200, description="Of a request whose texts are kept for review.")
    value: Value = Field(description="The right judgement, as the task's metric declares.")
    comment: str | None = Field(None, max_length=4000, description="Why, for who looks at the answers.")


class RatingsIn(Body):
    """A rater file."""

    text: str = Field(min_length=1, description="CSV: item, rater, label; or item, and a column for each rater.")
    agreement_min: float = Field(0.667, ge=0, le=1, description="Alpha below which single labels should not count.")


@router.get("/reviews/{task}/agreement", responses=with_errors("not_found"))
async def read_task_agreement(request: Request, task: str, _: Operator) -> dict[str, Any]:
    """The agreement of a task's reviewers, as last measured (null: no request had several), both votes, and their
    answers to gold questions.
    """
    reviews = feature_of(request, Reviews)
    require_task(reviews.services, task)
    agreement = await read_agreement(reviews, task)
    return {
        "task": task,
        "agreement_min": settings_of(reviews, task).agreement_min,
        "agreement": None if agreement is None else msgspec.to_builtins(agreement),
        "gold": msgspec.to_builtins(await reviews.gold.list_scores(task)),
    }


@router.post("/ratings", responses=with_errors("timeout"))
async def report_ratings(request: Request, _: Admin, body: RatingsIn) -> dict[str, Any]:
    """The agreement of the raters of a file, and both votes. Nothing is stored."""
    feature_of(request, Reviews)
    try:
        report = await report_on(RatingsJob(text=body.text, agreement_min=body.agreement_min))
    except UnreadableRatings as error:
        raise Problem("invalid_value", str(error), "text") from None
    return dict(msgspec.to_builtins(report))


@router.get("/reviews/{task}/disputed", responses=with_errors("not_found"))
async def list_disputed(request: Request, task: str, operator: Operator) -> dict[str, Any]:
    """The requests whose reviewers disagree, the newest first, with all answers.
    The audit names the reader.
    """
    reviews = feature_of(request, Reviews)
    require_task(reviews.services, task)
    disputed = [each for each in await read_shared(reviews, task) if each.label.is_disputed]
    rows = []
    for dispute in disputed[: -DISPUTED_TOLD_MAX - 1 : -1]:
        review = await reviews.store.kept_on(dispute.request_id)
        answers = [_answer(answer) for answer in dispute.feedback if answer.reviewed]
        if review is not None or any(answer["comment"] or answer["demonstration"] for answer in answers):
            evidence = {"task": task, "disputed": True}
            await enter_event(reviews.services, operator, "review.give", dispute.request_id, evidence)
        rows.append(
            {
                "request_id": dispute.request_id,
                "label": msgspec.to_builtins(dispute.label),
                "answers": answers,
                "review": None if review is None else msgspec.to_builtins(review),
            }
        )
    return {"task": task, "disputed": rows, "count": len(disputed), "say": said_of(*metric_of(reviews, task))}


@router.post("/reviews/{task}/disputed/{request_id}/resolve", responses=with_errors("no_review", "not_found"))
async def resolve_dispute(
    request: Request, task: str, request_id: str, admin: Admin, body: ResolutionIn
) -> dict[str, Any]:
    """Decide a request whose reviewers disagree, or decide it otherwise. The latest decision is its label."""
    reviews = feature_of(request, Reviews)
    services = reviews.services
    require_task(services, task)
    label = await read_label(services, task, request_id)
    is_open = label is not None and (label.is_disputed or label.is_resolved)
    if not is_open or not await reviews.store.is_shared(task, request_id):
        raise Problem("no_review", f"No request {request_id[:80]!r} of {task} waits to be resolved.", "request_id")
    name, _ = metric_of(reviews, task)
    value = check_value(name, body.value, services.settings.feedback_metrics)
    comment, demonstration = await redact_words(reviews, task, [body.comment, body.demonstration])
    feedback = Feedback(
        feedback_id=uuid.uuid4().hex,
        named=False,
        metric=name,
        value=value,
        at=time.time(),
        caller=admin.public,
        rater="resolution",
        comment=comment,
        demonstration=demonstration,
        demonstration_digests=digest_demonstration(services, body.demonstration),
        reviewed=True,
        reviewers=settings_of(reviews, task).reviewers,
        resolves=True,
    )
    evidence = {"task": task, "value": value}  # a comment may quote a text, and the audit can forget none
    await enter_event(services, admin, "review.resolve", request_id, evidence)
    receipt = await services.feedback.give(request_id, feedback, "*", young=True)
    if not receipt.is_stored:
        raise Problem("no_review", f"The request {request_id[:80]!r} was judged too often.", "request_id")
    label = await read_label(services, task, request_id)
    return {"request_id": request_id, "task": task, "label": msgspec.to_builtins(label)}


@router.get("/reviews/{task}/gold", responses=with_errors("no_review", "not_found"))
async def list_gold(
    request: Request,
    task: str,
    admin: Admin,
    request_id: Annotated[str | None, Query(max_length=200, description="With its texts, to make one of it.")] = None,
) -> dict[str, Any]:
    """The task's gold questions, and each reviewer's answers to them; of `request_id` the texts as its `candidate`.
    The audit names the reader.
    """
    reviews = feature_of(request, Reviews)
    require_task(reviews.services, task)
    candidate = None
    if request_id is not None:
        candidate = await _find_candidate(reviews, task, request_id)
        await enter_event(reviews.services, admin, "review.give", request_id, {"task": task, "gold": True})
    questions = await reviews.gold.list_questions(task)
    scores = await reviews.gold.list_scores(task)
    return {
        "task": task,
        "questions": msgspec.to_builtins(questions),
        "scores": msgspec.to_builtins(scores),
        "candidate": msgspec.to_builtins(candidate),
        "say": said_of(*metric_of(reviews, task)),
    }


@router.post("/reviews/{task}/gold", status_code=201, responses=with_errors("no_review", *CHANGE_ERRORS))
async def add_gold(request: Request, task: str, admin: Admin, body: GoldIn) -> dict[str, Any]:
    """Make a request a gold question: its texts are kept until it is removed."""
    reviews = feature_of(request, Reviews)
    require_task(reviews.services, task)
    value = check_value(metric_of(reviews, task)[0], body.value, reviews.services.settings.feedback_metrics)
    review = await _find_candidate(reviews, task, body.request_id)
    if len(await reviews.gold.list_questions(task)) >= GOLD_MAX:
        raise Problem("state_conflict", f"{task} has {GOLD_MAX} gold questions: remove one first.", "request_id")
    comment = await redact_words(reviews, task, body.comment)
    question = GoldQuestion(review=review, value=value, by=admin.public, at=time.time(), comment=comment)
    after = {"task": task, "value": value}  # a comment may quote a text, and the audit can forget none
    change = reviews.gold.change(question, review.request_id)
    await change_objects(reviews.services, admin, "review.gold", review.request_id, [change], after=after)
    try:
        await _find_candidate(reviews, task, body.request_id)
    except Problem:  # its texts were erased meanwhile, when the question was not there yet
        await reviews.gold.forget([body.request_id])
        raise
    never = f"It is given to nobody: tasks.{task}.monitor.reviews.gold_share is 0."
    warnings = [] if settings_of(reviews, task).gold_share else [never]
    return {"request_id": review.request_id, **after, "comment": comment, "warnings": warnings}


@router.delete("/reviews/{task}/gold/{request_id}", responses=with_errors(*CHANGE_ERRORS))
async def remove_gold(request: Request, task: str, request_id: str, admin: Admin) -> dict[str, Any]:
    """Remove a gold question with its texts. Answers to it stay counted."""
    reviews = feature_of(request, Reviews)
    require_task(reviews.services, task)
    if request_id not in [each.review.request_id for each in await reviews.gold.list_questions(task)]:
        raise Problem("not_found", f"{task} has no gold question {request_id[:80]!r}.", "request_id")
    change, before = reviews.gold.change(None, request_id), {"task": task}
    await change_objects(reviews.services, admin, "review.gold_remove", request_id, [change], before=before)
    return {"request_id": request_id, "task": task}


async def _find_candidate(reviews: Reviews, task: str, request_id: str) -> Review:
    """The texts of a request. Raises Problem (404)."""
    review = await reviews.store.find_texts(request_id)
    if review is None or review.task != task:
        text = f"No texts of {request_id[:80]!r} are kept for review: name one that waits for it, or was judged wrong."
        raise Problem("no_review", text, "request_id")
    return review


def _answer(feedback: Feedback) -> dict[str, Any]:
    fields = ("caller", "rater", "value", "comment", "demonstration", "at")
    return {name: getattr(feedback, name) for name in fields}
