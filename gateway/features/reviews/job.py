"""Background job for reviews: it stores requests that were drawn for people to judge, with their texts.

It does so after their answers were sent, one after the other. A request that can't be stored is dropped and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.features.reviews.agreement_job import MEASURED_SECONDS, keep_agreement
from gateway.features.reviews.budgets import budget_of, find_waiting_seconds, settings_of
from gateway.features.reviews.state import Reviews
from gateway.features.reviews.store import Counts, Review
from gateway.features.reviews.unsaved_reviews import Drawn
from gateway.features.texts.redactors import redact_conversation
from gateway.formats.request_body import RequestBody
from gateway.services import ObservedAnswer
from monitoring.records import Record
from router.routing_data import Choice

log = logging.getLogger(__name__)
COUNT_INTERVAL_SECONDS = 5.0
SPENT_SECONDS_MAX = 60.0
"""Time for which a spent budget counts before a gateway asks again, since it may have been raised."""
FIELDS_MAX = 64


# ---- beside the request ---------------------------------------------------------------------------------


def offer_review(reviews: Reviews, body: RequestBody, answer: ObservedAnswer, record: Record) -> None:
    """Queue a drawn request for a reviewer, after its answer was sent. Does not wait."""
    task = record.task or ""
    reviews.services.meters.reviews.add(1, task, "drawn")
    sent = answer.make_answered_request(record, body)
    if sent is not None and reviews.queue.offer(Drawn(sent, _fields(answer.choice))):
        return
    reviews.services.meters.reviews.add(1, task, "dropped")


def _fields(choice: Choice) -> tuple[str, ...]:
    """The fields that the contract of the task's version names, if any."""
    led_to = choice.led_to or choice.version
    schema: Any = (led_to.contract or {}).get("json_schema") if led_to is not None else None
    named = schema.get("properties") if isinstance(schema, Mapping) else None
    return tuple(str(name) for name in list(named)[:FIELDS_MAX]) if isinstance(named, Mapping) else ()


# ---- the job -------------------------------------------------------------------------------------------


async def keep_reviewing(reviews: Reviews) -> None:
    """Store drawn requests, and count waiting reviews. Runs until cancelled."""
    lease = reviews.services.lease_job("agreement", 2 * MEASURED_SECONDS)
    async with asyncio.TaskGroup() as group:
        group.create_task(_keep_one_by_one(reviews))
        group.create_task(lease.repeat(lambda: keep_agreement(reviews), MEASURED_SECONDS))
        group.create_task(_count(reviews))


async def _keep_one_by_one(reviews: Reviews) -> None:
    while True:
        drawn = await reviews.queue.next()
        is_kept = False
        try:
            is_kept = await _keep(reviews, drawn)
        except (RedisError, OSError):  # an outage: the job `tell_presence` fails as well, and the log has it
            pass
        except Exception:
            log.exception("a review was not kept", extra={"request_id": drawn.sent.record.id})
        finally:
            if not is_kept:
                reviews.services.meters.reviews.add(1, drawn.sent.record.task or "", "dropped")
            reviews.queue.done()


async def _keep(reviews: Reviews, drawn: Drawn) -> bool:
    """Store a drawn request. Return whether it waits in Redis now. Raises RedisError and OSError."""
    task = drawn.sent.record.task or ""
    if task not in reviews.services.settings.tasks or not reviews.queue.open(task):
        return False
    review = await asyncio.to_thread(_review, reviews, drawn)
    review = msgspec.structs.replace(review, reviewers=_draw_reviewers(reviews, drawn.sent.record.id, task))
    budget, handles = budget_of(reviews, task), drawn.sent.record.handles
    result = await reviews.store.keep(review, budget, find_waiting_seconds(reviews, task), handles=handles)
    if result.outcome == "spent":
        reviews.queue.spent(task, min(result.spent_seconds or SPENT_SECONDS_MAX, SPENT_SECONDS_MAX))
    for count, outcome in ((result.dropped, "dropped"), (result.expired, "expired")):
        if count:
            reviews.services.meters.reviews.add(count, task, outcome)
    return result.outcome in ("kept", "same")


def _draw_reviewers(reviews: Reviews, request_id: str, task: str) -> int:
    """The number of reviewers of a request, drawn by its id only, and so the same at every gateway."""
    settings = settings_of(reviews, task)
    secret = reviews.services.digest_secret
    drawn = hashlib.blake2b(request_id.encode(), key=secret, digest_size=7, person=b"reviewers").digest()
    return settings.reviewers if int.from_bytes(drawn, "big") < settings.several_share * (1 << 56) else 1


def _review(reviews: Reviews, drawn: Drawn) -> Review:
    """The redacted review. If redaction fails, it raises, and nothing is stored."""
    record = drawn.sent.record
    drawn_with = record.review_probability or 0.0
    read = Review(request_id=record.id, probability=drawn_with, fields=list(drawn.fields), **drawn.sent.fields())
    return redact_conversation(read, reviews.texts.find_redaction(read.task))


async def _count(reviews: Reviews) -> None:
    is_seen = False
    while True:
        with contextlib.suppress(RedisError, OSError):
            tasks = reviews.services.settings.tasks
            for gone in [task for task in reviews.queue.waiting if task not in tasks or not has_reviews(reviews, task)]:
                del reviews.queue.waiting[gone]
            # the first time count all tasks, since reviews may wait from before the start
            await count_reviews(reviews, [task for task in tasks if not is_seen or has_reviews(reviews, task)])
            is_seen = True
        await asyncio.sleep(COUNT_INTERVAL_SECONDS)


def has_reviews(reviews: Reviews, task: str) -> bool:
    """Return whether requests of the task may be drawn for review, or drawn ones wait."""
    settings = settings_of(reviews, task)
    return settings.per_week > 0 or settings.per_week_suspect > 0 or reviews.queue.waiting.get(task, 0) > 0


async def count_reviews(reviews: Reviews, tasks: Sequence[str]) -> dict[str, Counts]:
    """Count the tasks' reviews, and set the gauge of those that wait. Raises RedisError."""
    counts = await reviews.store.counts({task: find_waiting_seconds(reviews, task) for task in tasks})
    for task, of_task in counts.items():
        reviews.queue.waiting[task] = of_task.waiting
        if of_task.expired_now:
            reviews.services.meters.reviews.add(of_task.expired_now, task, "expired")
    return counts
