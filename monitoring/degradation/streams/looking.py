"""What the monitor's child reads of the streams: the next entries of both, at one moment of Redis's clock.

A script packs the fields that are needed, so that Python takes one string apart instead of thousands of replies.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from monitoring.degradation.streams.reckoning import Entry, entry, in_order
from monitoring.degradation.streams.steps import CURSORS_KEY
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.records import STREAM_KEY as RECORDS_STREAM_KEY

READ_MAX = 500
FIELDS = (("record",), ("request", "feedback"))
"""What is read of an entry of either stream."""

LOOK = """
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
local record_heads, records = packed(KEYS[2], ARGV[1], ARGV[3], {'record'})
local feedback_heads, feedback = packed(KEYS[3], ARGV[2], ARGV[3], {'request', 'feedback'})
local step = redis.call('HGET', KEYS[1], 'step') or ''
return {now[1], now[2], step, record_heads, records, feedback_heads, feedback}
"""


class Look(NamedTuple):
    """What was found: the entries to take, in their order, whether there are more, and the writing of the cursors.

    `now_ms` is Redis's clock; of what is not to be taken yet the first is of `left_ms`, which is `now_ms` without any.
    """

    entries: list[Entry]
    more: bool
    step: str
    now_ms: int
    left_ms: int


def look(script: Any, records_read: str, feedback_read: str) -> Look:
    """The next entries behind these. `script` is LOOK, registered. Raises RedisError."""
    seconds, microseconds, step, *packed = script(
        keys=[CURSORS_KEY, RECORDS_STREAM_KEY, FEEDBACK_STREAM_KEY], args=[records_read, feedback_read, READ_MAX]
    )
    now_ms = int(seconds) * 1000 + int(microseconds) // 1000
    records, feedback = unpacked(0, packed[0], packed[1]), unpacked(1, packed[2], packed[3])
    last_ms = max([one.milliseconds for one in (*records[-1:], *feedback[-1:])], default=0)
    until_ms = now_ms - 1 if last_ms <= now_ms else None  # a clock that was set back keeps nothing waiting
    taken = in_order(records, feedback, READ_MAX, until_ms)
    left = len(records) + len(feedback) - len(taken)
    known = {one[:3] for one in taken} if left else set()
    left_ms = min([one.milliseconds for one in (*records, *feedback) if one[:3] not in known], default=now_ms)
    full = len(records) >= READ_MAX or len(feedback) >= READ_MAX
    return Look(taken, full or left_ms < now_ms, step.decode(errors="replace"), now_ms, left_ms)


def unpacked(stream: int, heads: bytes, bodies: bytes) -> list[Entry]:
    """Entries from their names and the lengths of their fields (-1: not there), and the fields' bytes in a row."""
    names = FIELDS[stream]
    told, place, found = iter(heads.decode().split()), 0, []
    for name in told:
        fields = {}
        for field in names:
            length = int(next(told))
            if length >= 0:
                fields[field] = bodies[place : place + length]
                place += length
        found.append(entry(stream, name, fields))
    return found
