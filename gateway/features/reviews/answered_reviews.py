"""Answers of reviewers: find a judgement's review, redact the judgement's words, and end the review's wait."""

from __future__ import annotations

import asyncio
from typing import Any

from gateway.callers import Caller
from gateway.features.reviews.budgets import find_retention, settings_of
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import DrawnReview, Rater
from gateway.features.texts.redactors import redact_all
from gateway.request_labels import read_label
from monitoring.feedback import Feedback, Receipt
from monitoring.ids import name_rater
from monitoring.metric_values import is_bad, measure_badness


async def find_review(reviews: Reviews, caller: Caller, request_id: str, metric: str) -> DrawnReview | None:
    """The waiting or answered review of a request, if this caller may review it, by the reviewers' metric; else None. A
    reviewer's key must have been given the review. Raises RedisError."""
    if caller.judges != "*":
        return None
    drawn = await reviews.store.find_drawn(request_id)
    if drawn is None or drawn.task not in reviews.services.settings.tasks or not caller.reviews(drawn.task):
        return None
    if caller.judges_only and not await reviews.store.was_given(caller.public, request_id):
        return None
    wanted = reviews.services.settings.plan(drawn.task).feedback_metric
    return drawn if wanted in (None, metric) else None


async def note_answered(
    reviews: Reviews, drawn: DrawnReview, request_id: str, feedback: Feedback, receipt: Receipt
) -> None:
    """Note that a review's judgement is stored, so that it no longer waits for this rater. Raises RedisError; then a
    second sending of the judgement notes it."""
    services = reviews.services
    if not receipt.is_stored:
        return
    task = drawn.task
    keep_on = is_bad(measure_badness(services.settings.feedback_metrics[feedback.metric].metric(), feedback.value))
    if drawn.reviewers > 1:
        label = await read_label(services, task, request_id)  # if two differ, low agreement may open it again
        keep_on = label is not None and label.wrong > 0
    known_seconds = services.settings.records.retention_seconds
    rater = Rater(name_rater(feedback.caller, feedback.rater), feedback.caller)
    if await reviews.store.answer(task, request_id, keep_on, find_retention(reviews, task), known_seconds, rater):
        services.meters.reviews.add(1, task, "answered")
        services.meters.review_cost_usd.add(settings_of(reviews, task).usd_each, task)


async def redact_words(reviews: Reviews, task: str, words: Any) -> Any:
    """Redact a reviewer's words on a request of this task, like its texts."""
    return await asyncio.to_thread(lambda: redact_all(words, reviews.texts.find_redaction(task)))
