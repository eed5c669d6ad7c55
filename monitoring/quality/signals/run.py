"""The monitor's child: it reads all streams, moves the watches of all versions, and judges them.

`python -m monitoring.quality.signals.run` reads lines of JSON, `Begin` and then a `MonitorStep` each, and answers each
step with a `JudgedStep`. It ends at once when its input is closed: it never outlives its gateway.

Redis holds the cursors of the streams with the watches. Both are written in one step, and only if nobody else has
written meanwhile. So an entry counts once, whichever child reads it, and wherever a child is killed. The child trusts
its memory only as long as Redis says that it was the last to write. If there are no cursors yet, it reads all entries
of the streams.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace
from redis.exceptions import RedisError

from monitoring.helper_process import NICENESS
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.signals.all_watches import (
    FEEDBACK,
    PART_SECONDS,
    RECORDS,
    REPORTED,
    RETIRED,
    StreamEntry,
    Watches,
    find_versions,
    read_entry,
)
from monitoring.quality.signals.child_messages import (
    BASELINES_KEY,
    CURSORS_KEY,
    NOTE_KEY,
    REJUDGED_SECONDS,
    WATCH_KEY,
    Begin,
    JudgedStep,
    MonitorStep,
)
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.signals.request_notes import KEPT_SECONDS_MAX, Note
from monitoring.quality.signals.saved_watches import UNREADABLE, pack, read_watch
from monitoring.quality.signals.stream_reader import READ_STREAMS, Batch, read_streams
from monitoring.quality.signals.version_watch import Watch
from monitoring.records import streams_of
from monitoring.redis_address import open_redis

log = logging.getLogger(__name__)
LOADED_AT_ONCE = 200
REJUDGED_AT_ONCE = 100
RACES_MAX = 3
GENERATION_KEY = "apprentice:generation"
BEGINNING = "0-0"

WRITE = """
if (redis.call('HGET', KEYS[1], 'step') or '') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'step', ARGV[2], 'epoch', ARGV[3])
redis.call('HSET', KEYS[1], 'records', ARGV[4], 'reported', ARGV[5], 'feedback', ARGV[6])
local at = 9
for i = 2, #KEYS do
  if ARGV[at] == '' then
    redis.call('DEL', KEYS[i])
  elseif i - 1 <= tonumber(ARGV[7]) then
    redis.call('SET', KEYS[i], ARGV[at])
  else
    redis.call('SET', KEYS[i], ARGV[at], 'EX', ARGV[8])
  end
  at = at + 1
end
return 1
"""


class Raced(Exception):
    """Another child has written meanwhile, so the state in memory is void."""


class Cursors(msgspec.Struct, frozen=True):
    """The place in the streams: the number of the write, the id of this reading, and each stream's last entry."""

    step: str = ""
    epoch: str = ""
    records: str = BEGINNING
    reported: str = BEGINNING
    feedback: str = BEGINNING

    @property
    def read(self) -> tuple[str, str, str]:
        """The last entry of each stream that has been taken, in the order of the streams."""
        return self.records, self.reported, self.feedback


class Monitor:
    """Steps through the streams. Owner of the watches in memory between two steps, and of their cursors."""

    def __init__(self, begin: Begin) -> None:
        self._redis: Any = open_redis(begin.redis_url, socket_timeout=10, socket_connect_timeout=2)
        self._note_seconds = min(KEPT_SECONDS_MAX, begin.retention_seconds)
        self._look_script = self._redis.register_script(READ_STREAMS)
        self._write_script = self._redis.register_script(WRITE)
        self._cursors = Cursors()
        self._written = self._cursors
        self._watches: Watches | None = None
        self._loaded: set[str] = set()
        self._judged_at: dict[str, float] = {}
        self._step: MonitorStep | None = None
        self._baselines: dict[str, dict[str, Baseline]] = {}
        self._generation: bytes | None = b"unread"
        self._unreadable = 0

    def step(self, step: MonitorStep) -> JudgedStep:
        """Read on, write the new place, and judge. A failure is reported, and loses nothing."""
        for _ in range(RACES_MAX):
            try:
                return self._stepped(step, time.monotonic())
            except Raced:
                self._forget()
            except (RedisError, OSError) as error:
                self._forget()
                return JudgedStep(error=f"Redis can't be read or written: {error}")
        return JudgedStep(error="Another process moves the streams: there should be one at a time.")

    def _stepped(self, step: MonitorStep, began: float) -> JudgedStep:
        self._unreadable = 0
        watches = self._resumed(step)
        watches.unreadable = watches.unmatched = 0
        watches.begin(step, self._baselines)
        batch = self._read_on(watches, step)
        read = len(batch.entries)
        while batch.more and read < step.entries_max and time.monotonic() - began < step.seconds_max:
            batch = self._read_on(watches, step)
            read += len(batch.entries)
        passed = batch.more or watches.tick((batch.now_ms - 1) / 1000, _after(step.seconds_max))
        moved = set(watches.moved)
        self._write(watches, step)
        at = batch.now_ms / 1000
        names = self._to_judge(watches, step, moved, at)
        judgements = watches.judged(names, at)
        self._judged_at.update(dict.fromkeys(names, at))  # failed ones, too: else they would always be next
        self._step = step
        return JudgedStep(
            judgements=judgements,
            canaries=watches.canaries(batch.left_ms / 1000),
            at=at,
            read=read,
            more=batch.more or not passed,
            behind_seconds=max(0.0, (batch.now_ms - batch.left_ms) / 1000) if batch.more else 0.0,
            unreadable=watches.unreadable + self._unreadable,
            unmatched=watches.unmatched,
            unjudged=sorted(watches.unjudged),
        )

    def _to_judge(self, watches: Watches, step: MonitorStep, moved: set[str], at: float) -> list[str]:
        """The versions that have moved or have news in the step, and some of those judged longest ago."""
        before = self._step
        if before is None or before.metrics != step.metrics:
            return list(watches.by_version)
        tasks = {name for name, task in step.tasks.items() if before.tasks.get(name) != task}
        named = {
            name
            for name, watch in watches.by_version.items()
            if name in moved or watch.task in tasks or step.versions.get(name) != before.versions.get(name)
        }
        waiting = {name: self._judged_at.get(name, 0.0) for name in watches.by_version if name not in named}
        due = sorted((when, name) for name, when in waiting.items() if at - when >= REJUDGED_SECONDS)
        return [*named, *(name for _, name in due[:REJUDGED_AT_ONCE])]

    # ---- memory ------------------------------------------------------------------------------------

    def _forget(self) -> None:
        self._watches = None
        self._generation = b"unread"

    def _resumed(self, step: MonitorStep) -> Watches:
        """The present watches, from memory if this child was the last to write. Raises RedisError."""
        generation, *hashes = self._redis.pipeline(transaction=True).get(GENERATION_KEY).hgetall(CURSORS_KEY).execute()
        try:
            cursors = _cursors(hashes[0])
        except ValueError:
            log.error("the cursors of the monitor can't be read: the streams are read again, with fresh states")
            self._redis.delete(CURSORS_KEY)
            self._unreadable += 1
            cursors = Cursors()
        if generation != self._generation:
            self._baselines = self._read_baselines()
            self._generation = generation
        if self._watches is None or cursors != self._written:
            epoch = cursors.epoch or uuid.uuid4().hex
            self._watches = Watches(epoch)
            self._loaded = set()
            self._judged_at = {}
            self._step = None
            self._written = cursors
            self._cursors = replace(cursors, epoch=epoch)
        watches = self._watches
        self._load(watches, (name for name, version in step.versions.items() if version.state != RETIRED))
        return watches

    def _load(self, watches: Watches, versions: Iterable[str]) -> None:
        """Read those watches of these versions that are not in memory. An unreadable one begins again."""
        missing = sorted(set(versions) - self._loaded)
        for first in range(0, len(missing), LOADED_AT_ONCE):
            names = missing[first : first + LOADED_AT_ONCE]
            for name, raw in zip(names, self._redis.mget([WATCH_KEY + name for name in names]), strict=True):
                watch = self._read_watch(name, raw) if raw is not None else None
                if watch is not None and (watch.epoch, watch.version) == (watches.epoch, name):
                    watches.by_version[name] = watch
            self._loaded.update(names)

    def _read_baselines(self) -> dict[str, dict[str, Baseline]]:
        baselines: dict[str, dict[str, Baseline]] = {}
        for name, raw in self._redis.hgetall(BASELINES_KEY).items():
            of_version = self._decoded(raw, dict[str, Baseline])
            if of_version is not None:
                baselines[name.decode()] = of_version
        return baselines

    def _read_watch(self, version: str, raw: bytes) -> Watch | None:
        """A saved watch without its unreadable parts, which are counted; None if nothing of it can be used."""
        try:
            watch, dropped = read_watch(raw)
        except UNREADABLE as error:
            log.error("the saved state of %s can't be read, and begins again: %s", version, error)
            self._unreadable += 1
            return None
        for name in dropped:
            log.error("the saved state of %s: %s can't be read, and begins again", version, name)
        self._unreadable += len(dropped)
        return watch

    def _decoded(self, raw: bytes, kind: Any) -> Any:
        """The decoded JSON; None if it can't be read, which is counted."""
        try:
            return msgspec.json.decode(raw, type=kind)
        except UNREADABLE as error:
            log.error("a state of the monitor can't be read, and begins again: %s", error)
            self._unreadable += 1
            return None

    # ---- the streams -------------------------------------------------------------------------------

    def _read_on(self, watches: Watches, step: MonitorStep) -> Batch:
        """Take the next entries into account. A silence before them passes first. Raises Raced, RedisError."""
        batch = read_streams(self._look_script, self._cursors.read, step.known_at)
        if batch.step != self._written.step:
            raise Raced
        if batch.entries:
            begin = batch.entries[0].milliseconds
            at = min(begin, batch.now_ms) - 1
            if not watches.tick(at / 1000, _after(step.seconds_max), lag=PART_SECONDS):
                return batch._replace(entries=[], more=True, left_ms=begin)
            batch = _until(batch, begin + int(PART_SECONDS * 1000))
        self._take(watches, batch.entries)
        latest = {entry.stream: entry.name for entry in batch.entries}
        cursors = self._cursors
        self._cursors = Cursors(
            cursors.step,
            cursors.epoch,
            latest.get(RECORDS, cursors.records),
            latest.get(REPORTED, cursors.reported),
            latest.get(FEEDBACK, cursors.feedback),
        )
        return batch

    def _take(self, watches: Watches, entries: Sequence[StreamEntry]) -> None:
        """Move the watches by these entries, in their order. An unreadable entry is counted, and passed over."""
        items: list[tuple[StreamEntry, RecordEntry | FeedbackEntry]] = []
        for entry in entries:
            try:
                items.append((entry, _read_feedback(entry.fields) if entry.stream == FEEDBACK else _read_record(entry)))
            except (msgspec.DecodeError, KeyError, UnicodeDecodeError, RecursionError):
                watches.unreadable += 1
        feedback = [item for _, item in items if isinstance(item, FeedbackEntry)]
        judged = self._records_of(feedback, watches)
        shadowed = [item.shadow_of for _, item in items if isinstance(item, RecordEntry) and item.shadow_of is not None]
        self._load_notes(watches, {*shadowed, *(item.request for item in feedback)})
        records = [item for _, item in items if isinstance(item, RecordEntry)]
        self._load(watches, find_versions([*records, *judged.values()]))
        for place, item in items:
            try:
                if isinstance(item, RecordEntry):
                    watches.take_record(item, item.placed_at)
                elif item.request in judged:
                    watches.take_feedback(item, judged[item.request], place.milliseconds / 1000)
                else:
                    watches.unmatched += 1
            except Exception:  # no entry may stop the others, whatever it holds
                log.exception("an entry can't be reckoned with: %s", place.name)
                watches.unreadable += 1

    def _records_of(self, feedback: Sequence[FeedbackEntry], watches: Watches) -> dict[str, RecordEntry]:
        """The records of the judged requests that still exist."""
        requests = sorted({item.request for item in feedback})
        if not requests:
            return {}
        indexes = self._redis.mget([f"apprentice:record:{request}" for request in requests])
        places = [
            (request, stream, index.split(b"\n", 1)[0].decode())
            for request, index in zip(requests, indexes, strict=True)
            if index is not None
            for stream in streams_of(index)
        ]
        pipeline = self._redis.pipeline(transaction=False)
        for _, stream, place in places:
            pipeline.xrange(stream, place, place, count=1)
        records = {}
        for (request, _, _), rows in zip(places, pipeline.execute(), strict=True):
            for name, fields in rows:
                try:
                    record = _read_record(read_entry(RECORDS, name.decode(), {"record": fields[b"record"]}))
                    if record.id == request:
                        records[request] = record
                except (msgspec.DecodeError, KeyError, ValueError, RecursionError):
                    watches.unreadable += 1
        return records

    def _load_notes(self, watches: Watches, requests: set[str]) -> None:
        missing = sorted(requests - watches.notes.keys())
        if not missing:
            return
        for request, raw in zip(missing, self._redis.mget([NOTE_KEY + request for request in missing]), strict=True):
            note = self._decoded(raw, Note) if raw is not None else None
            if note is not None and note.epoch == watches.epoch:
                watches.notes[request] = note

    # ---- writes ------------------------------------------------------------------------------------

    def _write(self, watches: Watches, step: MonitorStep) -> None:
        """Write changed watches and notes with the cursors, unless another child has written. Raises Raced,
        RedisError."""
        before = self._step.versions if self._step is not None else {}
        retired = {
            name
            for name, version in step.versions.items()
            if version.state == RETIRED and (name not in before or before[name].state != RETIRED)
        }
        moved = [name for name in watches.moved if name in watches.by_version]
        has_read = self._cursors.read != self._written.read
        if has_read or moved or watches.noted or retired:
            after = replace(self._cursors, step=str(int(self._written.step or 0) + 1))
            keys = [CURSORS_KEY, *(WATCH_KEY + name for name in (*moved, *sorted(retired)))]
            values: list[Any] = [pack(msgspec.json.encode(watches.by_version[name])) for name in moved]
            values += [b""] * len(retired)
            keys += [NOTE_KEY + request for request in watches.noted]
            values += [msgspec.json.encode(watches.notes[request]) for request in watches.noted]
            of_watches = len(moved) + len(retired)
            cursors = [self._written.step, after.step, after.epoch, *after.read]
            if not self._write_script(keys=keys, args=[*cursors, of_watches, self._note_seconds, *values]):
                raise Raced
            self._written = self._cursors = after
        watches.moved.clear()
        watches.noted.clear()
        watches.notes.clear()


def _until(batch: Batch, end_ms: int) -> Batch:
    """The batch without entries after this time."""
    later = next((place for place, entry in enumerate(batch.entries) if entry.milliseconds > end_ms), None)
    if later is None:
        return batch
    return batch._replace(entries=batch.entries[:later], more=True, left_ms=batch.entries[later].milliseconds)


def _after(seconds: float) -> Callable[[], bool]:
    """Make a function that returns whether this time has passed since now."""
    until = time.monotonic() + seconds
    return lambda: time.monotonic() >= until


def _cursors(stored: Mapping[bytes, bytes]) -> Cursors:
    """The cursors in Redis; without any, the beginning. Raises ValueError if one is damaged.

    An older release did not read the stream of reports, so that one is at its beginning.
    """
    fields = {name.decode(): value.decode() for name, value in stored.items()}
    if not fields:
        return Cursors()
    places = fields.get("records", ""), fields.get("reported", BEGINNING), fields.get("feedback", "")
    cursors = Cursors(fields.get("step", ""), fields.get("epoch", ""), *places)
    for stream, name in enumerate(places):
        read_entry(stream, name, {})
    int(cursors.step)
    return cursors


def _read_record(entry: StreamEntry) -> RecordEntry:
    record = msgspec.json.decode(entry.fields["record"], type=RecordEntry)
    record.placed_at = entry.milliseconds / 1000
    return record


def _read_feedback(fields: Mapping[str, bytes]) -> FeedbackEntry:
    feedback = msgspec.json.decode(fields["feedback"], type=FeedbackEntry)
    feedback.request = fields["request"].decode()
    return feedback


def main() -> None:
    """Answer every step that the input gives, until it is closed."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    os.nice(NICENESS)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(lines,), daemon=True).start()
    monitor = Monitor(msgspec.json.decode(lines.get(), type=Begin))
    while True:
        line = lines.get()
        try:
            judged = monitor.step(msgspec.json.decode(line, type=MonitorStep))
        except msgspec.DecodeError as error:
            judged = JudgedStep(error=f"The step can't be read: {error}")
        sys.stdout.buffer.write(msgspec.json.encode(judged) + b"\n")
        sys.stdout.buffer.flush()


def _listen(lines: queue.SimpleQueue[bytes]) -> None:
    for line in iter(sys.stdin.buffer.readline, b""):
        lines.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
