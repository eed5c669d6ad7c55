"""The reader of Redis's streams: the next entries of each, at one moment of Redis's clock.

A script packs the needed fields, so that Python parses one string instead of thousands of replies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.quality.signals.all_watches import StreamEntry, order_entries, read_entry
from monitoring.quality.signals.child_messages import CURSORS_KEY
from monitoring.records import REPORTED_STREAM_KEY
from monitoring.records import STREAM_KEY as RECORDS_STREAM_KEY

READ_MAX = 500
STREAMS = (RECORDS_STREAM_KEY, REPORTED_STREAM_KEY, FEEDBACK_STREAM_KEY)
FIELDS = (("record",), ("record",), ("request", "feedback"))
"""The fields that are read of an entry of each stream."""

READ_STREAMS = """
local function packed(key, after, count, names)
  local heads, bodies = {}, {}
  for _, entry in ipairs(redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', count)) do
    local told = {}
    for i = 1, #entry[2], 2 do told[entry[2][i]] = entry[2][i + 1] end
    table.insert(heads, entry[1])
    for _, name in ipairs(names) do
      local value = told[name]
      table.insert(heads, value and #value or -1)
      table.insert(bodies, value or '')
    end
  end
  return table.concat(heads, ' '), table.concat(bodies)
end
local now = redis.call('TIME')
local told = {now[1], now[2], redis.call('HGET', KEYS[1], 'step') or ''}
for stream, names in ipairs({{'record'}, {'record'}, {'request', 'feedback'}}) do
  local heads, bodies = packed(KEYS[stream + 1], ARGV[stream], ARGV[4], names)
  table.insert(told, heads)
  table.insert(told, bodies)
end
return told
"""


class Batch(NamedTuple):
    """The entries to take, in their order, whether there are more, and the number of the cursors' last write.

    `now_ms` is Redis's clock, or an earlier limit. `left_ms` is the time of the first entry that waits, else `now_ms`.
    """

    entries: list[StreamEntry]
    more: bool
    step: str
    now_ms: int
    left_ms: int


def read_streams(script: Any, read: tuple[str, str, str], known_at: float | None = None) -> Batch:
    """The entries of each stream after its last one in `read`, up to `known_at` (Unix seconds; None: up to now).

    `script` is the registered READ_STREAMS. Raises RedisError.
    """
    seconds, microseconds, step, *packed = script(keys=[CURSORS_KEY, *STREAMS], args=[*read, READ_MAX])
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    streams = [unpack(stream, packed[2 * stream], packed[2 * stream + 1]) for stream in range(len(STREAMS))]
    everything = [entry for entries in streams for entry in entries]
    last_ms = max([entry.milliseconds for entries in streams for entry in entries[-1:]], default=0)
    clock_was_set_back = last_ms > now_ms
    now_ms = now_ms if known_at is None else min(now_ms, int(known_at * 1000))
    until_ms = None if clock_was_set_back else now_ms - 1  # else entries would wait for the clock
    ordered = order_entries(streams, READ_MAX, until_ms)
    taken_keys = {entry[:3] for entry in ordered}
    left_ms = min([entry.milliseconds for entry in everything if entry[:3] not in taken_keys], default=now_ms)
    full = any(len(entries) >= READ_MAX for entries in streams)
    return Batch(ordered, full or left_ms < now_ms, step.decode(errors="replace"), now_ms, left_ms)


def unpack(stream: int, heads: bytes, bodies: bytes) -> list[StreamEntry]:
    """Entries from `heads`, their names and field lengths (-1: no such field), and `bodies`, the fields' bytes in a
    row."""
    names = FIELDS[stream]
    words, place, unpacked = iter(heads.decode().split()), 0, []
    for name in words:
        fields = {}
        for field in names:
            length = int(next(words))
            if length >= 0:
                fields[field] = bodies[place : place + length]
                place += length
        unpacked.append(read_entry(stream, name, fields))
    return unpacked
