"""Gold questions: reviews whose right judgement is known. Reviewers get them among the other reviews.

Answers to them are not feedback: they show the quality of a reviewer, not of the version.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

from gateway.features.reviews.store import ROOT, Leased, Review, close_review, is_sealed_by, open_review, read_review
from monitoring.metric_values import Metric, is_bad, measure_badness
from monitoring.redis_time import convert_time
from monitoring.texts import Resealing, Sealable, Seals, Unsealable
from serving.object_store import UNREADABLE, Change, LenientReader, ObjectStore, Stale

GOLD_MAX = 200
COMMENT = MappingProxyType({"comment": None})
HELD = "apprentice:gold_held:"
LAST = "apprentice:gold_last:"
LAST_SECONDS = 3600
"""Time after the lease in which an answer still counts as one to a gold question, if it is late or sent again."""
ANSWERED_SECONDS = 366 * 86_400
"""Time for which the answered gold questions of a reviewer are remembered."""


class GoldQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A review with its known judgement: the value of the task's metric, its author, and its time."""

    review: Review
    value: bool | float | str
    by: str
    at: float
    comment: str | None = None


class _StoredQuestion(Sealable, frozen=True, kw_only=True):
    """A question as it is stored; its review and comment may be sealed."""

    review: msgspec.Raw
    value: bool | float | str
    by: str
    at: float
    comment: str | None = None

    def open(self, seals: Seals) -> GoldQuestion | None:
        """Open the question; None if its review can't be read."""
        review = open_review(bytes(self.review), seals)
        if review is None:
            return None
        return self.make(review, seals.read_words(self, review.request_id, COMMENT))

    def make(self, review: Review, words: _StoredQuestion) -> GoldQuestion:
        """Make the question from its opened review and words."""
        return GoldQuestion(review=review, value=self.value, by=self.by, at=self.at, comment=words.comment)

    def needs_seal(self, seals: Seals) -> bool:
        """Return whether a part is not sealed under the present key. False if there is no key."""
        is_elsewhere = self.comment is not None or (self.sealed is not None and self.key != seals.sealing)
        return (is_elsewhere and seals.sealing is not None) or not is_sealed_by(bytes(self.review), seals)


class GoldScore(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a reviewer's answers to gold questions, and of the right ones."""

    rater: str
    answered: int
    right: int


class HeldQuestion(NamedTuple):
    """The gold question that a reviewer holds, and its task."""

    task: str
    request_id: str


class GoldStore:
    """The gold questions in Redis. Every method raises RedisError."""

    def __init__(self, redis: Redis, seals: Callable[[], Seals] = lambda: Seals({}, None)) -> None:
        """`seals` returns the present keys of texts."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.questions = ObjectStore(redis, "gold")
        self._reader = LenientReader()
        self._seals = seals

    async def list_questions(self, task: str) -> list[GoldQuestion]:
        """The task's readable questions, the oldest first."""
        stored = await self._reader.read_all(self.questions, "the gold question", _StoredQuestion)
        named = f'"task":"{task}"'.encode()  # not sealed, so that other tasks' questions need not be opened
        of_task = [each.open(self._seals()) for each in stored if named in bytes(each.review)]
        return sorted((each for each in of_task if each and each.review.task == task), key=lambda each: each.at)

    def change(self, question: GoldQuestion | None, request_id: str) -> Change:
        """The change that stores a question, as a part of a larger step; None: removes it."""
        if question is None:
            return Change(self.questions, request_id, None)
        seals = self._seals()
        stored = {**msgspec.structs.asdict(question), "review": msgspec.Raw(b"null")}
        closed = seals.close_words(_StoredQuestion(**stored), question.review.request_id, COMMENT)
        review = msgspec.to_builtins(close_review(question.review, seals))
        words = {name: value for name in ("key", "sealed") if (value := getattr(closed, name)) is not None}
        return Change(
            self.questions,
            request_id,
            msgspec.to_builtins(question) | {"review": review, "comment": closed.comment} | words,
        )

    async def reseal(self, resealing: Resealing) -> None:
        """Seal all questions under the present key, if their former key is known."""
        seals = self._seals()
        for name, generation in (await self.questions.generations()).items():
            raw = (await self.questions.written([name])).get(name)
            stored = self._reader.read(f"the gold question {name}", raw, _StoredQuestion)
            if stored is None or not stored.needs_seal(seals):
                continue
            try:
                review = read_review(bytes(stored.review), seals)
                question = stored.make(review, seals.open_words(stored, review.request_id, COMMENT))
            except (*UNREADABLE, Unsealable) as error:
                resealing.leave(error)
                continue
            resealing.sealed += 1
            with suppress(Stale):  # it was changed or removed meanwhile
                await self.questions.put(name, self.change(question, name).value or {}, generation)

    async def forget(self, requests: Sequence[str]) -> int:
        """Delete the questions made from these requests. Return their number."""
        there = (await self.questions.written()).keys() & set(requests)
        await self.questions.forget(sorted(there))
        return len(there)

    async def draw(
        self, task: str, reviewer: str, lease: HeldQuestion | None, share: float, lease_seconds: float
    ) -> Leased | None:
        """A question that the reviewer has not answered: the one that they hold or, with probability `share`, another
        one, leased to them. The lease ends at whole milliseconds of Redis's clock, like a review's. So a reviewer can't
        tell a question from a review."""
        is_drawn = secrets.randbelow(1 << 30) < share * (1 << 30)
        if lease is None and not is_drawn:
            return None
        questions = {each.review.request_id: each for each in await self.list_questions(task)}
        done = {name.decode() for name in await self._redis.smembers(self._done(task, reviewer))}
        left = [name for name in questions if name not in done and lease in (None, HeldQuestion(task, name))]
        if not left:
            return None
        chosen = secrets.choice(left)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.time()
            pipe.set(f"{HELD}{reviewer}", f"{task}\n{chosen}", px=round(lease_seconds * 1000))
            pipe.set(self._last(chosen, reviewer), task, px=round((lease_seconds + LAST_SECONDS) * 1000))
            now = convert_time((await pipe.execute())[0])
        return Leased(questions[chosen].review, round(now + lease_seconds, 3), True, True)

    async def find_held(self, reviewer: str) -> HeldQuestion | None:
        """The question that this reviewer holds now."""
        raw = await self._redis.get(f"{HELD}{reviewer}")
        return None if raw is None else HeldQuestion(*raw.decode().split("\n", 1))

    async def answer(self, lease: HeldQuestion, reviewer: str, rater: str, metric: Metric, value: Any) -> bool | None:
        """Score a reviewer's answer, once. This reviewer does not get the question again. False if they answered it
        before. None if the question was removed before."""
        question = next(
            (each for each in await self.list_questions(lease.task) if each.review.request_id == lease.request_id), None
        )
        if not await self._end(lease, reviewer):
            return False
        if question is None:
            await self._redis.delete(self._last(lease.request_id, reviewer))
            return None
        answered, expected = measure_badness(metric, value), measure_badness(metric, question.value)
        is_right = value == question.value if None in (answered, expected) else is_bad(answered) == is_bad(expected)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hincrby(f"{ROOT}{lease.task}:gold_answered", rater, 1)
            pipe.hincrby(f"{ROOT}{lease.task}:gold_right", rater, int(is_right))
            await pipe.execute()
        return True

    async def give_back(self, lease: HeldQuestion, reviewer: str) -> None:
        """End the reviewer's lease of a question without an answer. This reviewer does not get it again."""
        await self._end(lease, reviewer)
        await self._redis.delete(self._last(lease.request_id, reviewer))

    async def _end(self, lease: HeldQuestion, reviewer: str) -> bool:
        is_theirs = await self.find_held(reviewer) == lease  # after the lease they may hold another
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.sadd(self._done(lease.task, reviewer), lease.request_id)
            pipe.expire(self._done(lease.task, reviewer), ANSWERED_SECONDS)
            if is_theirs:
                pipe.delete(f"{HELD}{reviewer}")
            return bool((await pipe.execute())[0])

    async def find_last(self, request_id: str, reviewer: str) -> HeldQuestion | None:
        """The gold question from this request that the reviewer got lately; None if they have since got the request as
        a review."""
        raw = await self._redis.get(self._last(request_id, reviewer))
        if raw is not None and await self._redis.hget(f"{ROOT}{raw.decode()}:held", reviewer) == request_id.encode():
            await self._redis.delete(self._last(request_id, reviewer))
            return None
        return None if raw is None else HeldQuestion(raw.decode(), request_id)

    async def list_scores(self, task: str) -> list[GoldScore]:
        """The scores of all reviewers, the worst first."""
        answered = await self._redis.hgetall(f"{ROOT}{task}:gold_answered")
        right = await self._redis.hgetall(f"{ROOT}{task}:gold_right")
        scores = [
            GoldScore(rater=name.decode().replace("\n", " "), answered=int(count), right=int(right.get(name, 0)))
            for name, count in answered.items()
        ]
        return sorted(scores, key=lambda score: score.right / score.answered)

    def _last(self, request_id: str, reviewer: str) -> str:
        return f"{LAST}{reviewer}:{request_id}"

    def _done(self, task: str, reviewer: str) -> str:
        return f"{ROOT}{task}:gold_done:{reviewer}"
