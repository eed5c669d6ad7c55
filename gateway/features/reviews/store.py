"""Reviews in Redis: requests that were drawn for people to judge, with their texts, and the budget of a week.

If a key is set, texts are sealed like kept texts. Older plain texts stay readable, and `reseal` seals them.

Texts are deleted once a review is answered or the retention is over. Texts of a wrong answer stay for a second
retention, to retrain the version. All times are by Redis's clock, so that the gateways' clocks do not matter.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import msgspec
from redis.asyncio import Redis

from gateway.features.reviews import scripts
from gateway.state.audited_step import AuditedStep
from gateway.state.redis import replace_value
from gateway.state.resealing import seal_list
from monitoring.text_stream import list_names_of
from monitoring.texts import Conversation, KeptText, Resealing, Sealable, Seals, TextRow, Unsealable
from serving.object_store import UNREADABLE

log = logging.getLogger(__name__)
WAITING_MAX = 10_000
"""Reviews of a task that wait; more push the oldest ones out."""
DELETED_AT_ONCE = 500
"""Texts that are deleted before others have Redis."""
LOOKED_AT_ONCE = 200
"""Reviews whose keys are read in one step."""
ROOT = "apprentice:reviews:"
TEXTS = "apprentice:review:"
KEPT_ON = "apprentice:reviewed:"
ANSWERED = "apprentice:answered:"
GIVEN = "apprentice:given:"
PLACE_BYTES_MAX = 80
"""The first line of a review's texts is no longer: its task, and how many are to review it."""
SHARED_MAX = 2000
"""Requests of a task that several have answered: the newest of which agreement is measured."""
UNREAD = "Its texts can't be read."
"""The reason of a skip if a gateway can't read the review. Shown also in place of a reason that can't be read."""
REASON = MappingProxyType({"reason": ""})


class Review(Conversation, frozen=True, kw_only=True):
    """A request as a reviewer sees it: its texts, as its caller sent them, and its answer.

    `at` is in Unix seconds, `probability` is the probability of its draw. `caller` is the key's public part. `fields`
    are the fields in the task's contract. `reviewers` is the number of people who judge it independently.
    """

    request_id: str
    task: str
    version: str | None
    pool: str | None
    reason: str | None
    at: float
    probability: float
    caller: str
    endpoint: str
    fields: list[str] = msgspec.field(default_factory=list)
    reviewers: int = 1


class SealedReview(msgspec.Struct, frozen=True, kw_only=True):
    """A sealed review, as it is stored. The key's name comes first, so that it can be read without the texts."""

    key: str
    sealed: TextRow
    probability: float
    fields: list[str]
    reviewers: int


SEALED_START = b'{"key":"'
SEALED_START_BYTES_MAX = len(SEALED_START) + 64
IN_BOTH = tuple(name for name in KeptText.__struct_fields__ if name in Review.__struct_fields__)
BESIDE = ("probability", "fields", "reviewers")


class DrawnReview(NamedTuple):
    """The task of a drawn request, and the number of its reviewers."""

    task: str
    reviewers: int


class Rater(NamedTuple):
    """The rater's name, and the public part of the key."""

    name: str
    caller: str


class KeptReview(NamedTuple):
    """The outcome for a drawn request: kept, stored before, erased, or over the week's budget, which stays spent for
    `spent_seconds`. `dropped` older ones were deleted for it; `expired` ones had waited longer than the retention."""

    outcome: Literal["kept", "same", "spent", "forgotten"]
    spent_seconds: float
    dropped: int
    expired: int


class Leased(NamedTuple):
    """A review that a reviewer holds `until` a time (Unix seconds). `new`: they did not hold it before. `entered`: the
    audit has the entry that they got it."""

    review: Review
    until: float
    new: bool
    entered: bool = False


class NoneLeft(NamedTuple):
    """No review is left for this reviewer. The numbers of waiting ones: `leased` by others, `skipped` by this reviewer,
    `sealed` under keys that this gateway lacks."""

    leased: int
    skipped: int
    sealed: int = 0


class Deleted(NamedTuple):
    """The numbers of deleted reviews: waiting ones, and ones judged wrong whose texts were still stored."""

    waiting: int
    answered: int


class Skip(Sealable, frozen=True, kw_only=True, omit_defaults=True):
    """A review that was given back: its request, the reviewer, the reason, and the time (Unix seconds)."""

    request_id: str
    by: str
    reason: str
    at: float = 0.0


class Counts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of a task's reviews, now and in the last seven days. `expired_now` is the number that this count found
    expired. `oldest_at` is the time at which the oldest waiting one was stored, in Unix seconds."""

    waiting: int
    leased: int
    oldest_at: float | None
    expired_now: int
    drawn: int
    answered: int
    skipped: int
    expired: int
    skips: list[Skip]


class ReviewStore:
    """The reviews in Redis. Every method raises RedisError; retentions and leases are in seconds."""

    def __init__(
        self, redis: Redis, now: Callable[[], float] | None = None, seals: Callable[[], Seals] = lambda: Seals({}, None)
    ) -> None:
        """`now` returns the Unix time in seconds; None: use Redis's clock. `seals` returns the present keys."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.now = now
        self._seals = seals
        self._keep = redis.register_script(scripts.KEEP)
        self._next = redis.register_script(scripts.NEXT)
        self._skip = redis.register_script(scripts.SKIP)
        self._answer = redis.register_script(scripts.ANSWER)
        self._delete = redis.register_script(scripts.DELETE)
        self._count = redis.register_script(scripts.COUNT)

    async def keep(
        self,
        review: Review,
        budget: int,
        retention_seconds: float,
        waiting_max: int = WAITING_MAX,
        handles: Sequence[str] = (),
    ) -> KeptReview:
        """Store a drawn request for a reviewer, if the budget of the last seven days has room, and the request was not
        erased meanwhile. `handles` are those of its record."""
        texts = place_of(review) + b"\n" + msgspec.json.encode(close_review(review, self._seals()))
        args = [review.request_id, texts, _ms(retention_seconds), waiting_max, budget]
        args += [_ms(review.at), list_names_of(review.request_id, review.caller, handles)]
        outcome, spent_ms, dropped, expired = await self._do(self._keep, review.task, args)
        return KeptReview(outcome.decode(), int(spent_ms) / 1000, int(dropped), int(expired))

    async def next(self, task: str, reviewer: str, lease_seconds: float, retention_seconds: float) -> Leased | NoneLeft:
        """Lease the review that has waited longest, or again the one that this reviewer holds. A damaged review is
        skipped for this reviewer. A review under an unknown key stays for a gateway that has the key."""
        args = [reviewer, _ms(lease_seconds), _ms(retention_seconds), *self._seals().names]
        while True:
            texts, until, other, entered, name = await self._do(self._next, task, args)
            if not name:
                return NoneLeft(int(until), int(other), int(entered))
            review = self._open(texts)
            if review is not None:
                return Leased(review, int(until) / 1000, bool(other), bool(entered))
            request_id = name.decode(errors="replace")
            log.error("a review of %s can't be read, and is skipped: %s", task, request_id)
            await self.skip(task, Skip(request_id=request_id, by=reviewer, reason=UNREAD), retention_seconds)

    async def find_held(self, tasks: Iterable[str], reviewer: str) -> set[str]:
        """The tasks of which this reviewer holds a review now."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for task in (listed := list(tasks)):
                pipe.hexists(f"{ROOT}{task}:held", reviewer)
            return {task for task, is_held in zip(listed, await pipe.execute(), strict=True) if is_held}

    async def note_given(self, reviewer: str, request_id: str, known_seconds: float) -> None:
        """Note that the audit has the entry that a reviewer got a review."""
        await self._redis.set(f"{GIVEN}{reviewer}:{request_id}", 1, px=_ms(known_seconds))

    async def was_given(self, reviewer: str, request_id: str) -> bool:
        """Return whether a reviewer got a review, by `note_given`."""
        return bool(await self._redis.exists(f"{GIVEN}{reviewer}:{request_id}"))

    async def skip(self, task: str, skip: Skip, retention_seconds: float) -> Literal["skipped", "gone", "other"]:
        """Give a lease back. This reviewer does not get the review again. `gone`: the review does not wait; `other`: it
        is not leased to this reviewer."""
        closed = self._seals().close_words(skip, skip.request_id, REASON)
        args = [skip.request_id, skip.by, msgspec.json.encode(closed), _ms(retention_seconds)]
        outcome: bytes = await self._do(self._skip, task, args)
        return outcome.decode()  # type: ignore[return-value]

    async def task_of(self, request_id: str) -> str | None:
        """The task of a request that waits for review; None if it does not wait."""
        texts = await self._redis.getrange(f"{TEXTS}{request_id}", 0, PLACE_BYTES_MAX)
        return _read_place(texts).task if texts else None

    async def find_drawn(self, request_id: str) -> DrawnReview | None:
        """The task and the number of reviewers of a request that waits for review, or whose review was answered; else
        None."""
        texts = await self._redis.getrange(f"{TEXTS}{request_id}", 0, PLACE_BYTES_MAX)
        texts = texts or await self._redis.get(f"{ANSWERED}{request_id}")
        return _read_place(texts) if texts else None

    async def answer(
        self,
        task: str,
        request_id: str,
        keep_on: bool,
        retention_seconds: float,
        known_seconds: float | None = None,
        rater: Rater | None = None,
    ) -> bool:
        """Note a rater's answer to a review. After the last reviewer's answer it no longer waits. Its texts are then
        deleted or, with `keep_on`, stored for a second retention. The answer is known for `known_seconds` (None: the
        retention). False if the review did not wait for this rater.
        """
        known_for = retention_seconds if known_seconds is None else known_seconds
        args = [request_id, int(keep_on), _ms(retention_seconds), _ms(known_for)]
        args += [*(rater or Rater("", "")), SHARED_MAX]
        return bool(await self._do(self._answer, task, args))

    async def list_shared(self, task: str) -> list[str]:
        """The ids of requests that several raters have answered, the oldest first."""
        return [name.decode() for name in await self._redis.zrange(f"{ROOT}{task}:shared", 0, -1)]

    async def is_shared(self, task: str, request_id: str) -> bool:
        """Return whether several raters have answered a request."""
        return await self._redis.zscore(f"{ROOT}{task}:shared", request_id) is not None

    async def kept_on(self, request_id: str) -> Review | None:
        """A review that was judged wrong, with its texts; None if it was deleted or can't be read."""
        texts = await self._redis.get(f"{KEPT_ON}{request_id}")
        return None if texts is None else self._open(texts)

    async def has_texts(self, request_id: str) -> bool:
        """Return whether a review keeps the texts of a request."""
        return bool(await self._redis.exists(f"{TEXTS}{request_id}", f"{KEPT_ON}{request_id}"))

    async def find_texts(self, request_id: str) -> Review | None:
        """A waiting review, or one judged wrong, with its texts; None if it was deleted or can't be read."""
        for texts in await self._redis.mget(f"{TEXTS}{request_id}", f"{KEPT_ON}{request_id}"):
            if texts is not None:
                return self._open(texts)
        return None

    async def reseal(self, task: str, resealing: Resealing) -> None:
        """Seal the task's texts and reasons of skips under the present key, if their former key is known."""
        seals = self._seals()
        if seals.sealing is None:
            return
        await seal_list(self._redis, f"{ROOT}{task}:skips", partial(_reseal_skip, seals=seals), resealing)
        for kind, root in (("waiting", TEXTS), ("kept_on", KEPT_ON)):  # this order meets reviews that move meanwhile
            names = await self._redis.zrange(f"{ROOT}{task}:{kind}", 0, -1)
            for at in range(0, len(names), LOOKED_AT_ONCE):
                keys = [root + name.decode() for name in names[at : at + LOOKED_AT_ONCE]]
                async with self._redis.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.getrange(key, 0, PLACE_BYTES_MAX + SEALED_START_BYTES_MAX)
                    starts = await pipe.execute()
                for key, start in zip(keys, starts, strict=True):
                    if start and not is_sealed_by(start.partition(b"\n")[2], seals):
                        await self._reseal_one(key, seals, resealing)

    async def _reseal_one(self, key: str, seals: Seals, resealing: Resealing) -> None:
        if (texts := await self._redis.get(key)) is None:
            return
        try:
            review = read_review(texts.partition(b"\n")[2], self._seals())
        except (*UNREADABLE, Unsealable) as error:
            resealing.leave(error)
            return
        resealing.sealed += 1
        sealed = place_of(review) + b"\n" + msgspec.json.encode(close_review(review, seals))
        await replace_value(self._redis, key, texts, sealed)

    async def delete(self, task: str, request_id: str | None, step: AuditedStep, always: bool = False) -> Deleted:
        """Delete the texts of one request, or of all requests of the task, whether they wait or were judged wrong. Each
        atomic step of at most DELETED_AT_ONCE texts has its own audit entry. With `always` there is an entry even if
        nothing was deleted."""
        waiting, answered, count = 0, 0, 1
        fields = {"task": task, "request_id": request_id, "waiting": "@waiting", "answered": "@answered"}
        while count:
            [noted] = step.note("review.delete", task, before=fields)
            args = [request_id or "", DELETED_AT_ONCE, noted.name, msgspec.json.encode(noted.value), int(always)]
            gone, judged, count = map(int, await self._do(self._delete, task, args, noted.object_store.values))
            await step.enter()
            waiting, answered, always = waiting + gone, answered + judged, False
        return Deleted(waiting, answered)

    async def forget_skips(self) -> None:
        """Delete the reasons of all skips, also of tasks without settings: they may quote the text of any request."""
        async for key in self._redis.scan_iter(match=f"{ROOT}*:skips", count=DELETED_AT_ONCE):
            await self._redis.delete(key)

    async def find_tasks(self, requests: Sequence[str]) -> dict[str, str]:
        """The tasks, by request, of those requests whose texts are stored, because they wait or were judged wrong."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for request in requests:
                pipe.getrange(f"{TEXTS}{request}", 0, PLACE_BYTES_MAX)
                pipe.getrange(f"{KEPT_ON}{request}", 0, PLACE_BYTES_MAX)
            beginnings = await pipe.execute()
        places = zip(requests, beginnings[::2], beginnings[1::2], strict=True)
        return {request: _read_place(first or second).task for request, first, second in places if first or second}

    async def counts(self, retention_seconds: Mapping[str, float]) -> dict[str, Counts]:
        """Count the reviews of these tasks. Reviews that have waited longer than the task's retention are deleted."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for task, seconds in retention_seconds.items():
                await self._do(self._count, task, [_ms(seconds)], client=pipe)
            counts = [_read_counts(raw, self._seals()) for raw in await pipe.execute()]
            return dict(zip(retention_seconds, counts, strict=True))

    def _open(self, texts: bytes) -> Review | None:
        return open_review(texts.partition(b"\n")[2], self._seals())

    async def _do(self, script: Any, task: str, args: list[Any], *more_keys: str, client: Any = None) -> Any:
        now = -1 if self.now is None else _ms(self.now())
        return await script(keys=[f"{ROOT}{task}:", *more_keys], args=[now, *args], client=client)


def _read_counts(raw: list[Any], seals: Seals) -> Counts:
    (waiting, leased, oldest, *numbers), skips = raw
    expired_now, drawn, answered, skipped, expired = map(int, numbers)
    return Counts(
        waiting=int(waiting),
        leased=int(leased),
        oldest_at=float(oldest) / 1000 if oldest else None,
        expired_now=expired_now,
        drawn=drawn,
        answered=answered,
        skipped=skipped,
        expired=expired,
        skips=[skip for raw in skips if (skip := _skip(raw, seals)) is not None],
    )


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def place_of(review: Review) -> bytes:
    """The first line of a review's texts."""
    return f"{review.task}\t{review.reviewers}".encode() if review.reviewers > 1 else review.task.encode()


def _read_place(texts: bytes) -> DrawnReview:
    task, _, reviewers = texts.split(b"\n", 1)[0].decode(errors="replace").partition("\t")
    return DrawnReview(task, int(reviewers) if reviewers.isdecimal() else 1)


def close_review(review: Review, seals: Seals) -> Review | SealedReview:
    """The stored form of a review: sealed under the present key, if there is one."""
    if seals.sealing is None:
        return review
    text = KeptText(request=review.request_id, **{name: getattr(review, name) for name in IN_BOTH})
    beside = {name: getattr(review, name) for name in BESIDE}
    return SealedReview(key=seals.sealing, sealed=seals.close(text), **beside)


def open_review(stored: bytes, seals: Seals) -> Review | None:
    """The review from its stored form, sealed or not; None if it can't be read."""
    try:
        return read_review(stored, seals)
    except (*UNREADABLE, Unsealable):
        return None


def read_review(stored: bytes, seals: Seals) -> Review:
    """The review from its stored form. Raises UNREADABLE and Unsealable."""
    if not stored.startswith(SEALED_START):
        return msgspec.json.decode(stored, type=Review)
    sealed = msgspec.json.decode(stored, type=SealedReview)
    text = seals.open(sealed.sealed)
    beside = {name: getattr(sealed, name) for name in BESIDE}
    return Review(request_id=text.request, **{name: getattr(text, name) for name in IN_BOTH}, **beside)


def is_sealed_by(stored: bytes, seals: Seals) -> bool:
    """Return whether the stored form begins with the present key's name. True if there is no key."""
    return seals.sealing is None or stored.startswith(SEALED_START + seals.sealing.encode() + b'"')


def _skip(raw: bytes, seals: Seals) -> Skip | None:
    """Read a stored skip; None if it can't be read."""
    at, _, written = raw.partition(b"\n")
    try:
        skip = msgspec.json.decode(written, type=Skip)
        skip = seals.read_words(skip, skip.request_id, REASON)
        return msgspec.structs.replace(skip, at=float(at) / 1000, reason=UNREAD if skip.key else skip.reason, key=None)
    except (*UNREADABLE, ValueError):
        return None


def _reseal_skip(raw: bytes, seals: Seals) -> bytes:
    """Raises Unsealable, and msgspec's errors."""
    at, _, written = raw.partition(b"\n")
    skip = msgspec.json.decode(written, type=Skip)
    after = seals.reseal_words(skip, skip.request_id, REASON)
    return raw if after is skip else at + b"\n" + msgspec.json.encode(after)
