"""Records: all data about a finished request, and their stream. docs/reference/records.md has the comments."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis

STREAM_KEY = "apprentice:records"
REPORTED_STREAM_KEY = "apprentice:reported"
"""Records of requests that other gateways served. Their own stream keeps them from displacing our records."""
REPORTED = "reported"
"""The purpose of records of requests that another gateway served."""
REPORTED_MAX = 250_000


OUTCOMES: Mapping[str, str] = MappingProxyType(
    {
        "ok": "The caller got a whole answer.",
        "refused": "An error with a status below 500.",
        "failed": "An error with a status of 500 and up.",
        "truncated": "The engine failed inside a stream that had begun.",
        "cancelled": "The caller went before the end.",
    }
)
"""The ways in which a request ends."""


class AttemptRecord(msgspec.Struct):
    """One attempt at an engine."""

    pool: str  # Its pool.
    replica: str  # Its replica.
    version: str | None  # Its version; null: a base model.
    fault: str | None  # The fault, or the check that rejected it; null: it answered.
    seconds: float  # Until its answer began (streamed), was whole, or failed.


class PairRecord(msgspec.Struct, rename={"served_fingerprint": "served_stack"}):
    """On a shadow's record: the answer that the caller got, and the judgement of both answers."""

    version: str | None  # Version that answered the caller; empty: general.
    contract_kept: bool | None = None  # Whether its answer keeps its contract.
    text_digest: str | None = None  # Keyed digest of its text.
    arm: str | None = None  # The shadow's arm, `version` or `general`; null: a version on trial.
    judge: str | None = None  # `exact`, `normal`, `fields:NAME,…` or `model`.
    digest: str | None = None  # Keyed digest of the shadow's answer, as judged; empty: no such form.
    served_digest: str | None = None  # The same of the caller's answer.
    right: bool | None = None  # Whether the shadow's answer is right; null: not judged.
    served_right: bool | None = None  # The same of the caller's answer.
    score: float | None = None  # The judge's guess that the shadow's answer is right, 0 to 1.
    served_score: float | None = None  # The same of the caller's answer.
    judge_usd: float | None = None  # Cost of a judging model; part of `cost_usd`.
    judge_digest: str | None = None  # `sha256:` of the judging model and its prompt.
    judge_answered: bool | None = None  # Whether it gave a judgement; null: not asked.
    served_fingerprint: str | None = None  # The `stack` of the caller's answer.
    caller: str | None = None  # Public part of the request's key.


class FindingRecord(msgspec.Struct, kw_only=True):
    """The result of one check of one request."""

    check: str = ""  # The check; `override` of a rule that is observed or adds a message.
    mode: str  # `observe` or `enforce`, at that time.
    fired: bool  # Whether it spoke against the adapter or its answer.
    score: float | None = None  # In the check's own unit; null: no score, or no model.
    threshold: float | None = None  # The score's bound; of `holdout` and `degraded` the share.
    neighbours: list[str] = []  # Ids of the nearest training prompts.
    note: str = ""  # Anything else, such as why it could not judge.
    version: str | None = None  # Version whose models were asked, or whose answer it is.


class Record(
    msgspec.Struct,
    kw_only=True,
    omit_defaults=False,
    rename={"requested_model": "model_asked", "fingerprint": "stack"},
):
    """All known data of a request. It is filled along the walk, and does not change once it is settled.

    Times are in seconds, cost in US dollars; None means unknown or not applicable, never zero.
    """

    id: str  # A UUIDv7 with a short MAC: `x-request-id`.
    at: float  # Unix time when its body was read.
    endpoint: str  # `chat`, `completions`, `responses`, `messages` or `embeddings`.
    caller: str  # Public part of the key; empty for a shadow.
    requested_model: str  # `model` in its body, as sent.
    purpose: str = "serve"  # `serve`, `shadow`, `evaluation` or `reported`.
    shadow_of: str | None = None  # Id of the request that it copies.
    stream: bool = False  # Whether a stream was requested.
    task: str | None = None  # Its task; null: a pool was named, or nothing chosen.
    led_to: str | None = None  # Version that the alias, a pin or a rule led to, whatever answered.
    version: str | None = None  # Version chosen last; null: a base model.
    pool: str | None = None  # Pool chosen last.
    replica: str | None = None  # Replica chosen last.
    reason: str | None = None  # Its [reason](reasons.md); null: nothing was chosen.
    outcome: str = "failed"  # How it ended; see below.
    status: int = 500  # HTTP status; 499 where the caller went first.
    error_code: str | None = None  # Code of the caller's [error](errors.md).
    finish_reason: str | None = None  # Why the engine stopped, in its words.
    attempts: list[AttemptRecord] = []  # Attempts at engines, in order.
    continued: int = 0  # Times that another engine continued a broken answer.
    skipped_events: int = 0  # Unreadable events of a stream after commit.
    general_prompt: bool = False  # Whether the general prompt was added.
    dropped: list[str] = []  # Fields that the engine did not get.
    override_id: str | None = None  # Rule that decided or refused.
    findings: list[FindingRecord] = []  # Results of the checks, in order.
    fallback_capped: bool = False  # Whether a fallback was capped.
    probability: float = 1.0  # Probability of the draws that led there.
    shadow_probability: float | None = None  # Probability of a shadow; null: not watched.
    shadowed: bool = False  # Whether both arms were to answer.
    review_probability: float | None = None  # Probability of a review; null: not watched.
    reviewed: bool = False  # Whether it was drawn for review.
    language: str | None = None  # The caller's `metadata.language` (ISO 639).
    policy_generation: int = 0  # Generation of the policy.
    adapter_digest: str | None = None  # `sha256:` of the adapter's configuration and tensors.
    fingerprint: str | None = None  # `sha256:` of adapter, base, engine build, dtype, chat template and manifest.
    request_digest: str | None = None  # Keyed digest of the engine's body, without `cache_salt`.
    answer_digest: str | None = None  # Keyed digest of the answer's bytes.
    text_digest: str | None = None  # Keyed digest of the answer's text, where it is needed.
    contract_kept: bool | None = None  # Whether the text keeps the contract; null: not checked.
    agrees: bool | None = None  # Whether a shadow's text equals the caller's.
    pair: PairRecord | None = None  # Of a shadow: the caller's answer, and both judged.
    answer_id: str | None = None  # `id` in the answer's body.
    handles: list[str] = []  # Keyed digests of session, subject and foreign id, for feedback.
    prompt_tokens: int | None = None  # As the engine counted.
    cached_prompt_tokens: int | None = None  # Of these, from the engine's cache.
    completion_tokens: int | None = None  # As the engine counted, else chunks.
    cost_usd: float | None = None  # Cost by the pool's price; null: unknown.
    wasted_usd: float | None = None  # Cost of attempts whose answer nobody got.
    wasted_tokens: int | None = None  # Tokens of answers that a check rejected.
    saving_usd: float | None = None  # The same tokens at general's price, less the cost.
    duration_seconds: float = 0.0  # From the request's head to the answer's end.
    overhead_seconds: float | None = None  # Time until commit without waits for body, place and engine.
    first_token_seconds: float | None = None  # To the first token, streamed.
    token_seconds: float | None = None  # Mean time of a token; in a stream, after the first.


FLUSH = """
local joined = {}
for _, record in ipairs(cmsgpack.unpack(ARGV[5])) do
  local id, index, payload, handles = record[1], record[2], record[3], record[4]
  local place = 'apprentice:record:' .. id
  if redis.call('EXISTS', place) == 0 then
    local entry = redis.call('XADD', KEYS[1], '*', 'id', id, 'handles', handles, 'record', payload)
    redis.call('SET', place, entry .. '\\n' .. index, 'PX', ARGV[1])
    for handle in string.gmatch(handles, '[^\\n]+') do
      local name = 'apprentice:handle:' .. handle
      local had = redis.call('GET', name)
      if not had or had < id then redis.call('SET', name, id, 'PX', ARGV[1]) end
    end
    local pending = 'apprentice:feedback:' .. id .. ':pending'
    if redis.call('EXISTS', pending) == 1 then
      local caller = string.match(index, '^[^\\n]*')
      local given = 'apprentice:feedback:' .. id
      for _, name in ipairs(redis.call('SMEMBERS', pending)) do
        local feedback = redis.call('HGET', given, name) or ''  -- an erasure deletes a damaged one
        local giver, body = string.match(feedback, '^[^\\n]*\\n([^\\n]*)\\n(.*)$')
        if giver == caller or giver == '*' then
          redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'request', id, 'index', index, 'feedback', body)
          table.insert(joined, {id, 'joined', body})
        else
          redis.call('HDEL', given, name)
          if body then table.insert(joined, {id, 'dropped', body}) end
        end
      end
      redis.call('DEL', pending)
    end
  end
end
local unarchived = 0
local over = redis.call('XLEN', KEYS[1]) - tonumber(ARGV[2])
if over > 0 then
  local archiving = tonumber(ARGV[4])
  local done_time, done_number = 0, 0
  if archiving >= 0 then
    local done = redis.call('HGET', KEYS[3], 'done') or '0-0'
    done_time, done_number = string.match(done, '^(%d+)-(%d+)$')
    done_time, done_number = tonumber(done_time), tonumber(done_number)
  end
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', math.min(over, 2000))) do
    if archiving >= 0 then
      local time, number = string.match(entry[1], '^(%d+)-(%d+)$')
      time, number = tonumber(time), tonumber(number)
      if time > done_time or (time == done_time and number > done_number) then
        if over <= archiving then break end
        unarchived = unarchived + 1
      end
    end
    over = over - 1
    local id, handles = entry[2][2], entry[2][4]
    redis.call('DEL', 'apprentice:record:' .. id)
    for handle in string.gmatch(handles, '[^\\n]+') do
      local name = 'apprentice:handle:' .. handle
      local had = redis.call('GET', name)
      if had and string.sub(had, 1, #id) == id then redis.call('DEL', name) end
    end
    redis.call('XDEL', KEYS[1], entry[1])
  end
end
return {joined, unarchived}
"""


class Joined(msgspec.Struct, frozen=True):
    """Feedback that waited for its record: `joined` to it now, or `dropped` because its giver may not judge it. `first`
    marks one joined feedback for each record."""

    record: Record
    outcome: str
    feedback: dict[str, Any]
    first: bool


class RecordBuffer:
    """Bounded buffer of records. Settling a request puts them in, the flushing job takes them out."""

    def __init__(self, pending_max: int) -> None:
        self._pending_max = pending_max
        self._pending: deque[Record] = deque()
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, record: Record) -> bool:
        """Take in a settled record, without waiting; False if the buffer is full and the record is lost."""
        if len(self._pending) >= self._pending_max:
            return False
        self._pending.append(record)
        if len(self._pending) == 1:
            self._some.set()
        return True

    def latest_of(self, handle: str) -> str | None:
        """The id of the newest record of a session or subject that is not yet in the stream."""
        return next((record.id for record in reversed(self._pending) if handle in record.handles), None)

    def find(self, request_id: str) -> Record | None:
        """A record that is not yet in the stream."""
        return next((record for record in self._pending if record.id == request_id), None)

    def oldest_seconds(self) -> float:
        """The age of the oldest waiting record; 0 if none waits."""
        return max(0.0, time.time() - self._pending[0].at) if self._pending else 0.0

    def wake(self) -> None:
        """Wake callers of `some`, even if there is no record here."""
        self._some.set()

    async def some(self) -> None:
        """Wait until there is a record."""
        self._some.clear()
        if not self._pending:
            await self._some.wait()

    def first(self, count: int) -> list[Record]:
        """The oldest records, which stay here until `forget` gets them."""
        return [self._pending[i] for i in range(min(count, len(self._pending)))]

    def forget(self, records: Sequence[Record]) -> None:
        """Drop the oldest records, returned by `first`, which are now stored. Some may be gone already."""
        for record in records:
            if self._pending and self._pending[0] is record:
                self._pending.popleft()


class RecordIndex(NamedTuple):
    """The fields of a record by which feedback is joined, and the stream that the record is in.

    Redis stores them as lines: under a request's id, after the record's place in its stream, and with each feedback.
    """

    caller: str = ""
    task: str = ""
    version: str = ""
    pool: str = ""
    purpose: str = ""
    """REPORTED, or empty."""

    @classmethod
    def of(cls, record: Record) -> RecordIndex:
        """The index of a record."""
        purpose = REPORTED if record.purpose == REPORTED else ""
        return cls(record.caller, record.task or "", record.version or "", record.pool or "", purpose)

    @classmethod
    def read(cls, lines: bytes) -> RecordIndex:
        """The index from its lines; missing lines are empty fields."""
        return cls(*lines.decode().split("\n")[: len(cls._fields)])

    def write(self) -> str:
        """The index as lines."""
        return "\n".join(self if self.purpose else self[:-1])


def read_place(lines: bytes) -> tuple[str, RecordIndex]:
    """A record's place in its stream, and its index, from the lines under the request's id."""
    place, _, index = lines.partition(b"\n")
    return place.decode(), RecordIndex.read(index)


def streams_of(lines: bytes) -> tuple[str, ...]:
    """The streams that may hold the record of these lines. Earlier releases put reports into the stream of records."""
    _, index = read_place(lines)
    return (REPORTED_STREAM_KEY, STREAM_KEY) if index.purpose == REPORTED else (STREAM_KEY,)


class RecordStream:
    """The record streams in Redis, and the index from an id to its place there."""

    def __init__(
        self,
        redis: Redis,
        retention_seconds: int,
        records_max: int,
        feedback_stream_key: str,
        feedback_max: int,
        unarchived_max: int | None = None,
        reported_max: int = REPORTED_MAX,
    ) -> None:
        """Keep at most these numbers of served and of reported records.

        With `unarchived_max` a record stays until it is archived, but at most this many over either bound.
        """
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._retention_ms = retention_seconds * 1000
        self._records_max = records_max
        self._reported_max = reported_max
        self._feedback_stream_key = feedback_stream_key
        self._feedback_max = feedback_max
        self._unarchived_max = -1 if unarchived_max is None else unarchived_max
        self.unarchived_dropped = 0
        """Records that this gateway's flushes had to drop before they were archived, since its start."""
        self._flush = redis.register_script(FLUSH)

    async def append(self, records: Sequence[Record]) -> list[Joined]:
        """Store records, in one atomic step for each stream, and join the feedback that waits for them. Storing twice
        is harmless.

        Raises RedisError if Redis can't be reached; the records are then not acknowledged and must be sent again.
        """
        served = [record for record in records if record.purpose != REPORTED]
        joined = await self._append(STREAM_KEY, "records", self._records_max, served)
        if len(served) < len(records):
            reported = [record for record in records if record.purpose == REPORTED]
            joined += await self._append(REPORTED_STREAM_KEY, "reported", self._reported_max, reported)
        return joined

    async def _append(self, stream: str, source: str, records_max: int, records: Sequence[Record]) -> list[Joined]:
        """`source` is the stream's name in the archive."""
        if not records:
            return []
        packed = [
            (record.id, RecordIndex.of(record).write(), msgspec.json.encode(record).decode(), "\n".join(record.handles))
            for record in records
        ]  # a single argument: each costs the event loop a microsecond, and cmsgpack only has text
        bounds = (self._retention_ms, records_max, self._feedback_max, self._unarchived_max)
        args: list[bytes | int] = [*bounds, msgspec.msgpack.encode(packed)]
        keys = [stream, self._feedback_stream_key, f"apprentice:archive:{source}"]
        answer, unarchived = await self._flush(keys=keys, args=args)
        self.unarchived_dropped += int(unarchived)
        by_id, had, joined = {record.id: record for record in records}, set[bytes](), list[Joined]()
        for request_id, outcome, body in answer:
            first = outcome == b"joined" and request_id not in had
            had |= {request_id} if first else set()
            joined.append(Joined(by_id[request_id.decode()], outcome.decode(), msgspec.json.decode(body), first))
        return joined

    async def claim(self, sources: Sequence[tuple[str, str, str]]) -> list[tuple[str, str] | None]:
        """Map other gateways' names (as `handle_of` makes them) to our ids, each with the digest of the report.

        For each name: None if it was new, else its stored id and digest. Raises RedisError.
        """
        if not sources:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for handle, request_id, content in sources:
                name, value = f"apprentice:handle:{handle}", f"{request_id}\n{content}"
                pipeline.set(name, value, nx=True, get=True, px=self._retention_ms)
            replies = await pipeline.execute()
        return [None if raw is None else tuple(raw.decode().split("\n", 1)) for raw in replies]

    async def read(self, request_id: str) -> Record | None:
        """The record of this id, or None if there is none (any more)."""
        lines = await self._redis.get(f"apprentice:record:{request_id}")
        if lines is None:
            return None
        place, _ = read_place(lines)
        for stream in streams_of(lines):
            for _, fields in await self._redis.xrange(stream, place, place, count=1):
                if fields[b"id"].decode() == request_id:
                    return msgspec.json.decode(fields[b"record"], type=Record)
        return None

    async def newest(self, count: int, before: str | None = None) -> tuple[list[Record], str | None]:
        """At most `count` readable records of requests served here that lie before a place in the stream, newest first.
        Also the place to go on from, None at the stream's beginning. Raises RedisError."""
        entries = await self._redis.xrevrange(STREAM_KEY, max="+" if before is None else f"({before}", count=count)
        records = []
        for _, fields in entries:
            with suppress(msgspec.DecodeError):  # the archive sets such an entry aside
                records.append(msgspec.json.decode(fields[b"record"], type=Record))
        return records, entries[-1][0].decode() if len(entries) == count else None

    async def latest_of(self, handle: str) -> str | None:
        """The id of the latest request of a session or about a subject (as `handle_of` names it)."""
        raw = await self._redis.get(f"apprentice:handle:{handle}")
        return raw.decode() if raw else None
