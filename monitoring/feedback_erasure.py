"""Erasure of comments, demonstrations and tags from feedback in Redis; the judgements stay.

An entry that is deleted from a stream stays in its bytes until all of its neighbours are deleted too. So the stream is
written again under the same ids, and takes the place of the old one in one step.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from itertools import chain
from typing import Any

import msgspec

from monitoring.feedback import STREAM_KEY, Feedback
from monitoring.text_stream import READ_MAX, read_pages

PARTIAL_KEY = f"{STREAM_KEY}:partial"
WORDS = ("comment", "demonstration", "demonstration_digests", "tags")
"""The fields of feedback, and columns of the archive, that may hold texts."""

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
"""ARGV: the last entry that was copied. What has come since then is copied as it is."""


def erase_feedback_words(redis: Any, requests: Set[str]) -> None:
    """Erase the words of these requests' feedback. Raises RedisError; done again, it comes to its end."""
    for request in requests:
        key = f"apprentice:feedback:{request}"
        for name, raw in redis.hgetall(key).items():
            _, giver, body = raw.split(b"\n", 2)  # the digest of it goes, too: words can be guessed by it
            if (bare := _without_words(body)) is not None:
                redis.delete(f"{key}:latest")
                redis.hset(key, name, b"\n".join((b"", giver, bare)))
    if any(_bare_body(fields, requests) is not None for _, fields in _entries(redis)):
        _write_stream_again(redis, requests)


def _write_stream_again(redis: Any, requests: Set[str]) -> None:
    redis.delete(PARTIAL_KEY)  # what a run that was killed has left
    last = b"0-0"
    pipe = redis.pipeline(transaction=False)
    for entry, fields in _entries(redis):
        last, bare = entry, _bare_body(fields, requests)
        pipe.xadd(PARTIAL_KEY, fields if bare is None else fields | {b"feedback": bare}, id=entry)
        if len(pipe) >= READ_MAX:
            pipe.execute()
    pipe.execute()
    redis.eval(TAKE_PLACE, 2, STREAM_KEY, PARTIAL_KEY, last)


def _entries(redis: Any) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    return chain.from_iterable(read_pages(redis, STREAM_KEY))


def _bare_body(fields: dict[bytes, bytes], requests: Set[str]) -> bytes | None:
    """The entry's feedback without its words; None where it has none, or is of another request."""
    is_meant = fields.get(b"request", b"").decode() in requests
    return _without_words(fields[b"feedback"]) if is_meant else None


def _without_words(body: bytes) -> bytes | None:
    """A feedback without its words; None where it has none."""
    feedback = msgspec.json.decode(body, type=Feedback)
    if not any(getattr(feedback, name) for name in WORDS):
        return None
    return msgspec.json.encode(
        msgspec.structs.replace(feedback, comment=None, demonstration=None, demonstration_digests={}, tags=None)
    )
