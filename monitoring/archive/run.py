"""One run of the archive's writer, in its own process: it writes all stream entries since the last run.

`python -m monitoring.archive.run` reads an ArchiveJob as a line of JSON, and prints an ArchiveReport. It ends at once
when its input is closed: it never outlives its gateway.

Records of reported traffic have a stream of their own, and go to the dataset of records. The stream of kept texts has
only ids: the texts are stored beside it, and are deleted from Redis once they are in a file.

Redis holds the progress under `apprentice:archive:SOURCE`. A range of entries is `planned` there before its first file
appears, and `done` once all its files exist. After a crash, the next run repeats the planned range under the same file
names. It keeps the files that exist and writes the missing ones.
"""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, assert_never

import msgspec
from redis.exceptions import RedisError

from monitoring.archive.feedback_rows import row_of
from monitoring.archive.merging import merge_parts
from monitoring.archive.storage import ArchiveStorage, open_storage
from monitoring.archive.tables import (
    ROWS,
    Dataset,
    RecordRow,
    columns_of,
    connect_duckdb,
    day_of,
    list_unspanned,
    query_files,
    read_span,
    write_part,
)
from monitoring.bucket_storage import Bucket
from monitoring.feedback import STREAM_KEY as FEEDBACK_STREAM_KEY
from monitoring.feedback import Feedback
from monitoring.helper_process import JobError, run_job
from monitoring.records import REPORTED_STREAM_KEY, RecordIndex
from monitoring.records import STREAM_KEY as RECORDS_STREAM_KEY
from monitoring.redis_address import open_redis
from monitoring.text_retention import delete_due_texts
from monitoring.text_stream import ARCHIVED_MS, delete_texts
from monitoring.texts import STREAM_KEY as TEXTS_STREAM_KEY
from monitoring.texts import TEXT_KEY, TextRetention, TextRow
from monitoring.time_units import DAY_SECONDS

log = logging.getLogger(__name__)
ArchivedStream = Literal["records", "feedback", "reported", "texts"]
STREAMS: Mapping[ArchivedStream, str] = MappingProxyType(
    {
        "records": RECORDS_STREAM_KEY,
        "feedback": FEEDBACK_STREAM_KEY,
        "reported": REPORTED_STREAM_KEY,
        "texts": TEXTS_STREAM_KEY,
    }
)
DATASETS: Mapping[ArchivedStream, Dataset] = MappingProxyType(
    {"records": "records", "feedback": "feedback", "reported": "records", "texts": "texts"}
)
PART_ENTRIES_MAX = 50_000
READ_MAX = 500
PARTIAL = ".partial-"
PARTIAL_SECONDS_MAX = 3600.0
UNREADABLE = re.compile(r"(\w+)-\d+-\d+-(\d+)-\d+\.jsonl")
"""The name of a file of unreadable entries: their stream, and the time (ms) of the last one."""
INTEGERS = tuple(name for name, kind in columns_of(RecordRow).items() if kind == "BIGINT")
BIGINT_MAX = (1 << 63) - 1

PLAN = """
local planned = redis.call('HGET', KEYS[1], 'planned')
if planned then return planned end
if (redis.call('HGET', KEYS[1], 'done') or '') ~= ARGV[1] then return '' end
redis.call('HSET', KEYS[1], 'planned', ARGV[2])
return ARGV[2]
"""
NOTE = """
if redis.call('HGET', KEYS[1], 'planned') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'done', ARGV[2])
redis.call('HDEL', KEYS[1], 'planned')
return 1
"""


class ArchiveJob(msgspec.Struct):
    """A job: the Redis to read, the folder or bucket to write to, and the number of days to keep."""

    redis_url: str
    folder: str
    retention_days: int
    part_entries_max: int = PART_ENTRIES_MAX
    texts: TextRetention = TextRetention()
    bucket: Bucket | None = None


class ArchiveReport(msgspec.Struct):
    """The result of a run: numbers of written entries, unreadable ones (kept in files beside them), files, their bytes,
    and files merged into others."""

    records: int = 0
    feedback: int = 0
    texts: int = 0
    texts_pruned: int = 0
    merged: int = 0
    unreadable: int = 0
    files: int = 0
    size_bytes: int = 0
    seconds: float = 0.0


class _LineNames(msgspec.Struct):
    """The names that identify a line's entry."""

    request: str | None = None
    entry: str | None = None


@dataclass(slots=True)
class Staged:
    """A range of entries as JSON lines, in a file for each day. `first` and `last` are None without entries."""

    folder: Path
    first: str | None = None
    last: str | None = None
    entries: int = 0
    unreadable: int = 0
    files: dict[str, Any] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Requests whose texts are among the entries."""

    def add(self, entry: str, day: str, line: bytes) -> None:
        """Append an entry to its day; an empty line stands for an entry of which nothing is left."""
        self.first = self.first or entry
        self.last = entry
        if not line:
            return
        file = self.files.get(day)
        if file is None:
            file = self.files[day] = (self.folder / f"{day}.jsonl").open("wb")
        file.write(line + b"\n")
        self.entries += 1

    def close(self) -> list[tuple[str, Path]]:
        """Close the files; returns each day with its file."""
        for file in self.files.values():
            file.close()
        return [(day, Path(file.name)) for day, file in sorted(self.files.items())]


def run(job: ArchiveJob) -> ArchiveReport:
    """Write all new entries. Raises JobError; work done before stays done."""
    began = time.monotonic()
    report, storage = ArchiveReport(), open_storage(job.folder, job.bucket)
    try:
        storage.scratch.mkdir(parents=True, exist_ok=True)
        with (
            open_redis(job.redis_url, socket_timeout=30, socket_connect_timeout=5) as redis,
            storage.lock(redis),
        ):
            now = min(time.time(), float(redis.time()[0]))  # one wrong clock must not delete too much
            _sweep(storage, job, now)
            write_all(redis, storage, report, job.part_entries_max)
            report.texts_pruned = delete_due_texts(redis, storage, job.texts, now)
            report.merged = merge_parts(redis, storage, now)
    except RedisError as error:
        raise JobError(f"Redis can't be used: {error}") from error
    except OSError as error:
        raise JobError(str(error)) from error
    report.seconds = round(time.monotonic() - began, 3)
    return report


def write_all(redis: Any, storage: ArchiveStorage, report: ArchiveReport, entries_max: int = PART_ENTRIES_MAX) -> None:
    """Write the new entries of all streams. The caller has locked the storage."""
    for source in STREAMS:
        while _write_range(redis, source, storage, entries_max, report):
            pass


def _write_range(
    redis: Any, source: ArchivedStream, storage: ArchiveStorage, entries_max: int, report: ArchiveReport
) -> bool:
    """Write one range of entries; returns whether there may be more."""
    key = f"apprentice:archive:{source}"
    dataset = DATASETS[source]
    done, planned = (raw.decode() if raw else "" for raw in redis.hmget(key, "done", "planned"))
    with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=storage.scratch) as scratch:
        staged = Staged(Path(scratch))
        first, _, last = planned.partition(" ")
        low, high = (first, last) if planned else (f"({done}" if done else "-", "+")
        for entry, day, line in _rows(redis, source, low, high, None if planned else entries_max, staged):
            staged.add(entry, day, line)
        days = staged.close()
        if not planned:
            if staged.first is None:
                return False
            planned = f"{staged.first} {staged.last}"
            if redis.eval(PLAN, 1, key, done, planned).decode() != planned:
                return True  # another gateway planned this range meanwhile: look again
            first, last = staged.first, staged.last or ""
        for day, lines in days:
            name = f"part-{'reported-' * (source == 'reported')}{first}-{last}"
            if day == "unreadable":
                place = f"{day}/{source}-{first}-{last}.jsonl"
                if storage.size(place) is None:  # a repeated run no longer has all texts
                    storage.write(place, lines)
                continue
            place = f"{dataset}/{day}/{name}.parquet"
            if _leave_out_archived(storage, dataset, place, lines):
                size = write_part(storage, dataset, lines, place)
                report.files += bool(size)
                report.size_bytes += size
    delete_texts(redis, staged.requests, ARCHIVED_MS)
    if redis.eval(NOTE, 1, key, planned, last):
        setattr(report, dataset, getattr(report, dataset) + staged.entries)
        report.unreadable += staged.unreadable
    if source == "texts":
        redis.xtrim(TEXTS_STREAM_KEY, minid=last, approximate=False)
    return True


def _leave_out_archived(storage: ArchiveStorage, dataset: Dataset, place: str, lines: Path) -> bool:
    """Leave out entries that other files of the day already have: a restored backup of Redis has them again. Returns
    whether any are left."""
    folder, _, own_name = place.rpartition("/")
    own = read_span(own_name)
    spans = {name: read_span(name) for name in list_unspanned(storage.list_names(folder)) if name != own_name}
    others = [f"{folder}/{name}" for name, span in spans.items() if own and span and own.overlaps(span)]
    if not others:
        return True
    column = "request" if dataset == "texts" else "entry"
    with connect_duckdb(storage) as connection:
        rows = query_files(connection, storage, dataset, others, f'SELECT "{column}" FROM {{table}}')  # noqa: S608
        archived = {row[column] for row in rows}
    every = lines.read_bytes().splitlines(keepends=True)
    left = [line for line in every if getattr(msgspec.json.decode(line, type=_LineNames), column) not in archived]
    lines.write_bytes(b"".join(left))
    return bool(left)


def _rows(
    redis: Any, source: ArchivedStream, low: str, high: str, entries_max: int | None, staged: Staged
) -> Iterator[tuple[str, str, bytes]]:
    """Entries of a stream as (id, day, JSON in the dataset's columns)."""
    rest = entries_max
    while rest is None or rest > 0:
        batch = redis.xrange(STREAMS[source], low, high, count=READ_MAX if rest is None else min(READ_MAX, rest))
        for raw, fields in batch:
            entry = raw.decode()
            try:
                at, line = _read(redis, source, entry, fields, staged)
                yield entry, day_of(at), line
            except (msgspec.DecodeError, KeyError, ValueError, OverflowError, OSError):
                staged.unreadable += 1
                texts = {name.decode(): value.decode(errors="replace") for name, value in fields.items()}
                yield entry, "unreadable", msgspec.json.encode({"entry": entry, **texts})
            low = f"({entry}"
        if not batch:
            return
        rest = None if rest is None else rest - len(batch)


def _read(
    redis: Any, source: ArchivedStream, entry: str, fields: dict[bytes, bytes], staged: Staged
) -> tuple[float, bytes]:
    match source:
        case "texts":
            return _text(redis, fields, staged)
        case "feedback":
            return _feedback(entry, fields)
        case "records" | "reported":
            return _record(entry, fields)
        case _:
            assert_never(source)


def _record(entry: str, fields: Mapping[bytes, bytes]) -> tuple[float, bytes]:
    record = msgspec.json.decode(fields[b"record"], type=RecordRow)
    record.entry = entry
    if any(abs(getattr(record, name) or 0) > BIGINT_MAX for name in INTEGERS):
        raise ValueError("a number fits no column")
    return record.at, msgspec.json.encode(record)


def _text(redis: Any, fields: dict[bytes, bytes], staged: Staged) -> tuple[float, bytes]:
    """An entry's text; an empty line if it is gone, since it was erased or is in a file. The text is added to `fields`,
    so an unreadable one is kept with its entry."""
    request = fields[b"request"].decode()
    raw: bytes | None = redis.get(TEXT_KEY + request)
    if not raw:
        return 0.0, b""
    fields[b"text"] = raw
    staged.requests.append(request)
    return msgspec.json.decode(raw, type=TextRow).at, raw


def _feedback(entry: str, fields: Mapping[bytes, bytes]) -> tuple[float, bytes]:
    feedback = msgspec.json.decode(fields[b"feedback"], type=Feedback)
    row = row_of(feedback, fields[b"request"].decode(), RecordIndex.read(fields[b"index"]), entry)
    return feedback.at, msgspec.json.encode(row)


def _sweep(storage: ArchiveStorage, job: ArchiveJob, now: float) -> None:
    """Remove days and unreadable entries that are too old, and unfinished files of killed runs."""
    oldest = day_of(now - job.retention_days * DAY_SECONDS)
    for dataset in ROWS:
        for day in storage.list_names(dataset):
            if day.startswith("day=") and day < oldest:
                try:
                    storage.remove_folder(f"{dataset}/{day}")
                except OSError as error:
                    log.error("%s/%s/%s is too old and can't be removed: %s", storage.root, dataset, day, error)
    text_days = min([job.retention_days, *(days.retention for days in job.texts.tasks.values())])
    for name in storage.list_names("unreadable"):
        if (part := UNREADABLE.fullmatch(name)) is not None:
            days = text_days if part[1] == "texts" else job.retention_days
            if int(part[2]) / 1000 < now - days * DAY_SECONDS:
                storage.remove(f"unreadable/{name}")
    for leftover in storage.scratch.glob(f"{PARTIAL}*"):
        if time.time() - leftover.stat().st_mtime > PARTIAL_SECONDS_MAX:
            shutil.rmtree(leftover, ignore_errors=True)


if __name__ == "__main__":
    run_job(ArchiveJob, run)
