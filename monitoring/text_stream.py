"""Kept texts in Redis, from the answer of a request until the archive has its text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import msgspec
from redis.asyncio import Redis

from monitoring.texts import BYTES_KEY, FORGOTTEN_KEY, STREAM_KEY, TEXT_KEY, TextRow
from monitoring.unread_places import UNREADABLE

Kept = Literal["kept", "same", "forgotten", "full"]
ARCHIVED_MS = 86_400_000
"""Time for which Redis remembers an archived text, so that a spool which sends it again stores no second one."""

IS_FORGOTTEN = f"""
local function is_forgotten(names, at)
  for name in string.gmatch(names, '[^\\n]+') do
    local until_ms = tonumber(redis.call('GET', '{FORGOTTEN_KEY}' .. name) or '')
    if until_ms and at <= until_ms then return true end
  end
  return false
end
"""
"""A function for scripts: whether a text of this time (ms) under one of these names, a line each, is erased."""

KEEP = f"""
{IS_FORGOTTEN}
local outcomes = {{}}
for i = 2, #ARGV, 4 do
  local id, at, names, row = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local outcome = is_forgotten(names, at) and 'forgotten' or 'kept'
  if outcome == 'kept' and redis.call('EXISTS', '{TEXT_KEY}' .. id) == 1 then outcome = 'same' end
  if outcome == 'kept' and tonumber(redis.call('GET', KEYS[2]) or '0') >= tonumber(ARGV[1]) then
    outcome = 'full'
  end
  if outcome == 'kept' then
    redis.call('SET', '{TEXT_KEY}' .. id, row)
    redis.call('INCRBY', KEYS[2], #row)
    redis.call('XADD', KEYS[1], '*', 'request', id)
  end
  table.insert(outcomes, outcome)
end
return outcomes
"""

DROP = f"""
for i = 2, #ARGV do
  local bytes = redis.call('STRLEN', '{TEXT_KEY}' .. ARGV[i])
  if bytes > 0 then redis.call('DECRBY', KEYS[1], bytes) end
  if ARGV[1] == '0' then
    redis.call('DEL', '{TEXT_KEY}' .. ARGV[i])
  else
    redis.call('SET', '{TEXT_KEY}' .. ARGV[i], '', 'PX', ARGV[1])
  end
end
"""
READ_MAX = 500


class TextStream:
    """Writer of kept texts into Redis. `keep` raises RedisError."""

    def __init__(self, redis: Redis, bytes_max: int) -> None:
        """`bytes_max` of texts may wait for the archive, and one text beyond it, so no text is too large to be kept."""
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self._bytes_max = bytes_max
        self._keep = redis.register_script(KEEP)

    async def keep(self, rows: Sequence[TextRow]) -> list[Kept]:
        """Store texts in one atomic step; returns the outcome of each. Storing a text twice is harmless."""
        args: list[Any] = [self._bytes_max]
        for row in rows:
            names = list_names_of(row.request, row.caller, row.handles)
            args += [row.request, round(row.at * 1000), names, msgspec.json.encode(row)]
        return [outcome.decode() for outcome in await self._keep(keys=[STREAM_KEY, BYTES_KEY], args=args)]


def forgotten_name_of(caller: str) -> str:
    """The name under which Redis notes that a caller's texts must be erased."""
    return f"caller:{caller}"


def list_names_of(request: str, caller: str, handles: Sequence[str]) -> str:
    """The names, a line each, under which Redis may note that a request's texts must be erased."""
    return "\n".join([request, forgotten_name_of(caller), *handles])


def read_row(raw: bytes | None) -> TextRow | None:
    """The text from Redis's value; None if there is none (any more), or it can't be read: the archive sets it aside."""
    try:
        return msgspec.json.decode(raw, type=TextRow) if raw else None
    except UNREADABLE:
        return None


def read_pages(redis: Any, stream: str) -> Iterator[list[tuple[bytes, dict[bytes, bytes]]]]:
    """The entries of a stream, READ_MAX at a time, oldest first (not asynchronous)."""
    low = "-"
    while page := redis.xrange(stream, low, "+", count=READ_MAX):
        low = f"({page[-1][0].decode()}"
        yield page


def read_waiting(redis: Any) -> Iterator[TextRow]:
    """The texts that wait for the archive, oldest first (not asynchronous)."""
    yield from (row for _, raw in read_waiting_raw(redis) if (row := read_row(raw)) is not None)


def read_waiting_raw(redis: Any) -> Iterator[tuple[str, bytes]]:
    """The requests whose texts wait for the archive, oldest first, each with its text as Redis has it."""
    for page in read_pages(redis, STREAM_KEY):
        requests = [fields[b"request"].decode() for _, fields in page]
        raws = redis.mget([TEXT_KEY + request for request in requests])
        yield from ((request, raw) for request, raw in zip(requests, raws, strict=True) if raw)


def delete_texts(redis: Any, requests: Iterable[str], known_ms: int) -> None:
    """Delete texts from Redis (not asynchronous), and remember for `known_ms` that they existed."""
    ids = list(requests)
    for at in range(0, len(ids), READ_MAX):
        redis.eval(DROP, 1, BYTES_KEY, known_ms, *ids[at : at + READ_MAX])
