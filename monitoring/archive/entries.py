"""The archive's records and feedback for the monitor: entries of all streams in their order.

DuckDB sorts the entries and finds each feedback's record; it uses a folder for data that does not fit into memory.
Files of older gateways lack the places of their entries. A record's place is then the time of its answer, and a
feedback's place is the time when it was given.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from monitoring.archive.feedback_rows import VALUES
from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import ArchiveQuery, NothingArchived, connect_duckdb, fetch_rows, list_files, read
from monitoring.quality.replay.recorded import Placed
from monitoring.quality.signals.all_watches import FEEDBACK, RECORDS, REPORTED
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry, is_reported

RECORD_COLUMNS = tuple(field.encode_name for field in msgspec.structs.fields(RecordEntry) if field.name != "placed_at")
FEEDBACK_COLUMNS = ("request", "metric", "caller", "rater", "reviewed", "reviewers", "resolves")
AS_JSON = ("tags", "demonstration_digests")
PLACE = """
coalesce(CAST(split_part("entry", '-', 1) AS BIGINT), CAST(round(1000 * ({at})) AS BIGINT)) AS milliseconds,
coalesce(CAST(nullif(split_part("entry", '-', 2), '') AS BIGINT), 0) AS number
"""


def read_entries(
    storage: ArchiveStorage, tasks: Sequence[str], since: float | None, until: float | None
) -> Generator[Placed, None, None]:
    """All entries of these tasks from `since` on and before `until` (Unix seconds), in their order.

    Feedback on a record from before `since` comes without its record. Raises NothingArchived if there are no records.
    """
    queries = ArchiveQuery("records", since, until), ArchiveQuery("feedback", since, until)
    records = _table(storage, queries[0], '"at" + "duration_seconds"')
    try:
        feedback = _table(storage, queries[1], '"at"')
    except NothingArchived:
        feedback = None
    with tempfile.TemporaryDirectory() as scratch, connect_duckdb(storage, Path(scratch)) as connection:
        streams = [_records(connection, records, tasks)]
        if feedback is not None:
            streams.append(_feedback(connection, records, feedback, tasks))
        yield from heapq.merge(*streams, key=lambda entry: entry[:3])


def count_without_place(storage: ArchiveStorage, tasks: Sequence[str], since: float | None, until: float | None) -> int:
    """The number of these tasks' entries in files that lack their places. Raises NothingArchived."""
    total = 0
    for dataset in ("records", "feedback"):
        try:
            table = _table(storage, ArchiveQuery(dataset, since, until), '"at"')
        except NothingArchived:
            if dataset == "records":
                raise
            continue
        with connect_duckdb(storage) as connection:
            query = f'SELECT count(*) FROM {table} WHERE "entry" IS NULL AND "task" IN {_marks(tasks)}'  # noqa: S608
            row = connection.execute(query, list(tasks)).fetchone()
        total += row[0] if row else 0
    return total


def read_versions(storage: ArchiveStorage, tasks: Sequence[str], since: float | None, until: float | None) -> list[str]:
    """The versions that these tasks' requests were led to or answered by. Raises NothingArchived."""
    table = _table(storage, ArchiveQuery("records", since, until), '"at"')
    names = f'SELECT unnest(["led_to", "version"]) AS name FROM {table} WHERE "task" IN {_marks(tasks)}'  # noqa: S608
    query = f"SELECT DISTINCT name FROM ({names}) WHERE name IS NOT NULL ORDER BY name"  # noqa: S608
    with connect_duckdb(storage) as connection:
        return [row[0] for row in connection.execute(query, list(tasks)).fetchall()]


def _table(storage: ArchiveStorage, query: ArchiveQuery, at: str) -> str:
    """The rows of a query in SQL, with each entry's place. Raises NothingArchived if there is no file."""
    place, source = PLACE.format(at=at), read(storage, query.dataset, list(list_files(storage, query)))
    bounds = [f'"at" >= {query.since!r}'] if query.since is not None else []
    bounds += [f'"at" < {query.until!r}'] if query.until is not None else []
    where = f" WHERE {' AND '.join(bounds)}" if bounds else ""
    return f"(SELECT *, {place} FROM {source}{where})"  # noqa: S608 - numbers, and our own names


def _records(connection: duckdb.DuckDBPyConnection, records: str, tasks: Sequence[str]) -> Iterator[Placed]:
    columns = ", ".join(_quoted(name) for name in RECORD_COLUMNS)
    query = (
        f"SELECT milliseconds, number, {columns} FROM {records} "  # noqa: S608
        f'WHERE "task" IN {_marks(tasks)} ORDER BY milliseconds, purpose = \'reported\', number, "id"'
    )
    for row in _rows(connection, query, tasks):
        record = _read_record(row, row["milliseconds"])
        yield Placed(row["milliseconds"], REPORTED if is_reported(record) else RECORDS, row["number"], record)


def _feedback(
    connection: duckdb.DuckDBPyConnection, records: str, feedback: str, tasks: Sequence[str]
) -> Iterator[Placed]:
    """Feedback, each with its record: the last record with the request's id."""
    of_feedback = ", ".join(
        f"f.{_quoted(name)} AS {_quoted(f'feedback_{name}')}" for name in (*FEEDBACK_COLUMNS, *VALUES, *AS_JSON)
    )
    of_records = ", ".join(f"r.{_quoted(name)}" for name in RECORD_COLUMNS)
    last = 'row_number() OVER (PARTITION BY "id" ORDER BY milliseconds DESC, number DESC) = 1'
    query = (
        f"SELECT f.milliseconds, f.number, r.milliseconds AS placed, {of_feedback}, {of_records} "  # noqa: S608
        f"FROM {feedback} f LEFT JOIN (SELECT * FROM {records} QUALIFY {last}) r ON f.request = r.id "
        f'WHERE f."task" IN {_marks(tasks)} ORDER BY f.milliseconds, f.number, f."request", f."feedback_id"'
    )
    for row in _rows(connection, query, tasks):
        record = None if row["placed"] is None else _read_record(row, row["placed"])
        yield Placed(row["milliseconds"], FEEDBACK, row["number"], record, _read_feedback(row))


def _rows(connection: duckdb.DuckDBPyConnection, query: str, tasks: Sequence[str]) -> Iterator[dict[str, Any]]:
    with connection.cursor() as cursor:
        yield from fetch_rows(cursor.execute(query, list(tasks)))


def _read_record(row: Mapping[str, Any], placed_ms: int) -> RecordEntry:
    fields = {name: row[name] for name in RECORD_COLUMNS if row[name] is not None}
    record = msgspec.convert(fields, RecordEntry)
    record.placed_at = placed_ms / 1000
    return record


def _read_feedback(row: Mapping[str, Any]) -> FeedbackEntry:
    fields = {name: value for name in FEEDBACK_COLUMNS if (value := row[f"feedback_{name}"]) is not None}
    fields |= {name: msgspec.json.decode(text) for name in AS_JSON if (text := row[f"feedback_{name}"]) is not None}
    value = next((value for name in VALUES if (value := row[f"feedback_{name}"]) is not None), None)
    return msgspec.convert({**fields, "value": value}, FeedbackEntry)


def _quoted(name: str) -> str:
    return f'"{name}"'


def _marks(tasks: Sequence[str]) -> str:
    return f"({', '.join('?' for _ in tasks)})"
