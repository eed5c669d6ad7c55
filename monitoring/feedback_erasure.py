"""Erasure of comments, demonstrations and tags from feedback in Redis; the judgements stay. Sealing of its stream.

Redis keeps the bytes of a deleted stream entry until all its neighbours are deleted too. So the stream is rewritten
under the same ids, and replaces the old one in one step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Set
from functools import partial
from itertools import chain
from typing import Any

import msgspec
from redis.exceptions import OutOfMemoryError

from monitoring.feedback import STREAM_KEY, Feedback, WordSeals
from monitoring.helper_process import JobError
from monitoring.text_stream import READ_MAX, read_pages
from monitoring.texts import Resealing
from monitoring.unread_places import UNREADABLE

log = logging.getLogger(__name__)
PARTIAL_KEY = f"{STREAM_KEY}:partial"
Change = Callable[[str, bytes], bytes | None]
"""From a request's id and its feedback: the new feedback, or None to leave it."""
WORDED_FIELDS = ("comment", "demonstration", "demonstration_digests", "tags", "key", "sealed")
"""The fields of feedback, and columns of the archive, that may hold texts."""

REPLACE = """
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then return end
redis.call('DEL', KEYS[2])
if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end
"""
"""ARGV: a judgement's name, its bytes as read, and without words (empty: it is deleted). One that changed or expired
meanwhile stays."""
TAKE_PLACE = """
local low = '(' .. ARGV[1]
while true do
  local batch = redis.call('XRANGE', KEYS[1], low, '+', 'COUNT', 500)
  if #batch == 0 then break end
  for _, entry in ipairs(batch) do
    redis.call('XADD', KEYS[2], entry[1], unpack(entry[2]))
    low = '(' .. entry[1]
  end
end
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then redis.call('XSETID', KEYS[2], info[i + 1]) end
end
redis.call('RENAME', KEYS[2], KEYS[1])
"""
"""ARGV: the last copied entry. Entries that came since then are copied unchanged."""


def erase_feedback_words(redis: Any, requests: Set[str]) -> None:
    """Erase the words of these requests' feedback. Raises RedisError and JobError; another call completes it."""
    for request in requests:
        key = f"apprentice:feedback:{request}"
        while worded := [
            (name, raw, bare) for name, raw in redis.hgetall(key).items() if (bare := _bare_entry(raw)) is not None
        ]:
            for each in worded:  # the next pass finds entries that came or were sealed meanwhile
                redis.eval(REPLACE, 2, key, f"{key}:latest", *each)
    _change_stream(redis, lambda request, body: _bare_body(body) if request in requests else None)


def seal_stream(redis: Any, words: WordSeals, resealing: Resealing) -> None:
    """Seal the words in the stream under the present key, unless their own key is unknown. If Redis lacks room for
    that, the next run tries again. The caller has locked the archive, as in an erasure."""

    def reseal_one(body: bytes, request: str) -> bytes:
        feedback = msgspec.json.decode(body, type=Feedback)
        after = words.reseal(feedback, request)
        return body if after is feedback else msgspec.json.encode(after)

    def reseal(request: str, body: bytes) -> bytes | None:
        after = resealing.change(body, partial(reseal_one, request=request))
        return None if after is body else after

    if _is_changed(redis, reseal) and _has_room(redis):
        _write_stream_again(redis, reseal)


def _change_stream(redis: Any, change: Change) -> None:
    """Rewrite the stream if any of its feedback changes. Raises JobError if Redis lacks room."""
    if _is_changed(redis, change):
        try:
            _write_stream_again(redis, change)
        except OutOfMemoryError as error:
            text = "Redis has no room to write the stream of feedback again without the words: raise its maxmemory."
            raise JobError(text) from error


def _is_changed(redis: Any, change: Change) -> bool:
    return any(_changed(fields, change) is not None for _, fields in _entries(redis))


def _has_room(redis: Any) -> bool:
    """Return whether Redis has room for a sealed copy of the stream, which may be twice as large."""
    memory = redis.info("memory")
    free_bytes = memory.get("maxmemory", 0) - memory["used_memory"]
    if not memory.get("maxmemory") or 2 * (redis.memory_usage(STREAM_KEY, samples=50) or 0) < free_bytes:
        return True
    log.warning("words of feedback in its stream are not sealed: give Redis more memory")
    return False


def _write_stream_again(redis: Any, change: Change) -> None:
    redis.delete(PARTIAL_KEY)  # left by a killed run
    last = b"0-0"
    pipe = redis.pipeline(transaction=False)
    try:
        for entry, fields in _entries(redis):
            last, body = entry, _changed(fields, change)
            pipe.xadd(PARTIAL_KEY, fields if body is None else fields | {b"feedback": body}, id=entry)
            if len(pipe) >= READ_MAX:
                pipe.execute()
        pipe.execute()
        redis.eval(TAKE_PLACE, 2, STREAM_KEY, PARTIAL_KEY, last)
    finally:
        redis.delete(PARTIAL_KEY)  # if the copy does not fit, nothing else would fit beside it


def _entries(redis: Any) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    return chain.from_iterable(read_pages(redis, STREAM_KEY))


def _changed(fields: dict[bytes, bytes], change: Change) -> bytes | None:
    """The entry's new feedback; None if it stays, or can't be read."""
    try:
        return change(fields[b"request"].decode(), fields[b"feedback"])
    except (KeyError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _bare_entry(raw: bytes) -> bytes | None:
    """A judgement's entry in Redis without its words and the digest by which they could be guessed; None if it has no
    words, empty if it can't be read."""
    try:
        _, giver, body = raw.split(b"\n", 2)
        bare = _without_words(body)
    except (*UNREADABLE, ValueError):
        return b""
    return None if bare is None else b"\n".join((b"", giver, bare))


def _bare_body(body: bytes) -> bytes | None:
    """The feedback of the stream without its words; None if it has none. One that can't be read becomes empty."""
    try:
        return _without_words(body)
    except UNREADABLE:
        return b"{}" if body != b"{}" else None


def _without_words(body: bytes) -> bytes | None:
    """A feedback without its words; None if it has no words."""
    feedback = msgspec.json.decode(body, type=Feedback)
    if not any(getattr(feedback, name) for name in WORDED_FIELDS):
        return None
    bare = dict.fromkeys(WORDED_FIELDS) | {"demonstration_digests": {}}
    return msgspec.json.encode(msgspec.structs.replace(feedback, **bare))
