"""Draws of requests for a second answer or a review, and the queue of requests that shadows answer, too.

Two kinds of answers are read again, after they were sent: those of a task with a canary or a shadow, and those that
were drawn for the monitor. The monitor draws requests for both arms to answer, or for a person to review.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass

from gateway.features.reviews.unsaved_reviews import ReviewQueue
from gateway.formats.request_body import RequestBody
from monitoring.records import PairRecord, Record
from router.policy import Policy, TaskPolicy
from router.routing_data import Choice
from router.version_choice import list_places_beside

QUEUE_MAX = 200
FIRST_QUEUE_MAX = 16
"""Length of the queue of requests that come before callers. A longer queue would not be worth callers' waits."""
WAITING_BYTES_MAX = 64 << 20
LIVE = frozenset({"adapter", "canary"})


@dataclass(frozen=True, slots=True)
class ShadowJob:
    """A request for a shadow, and the facts on the answer that its caller got.

    `version` is the shadow; None: the task's general model. `known_answer` is the shadow's earlier answer to this
    request, which was not sent to the caller. None: the shadow must be asked.
    `comes_first`: it may take a place before callers.
    """

    version: str | None
    probability: float
    policy: Policy
    body: RequestBody
    choice: Choice
    record: Record
    text: str
    pair: PairRecord
    known_answer: str | None = None
    comes_first: bool = False

    @property
    def task(self) -> TaskPolicy:
        """The request's task."""
        assert self.choice.task is not None, "what is of no task has no shadow"
        return self.choice.task

    @property
    def size(self) -> int:
        """Number of bytes in memory while it waits, or a little less."""
        return self.body.size + len(self.text) + len(self.known_answer or "")


class ShadowDraws:
    """The draws of requests for shadows and reviews. Owner of the queue of shadow requests."""

    def __init__(self, secret: bytes, reviews: ReviewQueue) -> None:
        """`secret` is the key of the draws; `reviews` knows whether a task's budget is spent."""
        self._secret = secret
        self._reviews = reviews
        self._jobs: asyncio.Queue[ShadowJob] = asyncio.Queue(QUEUE_MAX)
        self._first_jobs: asyncio.Queue[ShadowJob] = asyncio.Queue(FIRST_QUEUE_MAX)
        self.first_held: Counter[str] = Counter()
        """The number of places that shadows have taken before callers, by replica."""
        self._bytes = 0

    def draw(self, policy: Policy, choice: Choice, record: Record) -> None:
        """Draw whether both arms answer a request, and whether a person reviews it. The two draws are independent, and
        use only the request. Note them in its record, with the probabilities.

        The draws come after the choice of the route and before the answer, so that they do not depend on the answer.
        There is no draw if the caller's pin or an admin's rule chose the route: such requests are no fair sample.
        """
        task = choice.task
        if task is None:
            return
        watched = policy.watched.get(task.name)
        if watched is None or choice.reason == "pinned" or choice.override_id is not None or choice.led_to is None:
            return
        if not (watched.shadow_share or watched.review_share):
            return
        shadow, review = list_places_beside(record.id, self._secret)
        if watched.shadow_share > 0.0:
            record.shadow_probability = watched.shadow_share
            record.shadowed = shadow < watched.shadow_share
        if watched.review_share > 0.0 and self._reviews.open(task.name):
            record.review_probability = watched.review_share
            record.reviewed = review < watched.review_share

    def watches(self, policy: Policy, choice: Choice, record: Record) -> bool:
        """Return whether the text of this answer is needed once it has been sent."""
        return record.shadowed or record.reviewed or self.has_trial(policy, choice)

    def has_trial(self, policy: Policy, choice: Choice) -> bool:
        """Return whether the answer is of a version whose task has a canary or a shadow."""
        if choice.task is None or choice.version is None or choice.reason not in LIVE:
            return False
        alias = policy.aliases.get(choice.task.name)
        return alias is not None and (alias.canary is not None or bool(alias.shadow))

    @property
    def waiting(self) -> int:
        """The number of requests that wait for shadows."""
        return self._jobs.qsize() + self._first_jobs.qsize()

    def offer(self, job: ShadowJob) -> bool:
        """Queue this request for a shadow; False if too many requests or bytes wait already."""
        if self._bytes + job.size > WAITING_BYTES_MAX:
            return False
        try:
            (self._first_jobs if job.comes_first else self._jobs).put_nowait(job)
        except asyncio.QueueFull:
            return False
        self._bytes += job.size
        return True

    async def next(self, comes_first: bool = False) -> ShadowJob:
        """The request that has waited longest, among those that come before callers or among the others."""
        job = await (self._first_jobs if comes_first else self._jobs).get()
        self._bytes -= job.size
        return job
