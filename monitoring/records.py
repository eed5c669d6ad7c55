"""Records: all that is known of a finished request, and the stream in Redis. docs/records.md lists the fields."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis

STREAM_KEY = "apprentice:records"
REPORTED_STREAM_KEY = "apprentice:reported"
"""The records of what other gateways served: a stream of their own, so that they displace no record of ours."""
REPORTED = "reported"
"""The purpose of a record of what another gateway served."""
REPORTED_MAX = 250_000


class AttemptRecord(msgspec.Struct):
    """One try at an engine. `fault` is None for the one that answered; `seconds` until its answer began or failed."""

    pool: str
    replica: str
    version: str | None
    fault: str | None
    seconds: float


class PairRecord(msgspec.Struct):
    """On a shadow's record: which version answered the caller (empty: a general model), whether that kept its contract,
    its text's digest; and what a judge made of both arms' answers where both were drawn to answer.

    `arm` is the shadow's, `version` or `general` (None: it is that of a version on trial, which no judge looks at).
    `digest` and `served_digest` are the shadow's and the caller's answer in the form in which the `judge` compares
    them, empty where it has no such form; `right` and `served_right` say what is known without a right answer, the
    scores what the judge guesses, from 0 to 1. `judge_usd` is what asking the judge cost, `judge_digest` tells which
    model judges, and by which prompt, and `judge_answered` whether it gave its word. `served_stack` is the stack of the
    caller's answer, `caller` whose request it is.
    """

    version: str | None
    contract_kept: bool | None = None
    text_digest: str | None = None
    arm: str | None = None
    judge: str | None = None
    digest: str | None = None
    served_digest: str | None = None
    right: bool | None = None
    served_right: bool | None = None
    score: float | None = None
    served_score: float | None = None
    judge_usd: float | None = None
    judge_digest: str | None = None
    judge_answered: bool | None = None
    served_stack: str | None = None
    caller: str | None = None


class FindingRecord(msgspec.Struct):
    """What a rung found: whether it fired, in which mode, and by which score, threshold and nearest prompts."""

    rung: str
    mode: str
    fired: bool
    score: float | None = None
    threshold: float | None = None
    neighbours: list[str] = []
    note: str = ""
    version: str | None = None


class Record(msgspec.Struct, kw_only=True, omit_defaults=False):
    """All that is known of a request. Filled along the walk, frozen by convention once it is settled.

    Times are in seconds, cost in US dollars; None means unknown or not applicable, never zero.
    """

    id: str
    at: float
    endpoint: str
    caller: str
    model_asked: str
    purpose: str = "serve"
    shadow_of: str | None = None
    stream: bool = False
    task: str | None = None
    led_to: str | None = None
    version: str | None = None
    pool: str | None = None
    replica: str | None = None
    reason: str | None = None
    outcome: str = "failed"
    status: int = 500
    error_code: str | None = None
    finish_reason: str | None = None
    attempts: list[AttemptRecord] = []
    continued: int = 0
    skipped_events: int = 0
    blueprint: bool = False
    dropped: list[str] = []
    override_id: str | None = None
    findings: list[FindingRecord] = []
    exit_capped: bool = False
    probability: float = 1.0
    shadow_probability: float | None = None
    shadowed: bool = False
    review_probability: float | None = None
    reviewed: bool = False
    language: str | None = None
    policy_generation: int = 0
    adapter_digest: str | None = None
    stack: str | None = None
    request_digest: str | None = None
    answer_digest: str | None = None
    text_digest: str | None = None
    contract_kept: bool | None = None
    agrees: bool | None = None
    pair: PairRecord | None = None
    answer_id: str | None = None
    handles: list[str] = []
    prompt_tokens: int | None = None
    cached_prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    wasted_usd: float | None = None
    wasted_tokens: int | None = None
    saving_usd: float | None = None
    duration_seconds: float = 0.0
    overhead_seconds: float | None = None
    first_token_seconds: float | None = None
    token_seconds: float | None = None


FLUSH = """
local joined = {}
for i = 5, #ARGV, 4 do
  local id, index, payload, handles = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
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
        local feedback = redis.call('HGET', given, name)
        local giver, body = string.match(feedback, '^[^\\n]*\\n([^\\n]*)\\n(.*)$')
        if giver == caller or giver == '*' then
          redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'request', id, 'index', index, 'feedback', body)
          table.insert(joined, {id, 'joined', body})
        else
          redis.call('HDEL', given, name)
          table.insert(joined, {id, 'dropped', body})
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
    """Feedback that waited for its record: `joined` to it now, or `dropped` because its giver may not judge it."""

    record: Record
    outcome: str
    feedback: dict[str, Any]


class RecordBuffer:
    """Bounded. Settling puts in, the flushing duty takes out."""

    def __init__(self, pending_max: int) -> None:
        self._pending_max = pending_max
        self._pending: deque[Record] = deque()
        self._some = asyncio.Event()

    def __len__(self) -> int:
        return len(self._pending)

    def put(self, record: Record) -> bool:
        """Take a settled record in, without waiting; False if it is full and the record is lost."""
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
        """The age of the oldest record that waits; 0 when none does."""
        return max(0.0, time.time() - self._pending[0].at) if self._pending else 0.0

    def wake(self) -> None:
        """Let whoever waits for `some` look again, though there may be no record here."""
        self._some.set()

    async def some(self) -> None:
        """Wait until there is a record."""
        self._some.clear()
        if not self._pending:
            await self._some.wait()

    def first(self, count: int) -> list[Record]:
        """The oldest records, which stay here until `forget` is told that they are stored."""
        return [self._pending[i] for i in range(min(count, len(self._pending)))]

    def forget(self, records: Sequence[Record]) -> None:
        """Drop the oldest records, those that `first` gave: they are stored. Some that are gone already are none."""
        for record in records:
            if self._pending and self._pending[0] is record:
                self._pending.popleft()


def streams_of(index: bytes) -> tuple[str, ...]:
    """The streams in which the record of this index may be: of a report, also where an older gateway put it."""
    parts = index.decode().split("\n")
    return (REPORTED_STREAM_KEY, STREAM_KEY) if parts[5:] == [REPORTED] else (STREAM_KEY,)


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
        """Keep so many served and so many reported records at most.

        With `unarchived_max` a record stays until it is archived, but never more of them over either bound.
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
        """Store records, each stream's in one atomic step, and join the feedback that waits for them. Storing twice is
        harmless.

        Raises RedisError if Redis can't be reached; the records are then not acknowledged and are to be sent again.
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
        args: list[bytes | str | int] = [*(self._retention_ms, records_max, self._feedback_max, self._unarchived_max)]
        for record in records:
            index = "\n".join((record.caller, record.task or "", record.version or "", record.pool or ""))
            index += f"\n{REPORTED}" if record.purpose == REPORTED else ""
            args += [record.id, index, msgspec.json.encode(record), "\n".join(record.handles)]
        keys = [stream, self._feedback_stream_key, f"apprentice:archive:{source}"]
        answer, unarchived = await self._flush(keys=keys, args=args)
        self.unarchived_dropped += int(unarchived)
        by_id = {record.id: record for record in records}
        return [
            Joined(by_id[request_id.decode()], outcome.decode(), msgspec.json.decode(body))
            for request_id, outcome, body in answer
        ]

    async def claim(self, sources: Sequence[tuple[str, str, str]]) -> list[tuple[str, str] | None]:
        """Give other gateways' names (as `handle_of` makes them) to ids of ours, each with the digest of what was said.

        For each None where the name was new, else the id and the digest that it has. Raises RedisError.
        """
        if not sources:
            return []
        async with self._redis.pipeline(transaction=False) as pipeline:
            for handle, request_id, said in sources:
                name, value = f"apprentice:handle:{handle}", f"{request_id}\n{said}"
                pipeline.set(name, value, nx=True, get=True, px=self._retention_ms)
            had = await pipeline.execute()
        return [None if raw is None else tuple(raw.decode().split("\n", 1)) for raw in had]

    async def read(self, request_id: str) -> Record | None:
        """The record of this id, or None where there is none (any more)."""
        index = await self._redis.get(f"apprentice:record:{request_id}")
        if index is None:
            return None
        entry = index.split(b"\n", 1)[0]
        for stream in streams_of(index):
            for _, fields in await self._redis.xrange(stream, entry, entry, count=1):
                if fields[b"id"].decode() == request_id:
                    return msgspec.json.decode(fields[b"record"], type=Record)
        return None

    async def newest(self, count: int, before: str | None = None) -> tuple[list[Record], str | None]:
        """Up to so many records of what was served here, newest first, from before a place in the stream on; and the
        place where the next ones are, None at the stream's beginning. Raises RedisError."""
        found = await self._redis.xrevrange(STREAM_KEY, max="+" if before is None else f"({before}", count=count)
        records = [msgspec.json.decode(fields[b"record"], type=Record) for _, fields in found]
        return records, found[-1][0].decode() if len(found) == count else None

    async def latest_of(self, handle: str) -> str | None:
        """The id of the latest request of a session or about a subject (as `handle_of` names it)."""
        raw = await self._redis.get(f"apprentice:handle:{handle}")
        return raw.decode() if raw else None
