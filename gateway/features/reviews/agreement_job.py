"""Agreement of reviewers: one gateway measures it at an interval, from requests that several people have judged."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec

from gateway.background.job_process import make_command, run_process
from gateway.errors import Problem
from gateway.features.reviews.state import Reviews
from gateway.request_labels import AGREEMENT_KEY, read_rules
from monitoring.feedback import Feedback
from monitoring.ids import name_rater
from monitoring.labels.messages import Rating, RatingsFault, RatingsJob, RatingsReport
from monitoring.labels.request_label import RequestLabel, find_label
from monitoring.metric_values import is_bad, measure_badness

log = logging.getLogger(__name__)
MEASURED_SECONDS = 60.0
REPORT_SECONDS_MAX = 120.0
COMMAND = make_command("monitoring.labels.report")
SPLIT_TOLD_MAX = 5
READ_AT_ONCE = 100
"""Requests whose feedback is read before others have the event loop."""


class SharedReview(NamedTuple):
    """A request that several reviewers have answered, with its feedback and its label."""

    request_id: str
    feedback: list[Feedback]
    label: RequestLabel


class TaskAgreement(msgspec.Struct, frozen=True, kw_only=True):
    """The stored agreement on a task's reviews. `measured` is a digest of its answers and rules. `disputed` is the
    number of requests to resolve. `split` has the newest labels with a dissenter, by request, in words."""

    agreed_only: bool
    measured: str
    report: RatingsReport
    disputed: int = 0
    split: dict[str, str] = {}


def describe_reviewers(task: str, agreement: TaskAgreement) -> Iterator[str]:
    """Sentences on a task's reviewers, for `why`."""
    yield from agreement.report.words
    if agreement.disputed:
        wait = "1 review waits" if agreement.disputed == 1 else f"{agreement.disputed} reviews wait"
        yield f"{wait} to be resolved: see them with `apprentice reviews disputed {task}`."
    for request_id, words in agreement.split.items():
        yield f"Reviewers differ on {request_id}: {words}."


class UnreadableRatings(ValueError):
    """A rater file can't be read; the message names its lines."""


async def keep_agreement(reviews: Reviews) -> None:
    """Measure the agreement of each task that has reviews by several people and new answers. Raises RedisError.

    The agreement of a task without such reviews is deleted. A failed report is tried again the next time.
    """
    redis: Any = reviews.services.redis
    for task, settings in reviews.services.settings.tasks.items():
        agreement_min = settings.monitor.reviews.agreement_min
        last, shared = await read_agreement(reviews, task), await read_shared(reviews, task)
        if not shared:
            if last is not None:
                await redis.hdel(AGREEMENT_KEY, task)
            continue
        ratings = await _list_ratings(reviews, task, shared)
        measured = _digest(ratings, [each.label.words for each in shared], agreement_min)
        if last is not None and last.measured == measured:
            continue
        try:
            report = await report_on(RatingsJob(ratings=ratings, agreement_min=agreement_min))
        except Problem as problem:  # other tasks and the storing of reviews continue
            log.error("the agreement of %s is not measured: %s", task, problem.message)
            continue
        split = [each for each in reversed(shared) if each.label.right and each.label.wrong]
        agreement = TaskAgreement(
            agreed_only=report.agreed_only,
            measured=measured,
            report=report,
            disputed=sum(each.label.is_disputed for each in shared),
            split={each.request_id: each.label.words for each in split[:SPLIT_TOLD_MAX]},
        )
        await redis.hset(AGREEMENT_KEY, task, msgspec.json.encode(agreement))


async def read_agreement(reviews: Reviews, task: str) -> TaskAgreement | None:
    """The last measured agreement; None if no request was judged by several people. Raises RedisError."""
    redis: Any = reviews.services.redis
    raw = await redis.hget(AGREEMENT_KEY, task)
    try:
        return None if raw is None else msgspec.json.decode(raw, type=TaskAgreement)
    except msgspec.DecodeError:  # another release wrote it: it will be measured again
        return None


async def read_shared(reviews: Reviews, task: str) -> list[SharedReview]:
    """The requests with a label that several reviewers have answered, the oldest first."""
    rules, shared = await read_rules(reviews.services, task), list[SharedReview]()
    names = await reviews.store.list_shared(task)
    for at in range(0, len(names), READ_AT_ONCE):
        some = names[at : at + READ_AT_ONCE]
        for request_id, feedback in zip(some, await reviews.services.feedback.of_each(some), strict=True):
            label = find_label(feedback, rules)
            if label is not None:
                shared.append(SharedReview(request_id, feedback, label))
    return shared


async def report_on(job: RatingsJob) -> RatingsReport:
    """The report, made by a process of its own. Raises UnreadableRatings and Problem (504, 500)."""
    answer = await run_process(COMMAND, job, dict[str, Any], REPORT_SECONDS_MAX, advice="give fewer ratings")
    if "fault" in answer:
        raise UnreadableRatings(msgspec.convert(answer, RatingsFault).fault)
    return msgspec.convert(answer, RatingsReport)


async def _list_ratings(reviews: Reviews, task: str, shared: list[SharedReview]) -> list[Rating]:
    """The reviewers' answers, the earliest first. Resolutions are left out, since their authors saw the answers."""
    rules = await read_rules(reviews.services, task)
    class_tag = reviews.services.settings.plan(task).class_tag or ""
    ratings = []
    for review in shared:
        class_name = _find_class(review, class_tag)
        for feedback in review.feedback:
            metric = rules.metrics.get(feedback.metric)
            value = None if metric is None else measure_badness(metric, feedback.value)
            if feedback.reviewed and not feedback.resolves and value is not None:
                rater = name_rater(feedback.caller, feedback.rater).replace("\n", " ")
                ratings.append(Rating(review.request_id, rater, "wrong" if is_bad(value) else "right", class_name))
    return ratings


def _find_class(review: SharedReview, class_tag: str) -> str | None:
    """The class that most judgements of a request name, its caller's included; the first one of a tie."""
    named = Counter(name for each in review.feedback if (name := (each.tags or {}).get(class_tag)))
    return named.most_common(1)[0][0] if named else None


def _digest(ratings: list[Rating], labels: list[str], agreement_min: float) -> str:
    return hashlib.blake2b(msgspec.json.encode((ratings, labels, agreement_min)), digest_size=16).hexdigest()
