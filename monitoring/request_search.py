"""Search in requests, newest first: the newest come from Redis, all others from the archive.

The results are ordered by request id, which is the order in which the requests were made. Redis has them in the order
in which they ended. So a request is returned only once no later request can still turn up.

`python -m monitoring.request_search` reads a SearchJob as a line of JSON, and prints a SearchResult.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter
from typing import Any, Literal

import msgspec

from monitoring.archive.tables import ArchiveQuery, RecordRow, columns_of, fetch_rows, find_files, query_files
from monitoring.feedback_reader import read_feedback
from monitoring.helper_process import run_job
from monitoring.ids import read_time
from monitoring.labels.request_label import LabelRules, RequestLabel, find_label
from monitoring.records import STREAM_KEY
from monitoring.text_reader import TextReader
from monitoring.texts import KeptText, TextSource
from monitoring.time_units import DAY_SECONDS

AT_ONCE = 200
LOOKED_MAX = 50_000
"""The most requests that one search reads; the next search goes on from there."""
PAGE_BYTES_MAX = 2 << 20
"""A page ends early at this size: decoding 30 MB would block a gateway's event loop for half a second."""
HOT_SECONDS = 3_600.0
"""A request made this long before the last archived one has ended and is archived too."""
CLOCK_SECONDS = 30.0
"""A gateway's clock, from which ids are made, may be this much ahead of Redis's."""
LabelFilter = Literal["right", "wrong", "unresolved", "none"]


class Found(msgspec.Struct, kw_only=True):
    """A request as a list shows it: some fields of its record."""

    id: str
    at: float
    caller: str
    endpoint: str = ""
    purpose: str = "serve"
    task: str | None = None
    version: str | None = None
    pool: str | None = None
    reason: str | None = None
    outcome: str = ""
    status: int = 0
    error_code: str | None = None
    cost_usd: float | None = None
    duration_seconds: float = 0.0


SHOWN = Found.__struct_fields__


class RequestQuery(msgspec.Struct, frozen=True, kw_only=True):
    """The requests that are wanted. Times are Unix seconds: from `since` on, before `until`; `before` is an id.

    `text` is a part of the question or answer, in any case. `with_texts` returns all texts.
    """

    task: str | None = None
    version: str | None = None
    outcome: str | None = None
    reason: str | None = None
    caller: str | None = None
    since: float | None = None
    until: float | None = None
    before: str | None = None
    label: LabelFilter | None = None
    text: str | None = None
    with_texts: bool = False
    limit: int = 50

    def matches(self, hit: Found) -> bool:
        """Return whether a request is wanted, by the fields of its record."""
        equal = ((name, getattr(self, name)) for name in EQUAL)
        return (
            hit.purpose == "serve"
            and all(value is None or getattr(hit, name) == value for name, value in equal)
            and (self.since is None or hit.at >= self.since)
            and (self.until is None or hit.at < self.until)
            and (self.before is None or hit.id < self.before)
        )


EQUAL = ("task", "version", "outcome", "reason", "caller")
BY_ID = attrgetter("id")


class SearchJob(msgspec.Struct, frozen=True, kw_only=True):
    """A search in a process beside the gateway. `rules` decide the labels of each task; those under "" are for all
    other tasks."""

    source: TextSource
    query: RequestQuery
    rules: dict[str, LabelRules] = {}


class SearchResult(msgspec.Struct, kw_only=True):
    """The requests found, newest first, each with its label and text if there are any. The next search begins before
    `next_before`; None: that was all. `unreadable` counts texts that could not be opened, and
    `damaged` names files of the archive that could not be read."""

    requests: list[dict[str, Any]]
    next_before: str | None = None
    unreadable: int = 0
    damaged: list[str] = []


def search(job: SearchJob) -> SearchResult:
    """Search requests. Raises RedisError, OSError and duckdb.Error."""
    query, rows, last, size_bytes = job.query, list[dict[str, Any]](), None, 0
    with TextReader(job.source) as reader, closing(_candidates(reader, query)) as every:
        candidates, looked = islice(every, LOOKED_MAX), 0
        while batch := list(islice(candidates, AT_ONCE)):
            looked += len(batch)
            for row in _complete(reader, job, batch):
                rows.append(row)
                size_bytes += len(msgspec.json.encode(row))
                if len(rows) == query.limit or size_bytes >= PAGE_BYTES_MAX:
                    return _make_result(reader, rows, row["id"])
            last = batch[-1].id
    return _make_result(reader, rows, last if looked >= LOOKED_MAX else None)


def _make_result(reader: TextReader, rows: list[dict[str, Any]], next_before: str | None) -> SearchResult:
    return SearchResult(
        requests=rows,
        next_before=next_before,
        unreadable=reader.unreadable,
        damaged=sorted(reader.archive.damaged),
    )


def _complete(reader: TextReader, job: SearchJob, batch: list[Found]) -> Iterator[dict[str, Any]]:
    """The requests of a batch that match by label and text too, with both."""
    query, hits, labels = job.query, batch, dict[str, RequestLabel | None]()
    if query.label is not None:
        labels = _find_labels(reader, job, hits)
        values = {request: "none" if label is None else label.value for request, label in labels.items()}
        hits = [hit for hit in hits if values[hit.id] == query.label]
    texts = reader.of_requests([hit.id for hit in hits]) if query.with_texts or query.text else {}
    if query.text is not None:
        hits = [hit for hit in hits if hit.id in texts and has_text(texts[hit.id], query.text)]
    if query.label is None:  # only for the few that are returned
        labels = _find_labels(reader, job, hits)
    for hit in hits:
        label = labels[hit.id]
        label_fields = None if label is None else {"value": label.value, "words": label.words}
        more = {"text": msgspec.to_builtins(texts.get(hit.id))} if query.with_texts else {}
        yield {name: getattr(hit, name) for name in SHOWN} | {"label": label_fields} | more


def _find_labels(reader: TextReader, job: SearchJob, hits: list[Found]) -> dict[str, RequestLabel | None]:
    ids = [hit.id for hit in hits]
    feedback = read_feedback(reader.redis, reader.connection, reader.archive, ids, reader.seals) if ids else {}
    return {hit.id: _label_of(hit, feedback, job) for hit in hits}


def _label_of(hit: Found, feedback: Mapping[str, Any], job: SearchJob) -> RequestLabel | None:
    rules = job.rules.get(hit.task or "") or job.rules.get("")
    return find_label(feedback.get(hit.id, []), rules) if rules is not None else None


def has_text(text: KeptText, part: str) -> bool:
    """Return whether `part` occurs in the question or the answer, in any case."""
    texts = [text.messages, text.prompt, text.answer, text.tool_calls]
    return part.casefold() in " ".join(_strings_of(texts)).casefold()


def _strings_of(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings_of(each)


def _candidates(reader: TextReader, query: RequestQuery) -> Generator[Found, None, None]:
    """The requests that are wanted by the fields of their records, newest first."""
    waiting: list[Found] = []
    done = (reader.redis.hget("apprentice:archive:records", "done") or b"").decode()
    archived_until = query.until
    if not done or _may_be_hot(query, _milliseconds(done)):
        for page, read_to in _pages(reader.redis, done):
            waiting += [hit for hit in page if query.matches(hit)]
            archived_until = read_to if query.until is None else min(query.until, read_to)
            ready = [hit for hit in waiting if read_time(hit.id) >= read_to]
            waiting = [hit for hit in waiting if read_time(hit.id) < read_to]
            yield from sorted(ready, key=BY_ID, reverse=True)
    rest = heapq.merge(
        sorted(waiting, key=BY_ID, reverse=True), _archived(reader, query, archived_until), key=BY_ID, reverse=True
    )
    yield from _once(rest)


def _may_be_hot(query: RequestQuery, archived_ms: int) -> bool:
    newest = min(
        (at for at in (query.until, read_time(query.before) if query.before else None) if at is not None), default=None
    )
    return newest is None or newest > archived_ms / 1000 - HOT_SECONDS


def _pages(redis: Any, done: str) -> Iterator[tuple[list[Found], float]]:
    """Pages of the stream, from its end back to the archived part. Each comes with a time in Unix seconds: all ended
    requests with later ids have been read."""
    high = "+"
    while batch := redis.xrevrange(STREAM_KEY, high, "-", count=AT_ONCE):
        high = f"({batch[-1][0].decode()}"
        page = [found for _, fields in batch if (found := _read_found(fields)) is not None]
        yield page, _milliseconds(batch[-1][0].decode()) / 1000 + CLOCK_SECONDS
        if done and _milliseconds(batch[-1][0].decode()) < _milliseconds(done):
            return


def _read_found(fields: Mapping[bytes, bytes]) -> Found | None:
    """The request of an entry; None if it can't be read, as in the archive."""
    try:
        return msgspec.json.decode(fields[b"record"], type=Found)
    except (msgspec.DecodeError, KeyError):
        return None


def _archived(reader: TextReader, query: RequestQuery, until: float | None) -> Iterator[Found]:
    """The wanted archived requests, newest first. Each day is copied first, so that a writer waits only for a copy."""
    bounds = [("purpose", "=", "serve"), ("at", ">=", query.since), ("at", "<", until), ("id", "<", query.before)]
    terms = [each for each in (*((name, "=", getattr(query, name)) for name in EQUAL), *bounds) if each[2] is not None]
    where = " AND ".join(f'"{name}" {sign} ?' for name, sign, _ in terms)
    names, kinds = ", ".join(f'"{name}"' for name in SHOWN), columns_of(RecordRow)
    select = f'SELECT {names} FROM {{table}} WHERE {where} ORDER BY "id" DESC'  # noqa: S608 - our own names
    copy = f"INSERT INTO found {select} LIMIT {2 * LOOKED_MAX}"  # a row may be stored twice
    days = [_read_day(name) for name in reader.archive.list_names("records") if name.startswith("day=")]
    for day in sorted(days, reverse=True):
        if (query.since is None or query.since < day + DAY_SECONDS) and (until is None or day < until):
            with reader.connection.cursor() as cursor:
                with reader.archive.lock(reader.redis, shared=True):
                    reader.archive.attach(cursor)
                    files = find_files(reader.archive, ArchiveQuery("records", day, day))
                    columns = ", ".join(f'"{name}" {kinds[name]}' for name in SHOWN)
                    cursor.execute(f"CREATE TEMP TABLE found ({columns})")
                    list(query_files(cursor, reader.archive, "records", files, copy, [value for _, _, value in terms]))
                cursor.execute('SELECT * FROM found ORDER BY "id" DESC')
                yield from (Found(**row) for row in fetch_rows(cursor))


def _read_day(name: str) -> float:
    """The first moment of a day (Unix seconds), from its folder's name."""
    return datetime.fromisoformat(name.removeprefix("day=")).replace(tzinfo=UTC).timestamp()


def _once(hits: Iterable[Found]) -> Iterator[Found]:
    last = ""
    for hit in hits:
        if hit.id != last:
            yield hit
        last = hit.id


def _milliseconds(place: str) -> int:
    return int(place.partition("-")[0] or 0)


if __name__ == "__main__":
    run_job(SearchJob, search)
