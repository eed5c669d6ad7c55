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
"""For so long after its lease an answer is known as one to a gold question: it was late, or is sent again."""
ANSWERED_SECONDS = 366 * 86_400
"""For so long it is known who has answered which gold question."""


class GoldQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """A review with its known judgement: the value of the task's metric, by whom it is known, and since when."""

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
        """Make the question; None where its review can't be read."""
        review = open_review(bytes(self.review), seals)
        if review is None:
            return None
        return self.make(review, seals.read_words(self, review.request_id, COMMENT))

    def make(self, review: Review, words: _StoredQuestion) -> GoldQuestion:
        """Make the question of its review and itself with its words."""
        return GoldQuestion(review=review, value=self.value, by=self.by, at=self.at, comment=words.comment)

    def needs_seal(self, seals: Seals) -> bool:
        """Return whether a part of it does not lie under the present key, if there is one."""
        is_elsewhere = self.comment is not None or (self.sealed is not None and self.key != seals.sealing)
        return (is_elsewhere and seals.sealing is not None) or not is_sealed_by(bytes(self.review), seals)


class GoldScore(msgspec.Struct, frozen=True, kw_only=True):
    """A reviewer's answers to gold questions, and how many of them were right."""

    rater: str
    answered: int
    right: int


class HeldQuestion(NamedTuple):
    """The gold question that a reviewer has, and its task."""

    task: str
    request_id: str


class GoldStore:
    """The gold questions in Redis. Every method raises RedisError."""

    def __init__(self, redis: Redis, seals: Callable[[], Seals] = lambda: Seals({}, None)) -> None:
        """`seals` gives the present keys of texts."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.questions = ObjectStore(redis, "gold")
        self._reader = LenientReader()
        self._seals = seals

    async def list_questions(self, task: str) -> list[GoldQuestion]:
        """The task's questions that can be read, the oldest first."""
        stored = await self._reader.read_all(self.questions, "the gold question", _StoredQuestion)
        named = f'"task":"{task}"'.encode()  # plain in a sealed review too: others need not be opened
        of_task = [each.open(self._seals()) for each in stored if named in bytes(each.review)]
        return sorted((each for each in of_task if each and each.review.task == task), key=lambda each: each.at)

    def change(self, question: GoldQuestion | None, request_id: str) -> Change:
        """A question's new value as a part of a greater step; None: it is removed."""
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
        """Seal all questions under the present key, as far as their own is known."""
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
        """Remove the questions that are made of these requests; their number."""
        there = (await self.questions.written()).keys() & set(requests)
        await self.questions.forget(sorted(there))
        return len(there)

    async def draw(
        self, task: str, reviewer: str, lease: HeldQuestion | None, share: float, lease_seconds: float
    ) -> Leased | None:
        """A question for a reviewer who has not answered it: the one that the reviewer has, or with this probability
        another one, which is then theirs for the lease. Its end has whole milliseconds of Redis's clock, as a review's
        has: a reviewer can't tell one from the other."""
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
        """The question that this reviewer has now."""
        raw = await self._redis.get(f"{HELD}{reviewer}")
        return None if raw is None else HeldQuestion(*raw.decode().split("\n", 1))

    async def answer(self, lease: HeldQuestion, reviewer: str, rater: str, metric: Metric, value: Any) -> bool | None:
        """Score a reviewer's answer. The question is not given to this reviewer again. False where it was answered
        before: it is scored once. None where it was removed before."""
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
        """A question is no longer this reviewer's, who has not answered it, and is not given to them again."""
        await self._end(lease, reviewer)
        await self._redis.delete(self._last(lease.request_id, reviewer))

    async def _end(self, lease: HeldQuestion, reviewer: str) -> bool:
        is_theirs = await self.find_held(reviewer) == lease  # after its lease they may have another
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.sadd(self._done(lease.task, reviewer), lease.request_id)
            pipe.expire(self._done(lease.task, reviewer), ANSWERED_SECONDS)
            if is_theirs:
                pipe.delete(f"{HELD}{reviewer}")
            return bool((await pipe.execute())[0])

    async def find_last(self, request_id: str, reviewer: str) -> HeldQuestion | None:
        """The gold question that the reviewer was given lately with this request; None where they have been given it as
        a review since."""
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
