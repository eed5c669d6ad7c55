"""Feedback: judgements on records. It is acknowledged only once stored, and stored once even if it is sent repeatedly.

If the settings have keys, the words of feedback are sealed like kept texts. Words stored before stay readable, and
`reseal` seals them. Tags that name classes stay plain: monitors have no keys and count by them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from monitoring.records import REPORTED, read_place
from monitoring.texts import SEALED_SECONDS, Resealing, Sealable, Seals

log = logging.getLogger(__name__)
STREAM_KEY = "apprentice:feedback"
REDIS_SEALED_KEY = "apprentice:reviews:sealed_by"
"""The last look in Redis that found nothing to seal under the present key (SealingLook)."""
FEEDBACK_SEALED_KEY = "apprentice:archive:feedback_sealed_by"
"""The last such look in the archive's feedback and the stream of feedback."""
WORDS: Mapping[str, Any] = MappingProxyType({"comment": None, "demonstration": None, "tags": None})
STREAM_MAX = 1_000_000
READ_AT_ONCE = 200
FeedbackOutcome = Literal["created", "same", "pending", "conflict", "unknown", "full"]
FEEDBACK_PER_REQUEST_MAX = 200
FEEDBACK_BYTES_PER_REQUEST_MAX = 1 << 20

GIVE = """
local record, judgements, stream, pending, latest = unpack(KEYS)
local name, digest, judgement, giver, young, life_ms, judgements_max = unpack(ARGV, 1, 7)
local stream_max, request, rater, is_named, bytes_max = unpack(ARGV, 8, 12)
local known = {}
for at = 13, #ARGV do known[ARGV[at]] = true end
local index = redis.call('GET', record)
local mine = giver == '*'
if index then
  local caller = string.match(index, '^[^\\n]*\\n([^\\n]*)')
  mine = mine or caller == giver
elseif young == '1' then
  mine = true
end
if not mine or (not index and young ~= '1') then return {'unknown', '', 0, ''} end
if is_named == '0' then
  local last = redis.call('HGET', latest, rater)
  local id, said = string.match(last or '', '^(.*)\\n(.*)$')
  if id and known[said] then return {'same', index or '', 0, id} end
end
local have = redis.call('HGET', judgements, name)
if not have then  -- an earlier release kept it under its name alone
  local caller, alone = string.match(name, '^([^\\t]*)\\t(.*)$')
  have = redis.call('HGET', judgements, alone)
  have = have and string.find(have, '"caller":"' .. caller .. '"', 1, true) and have
end
if have then
  if known[string.match(have, '^[^\\n]*')] then return {'same', index or '', 0, name} end
  return {'conflict', index or '', 0, ''}
end
local bytes = tonumber(redis.call('HGET', latest, 'bytes') or '0') + #judgement
local count = redis.call('HLEN', judgements)
if count >= tonumber(judgements_max) or bytes > tonumber(bytes_max) then return {'full', index or '', 0, ''} end
local first = count == 0 and 1 or 0
redis.call('HSET', judgements, name, digest .. '\\n' .. giver .. '\\n' .. judgement)
redis.call('HSET', latest, rater, name .. '\\n' .. digest, 'bytes', bytes)
redis.call('PEXPIRE', latest, life_ms)
redis.call('PEXPIRE', judgements, life_ms)
if index then
  local rest = string.match(index, '^[^\\n]*\\n(.*)$')
  redis.call('XADD', stream, 'MAXLEN', '~', stream_max, '*', 'request', request, 'index', rest, 'feedback', judgement)
  return {'created', index, first, name}
end
redis.call('SADD', pending, name)
redis.call('PEXPIRE', pending, life_ms)
return {'pending', '', first, name}
"""
"""ARGV ends with the digests of the judgement under all known keys. A stored judgement with one of them is the same."""


RESEAL = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
local had, digest = string.match(ARGV[2], '^[^\\n]*'), string.match(ARGV[3], '^[^\\n]*')
local latest = redis.call('HGETALL', KEYS[2])
for at = 1, #latest, 2 do
  local id, said = string.match(latest[at + 1], '^(.*)\\n(.*)$')
  if said == had then redis.call('HSET', KEYS[2], latest[at], id .. '\\n' .. digest) end
end
"""
"""ARGV: a judgement's name, its bytes as read, and sealed. A judgement that changed meanwhile stays."""


class Feedback(Sealable, frozen=True, kw_only=True, omit_defaults=True):
    """One judgement. `value` is a boolean, a float or a category, as its metric declares; `at` in Unix seconds.

    `named`: the giver chose the id, so a second sending under it is the same feedback or a conflict. Otherwise a
    sending is a repetition if it equals the rater's latest judgement by this metric. `demonstration_digests` has, by
    the judge's name, a keyed digest of the demonstration in each form in which judges compare answers. `reviewed`: an
    operator or admin judged a request that was drawn for review, for which `reviewers` people are asked. `resolves`:
    the giver has seen all of their answers.
    """

    feedback_id: str
    named: bool = True
    metric: str
    value: bool | float | str
    at: float
    caller: str
    rater: str | None = None
    comment: str | None = None
    demonstration: Any = None
    tags: dict[str, str] | None = None
    demonstration_digests: dict[str, str] = msgspec.field(default_factory=dict)
    reviewed: bool = False
    reviewers: int = 1
    resolves: bool = False

    def content(self) -> bytes:
        """The content. A second sending with the same content is the same feedback."""
        content = (self.metric, self.value, self.rater, self.comment, self.demonstration, self.tags)
        return msgspec.json.encode(content, order="sorted")


class SealingLook(msgspec.Struct, frozen=True):
    """A look at the time `at` that found nothing to seal, like all looks since `since`. `mark` is the digest of its
    terms (WordSeals.mark). `held` counts the unreadable texts for which a former key must stay."""

    mark: str
    at: float
    since: float
    held: int = 0

    def is_recent(self, now: float) -> bool:
        """Return whether the next look is not due yet."""
        return now < self.at + SEALED_SECONDS

    def frees_keys(self) -> bool:
        """Return whether former keys can be dropped: for a day no gateway stored words under them."""
        return not self.held and self.at >= self.since + SEALED_SECONDS


@dataclass(frozen=True, slots=True)
class WordSeals:
    """The present keys, and the tags of feedback that stay plain."""

    seals: Seals
    class_tags: Set[str] = frozenset()

    @property
    def mark(self) -> str:
        """The digest of the terms of a look for words to seal: the present key, all known keys, class tags."""
        terms = (self.seals.sealing, sorted(self.seals.names), sorted(self.class_tags))
        return hashlib.sha256(msgspec.json.encode(terms)).hexdigest()

    def read_look(self, raw: Any) -> SealingLook | None:
        """The last look, as Redis stores it; None if it sealed something or had other terms."""
        try:
            look = msgspec.json.decode(raw or b"", type=SealingLook)
        except msgspec.DecodeError:
            return None
        return look if look.mark == self.mark else None

    def write_look(self, last: SealingLook | None, resealing: Resealing, now: float) -> bytes:
        """The JSON of a look that found nothing to seal; `last` is the one before."""
        since = now if last is None or last.held else last.since
        return msgspec.json.encode(SealingLook(self.mark, now, since, resealing.held))

    def close(self, feedback: Feedback, request: str) -> Feedback:
        """The judgement with its words sealed under the present key, if there is one."""
        closed = self.seals.close_words(feedback, _name(feedback, request), WORDS)
        return closed if closed.key is None else msgspec.structs.replace(closed, tags=self._plain_tags(feedback))

    def _plain_tags(self, feedback: Feedback) -> dict[str, str] | None:
        return {name: tag for name, tag in (feedback.tags or {}).items() if name in self.class_tags} or None

    def read(self, feedback: Feedback, request: str) -> Feedback:
        """The judgement with its words, or without them if they can't be opened."""
        return self.seals.read_words(feedback, _name(feedback, request), WORDS)

    def reseal(self, feedback: Feedback, request: str) -> Feedback:
        """The judgement with its words under the present key and class tags plain; the same object if unchanged. Raises
        Unsealable."""
        if self.seals.sealing is None:
            return feedback
        opened = self.seals.open_words(feedback, _name(feedback, request), WORDS)
        is_same = feedback.key == self.seals.sealing and feedback.tags == self._plain_tags(opened)
        return feedback if is_same else self.close(opened, request)


def _name(feedback: Feedback, request: str) -> str:
    return f"{request}\n{feedback.caller}\n{feedback.feedback_id}"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of a feedback. `task` and `version` come from its record; None while that is not yet visible.

    `reported`: another gateway served the request.
    """

    outcome: FeedbackOutcome
    feedback_id: str = ""
    first: bool = False
    task: str | None = None
    version: str | None = None
    reported: bool = False

    @property
    def is_stored(self) -> bool:
        """True if the judgement is stored, by this sending or an earlier one."""
        return self.outcome in ("created", "same", "pending")


class FeedbackStore:
    """Feedback in Redis, by request, and the stream in which detectors read it."""

    def __init__(
        self,
        redis: Redis,
        retention_seconds: int,
        stream_max: int,
        request_bytes_max: int = FEEDBACK_BYTES_PER_REQUEST_MAX,
        seals: Callable[[], WordSeals] = lambda: WordSeals(Seals({}, None)),
    ) -> None:
        """`request_bytes_max` bounds all judgements of one request together, as they are stored. `seals` gives the
        present keys."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._retention_ms = retention_seconds * 1000
        self._request_bytes_max = request_bytes_max
        self._stream_max = stream_max
        self._seals = seals
        self._give = redis.register_script(GIVE)

    async def give(self, request_id: str, feedback: Feedback, giver: str, young: bool) -> Receipt:
        """Store a judgement of a request. `giver` is the caller whose requests it may judge, or `*` for all.

        `young`: the id is genuine and within the retention, so its record may still come, for instance from another
        gateway's spool. The feedback then waits for it. Raises RedisError if it could not be stored; then do not
        acknowledge it.
        """
        own = f"{feedback.caller}\t"  # ids belong to a caller: else one would learn what another has said
        words = self._seals()
        closed, digests = words.close(feedback, request_id), words.seals.make_digests(feedback.content())
        room = 1 + feedback.reviewed  # twice the room for reviews: no caller can prevent them by filling it
        status, index, first, feedback_id = await self._give(
            keys=[
                f"apprentice:record:{request_id}",
                f"apprentice:feedback:{request_id}",
                STREAM_KEY,
                f"apprentice:feedback:{request_id}:pending",
                f"apprentice:feedback:{request_id}:latest",
            ],
            args=[
                own + feedback.feedback_id,
                digests[closed.key],
                msgspec.json.encode(closed),
                giver,
                int(young),
                self._retention_ms,
                FEEDBACK_PER_REQUEST_MAX * room,
                self._stream_max,
                request_id,
                f"{feedback.metric}\t{feedback.caller}\t{feedback.rater or ''}",  # raters of two keys may share a name
                int(feedback.named),
                self._request_bytes_max * room,
                *digests.values(),
            ],
        )
        _, of = read_place(index)
        reported, name = of.purpose == REPORTED, feedback_id.decode().removeprefix(own)
        return Receipt(status.decode(), name, bool(first), of.task or None, of.version or None, reported)

    async def of(self, request_id: str) -> list[Feedback]:
        """All feedback on a request, oldest first."""
        return (await self.of_each([request_id]))[0]

    async def of_each(self, request_ids: Sequence[str]) -> list[list[Feedback]]:
        """All feedback on each of these requests, oldest first."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for request_id in request_ids:
                pipe.hgetall(f"apprentice:feedback:{request_id}")
            entries, words = await pipe.execute(), self._seals()
        return [
            sorted(read_entries(of.values(), request, words), key=lambda judgement: judgement.at)
            for request, of in zip(request_ids, entries, strict=True)
        ]

    async def reseal(self, resealing: Resealing) -> None:
        """Seal the words of all feedback under the present key, unless their own key is unknown."""
        words = self._seals()
        async for key in self._redis.scan_iter(match=f"{STREAM_KEY}:*", count=READ_AT_ONCE, _type="hash"):
            request = key.decode().removeprefix(f"{STREAM_KEY}:")
            if request.endswith(":latest"):
                continue
            for name, raw in (await self._redis.hgetall(key)).items():
                if (entry := resealing.change(raw, partial(_reseal_entry, request=request, words=words))) is not raw:
                    await self._redis.eval(RESEAL, 2, key, f"{STREAM_KEY}:{request}:latest", name, raw, entry)


def read_entries(entries: Iterable[bytes], request: str, words: WordSeals) -> list[Feedback]:
    """The judgements of a request from Redis's entries. One that can't be read is logged, and left out."""
    judgements = list[Feedback]()
    for entry in entries:
        try:
            judgement = msgspec.json.decode(entry.split(b"\n", 2)[2], type=Feedback)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, IndexError) as error:
            log.error("a judgement of the request %s can't be read, and is left out: %s", request, error)
            continue
        judgements.append(words.read(judgement, request))
    return judgements


def _reseal_entry(raw: bytes, request: str, words: WordSeals) -> bytes:
    """A judgement's entry in Redis with its words under the present key, or unchanged. Raises Unsealable."""
    _, giver, body = raw.split(b"\n", 2)
    feedback = msgspec.json.decode(body, type=Feedback)
    if (after := words.reseal(feedback, request)) is feedback:
        return raw
    digests = words.seals.make_digests(words.read(after, request).content())
    return b"\n".join((digests[after.key].encode(), giver, msgspec.json.encode(after)))


class Coverage:
    """Numbers of requests that this gateway answered, and that were judged through it, by task, since its start."""

    def __init__(self) -> None:
        self._served: dict[str, int] = {}
        self._judged: dict[str, int] = {}

    def served(self, task: str) -> None:
        """Count an answered request of the task."""
        self._served[task] = self._served.get(task, 0) + 1

    def judged(self, task: str) -> None:
        """Count a request's first feedback."""
        self._judged[task] = self._judged.get(task, 0) + 1

    def ratios(self) -> dict[tuple[str, ...], float]:
        """The judged share of served requests, by task; above 1 if another gateway served some of the judged ones."""
        return {(task,): self._judged.get(task, 0) / served for task, served in self._served.items()}


def handle_of(secret: bytes, caller: str, kind: Literal["session", "subject", "answer", "source"], name: str) -> str:
    """The keyed name of a caller's session, subject or foreign answer id, under which its latest request is found.

    A `source` is the name that another gateway gave to a request which it served and reported.
    """
    return hashlib.blake2b(f"{caller}\n{kind}\n{name}".encode(), key=secret, digest_size=16).hexdigest()
