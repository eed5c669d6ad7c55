"""The archive: records, feedback and kept texts as Parquet by day, `DATASET/day=YYYY-MM-DD/part-FIRST-LAST.parquet`.

Files of reported records are named `part-reported-FIRST-LAST.parquet`, since their entries have a stream of their own.
`-merged` after LAST marks a file that was merged from others (archive/merging.py).

DuckDB reads and writes the files. Its import takes about 60 ms, so no gateway imports this file: a separate process
writes (archive/run.py), and the command line reads.
"""

from __future__ import annotations

import logging
import re
import types
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import duckdb
import msgspec

from monitoring.archive.storage import ArchiveStorage
from monitoring.records import Record
from monitoring.texts import TextRow

log = logging.getLogger(__name__)
Dataset = Literal["records", "feedback", "texts"]
THREADS_MAX = 1
FETCHED_MAX = 500
MEMORY = "512MB"
PARQUET = "FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE_BYTES '16MB'"
"""DuckDB holds about four copies of a row group in memory, and a text may have half a megabyte."""
PART_FORMAT = f"{PARQUET}, ROW_GROUP_SIZE 2048"
PART = re.compile(r"part-(reported-)?(\d+)-(\d+)-(\d+)-(\d+)(-merged)?\.parquet")
SCALARS: Mapping[type, str] = {str: "VARCHAR", float: "DOUBLE", int: "BIGINT", bool: "BOOLEAN"}


class RecordRow(Record, kw_only=True, omit_defaults=False):
    """A record in the archive. `entry` is its place in its stream; None in a file of an older gateway."""

    entry: str | None = None


class FeedbackRow(msgspec.Struct, kw_only=True, omit_defaults=False):
    """One judgement in the archive, with fields of its record. Older files lack the last seven fields."""

    request: str  # Id of its record.
    at: float  # Unix time when it was given.
    caller: str  # Public part of the key it came with.
    task: str | None = None  # The record's task.
    version: str | None = None  # The record's version.
    pool: str | None = None  # The record's pool.
    feedback_id: str  # Its name among its caller's.
    metric: str  # The metric.
    value_boolean: bool | None = None  # The value, of a boolean.
    value_float: float | None = None  # The value, of a float.
    value_category: str | None = None  # The value, of a category.
    rater: str | None = None  # Who judged, if not the caller.
    comment: str | None = None  # As given.
    demonstration: str | None = None  # The right answer, as JSON.
    tags: str | None = None  # As given, as JSON.
    demonstration_digests: str | None = None  # Keyed digests of the demonstration by judge, as JSON.
    reviewed: bool | None = None  # Whether a reviewer judged a drawn request.
    reviewers: int | None = None  # Reviewers who are asked of it.
    resolves: bool | None = None  # Whether its giver has seen all their answers.
    key: str | None = None  # Key that sealed its words.
    sealed: str | None = None  # Its words, sealed.
    entry: str | None = None  # Its place in the stream.


ROWS: Mapping[Dataset, type[msgspec.Struct]] = types.MappingProxyType(
    {"records": RecordRow, "feedback": FeedbackRow, "texts": TextRow}
)


@dataclass(frozen=True, slots=True)
class ArchiveQuery:
    """A query of one dataset. Times in Unix seconds: from `since` on, before `until`; None: without a bound."""

    dataset: Dataset = "records"
    since: float | None = None
    until: float | None = None
    task: str | None = None


@dataclass(frozen=True, slots=True)
class Day:
    """One day: its rows that match a query, its files and their bytes."""

    day: str
    rows: int
    files: int
    size_bytes: int


class Span(NamedTuple):
    """The range of a file's entries, from its name: their stream, the first and the last entry."""

    kind: str
    first: tuple[int, int]
    last: tuple[int, int]
    is_merged: bool

    def overlaps(self, other: Span) -> bool:
        """Return whether both may hold the same entry."""
        return self.kind == other.kind and self.first <= other.last and other.first <= self.last


class NothingArchived(Exception):
    """There is no file for the query."""


class DamagedFiles(Exception):
    """Some files for the query can't be read; the text names them."""


def columns_of(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The columns of a dataset, and their types as DuckDB writes them, in the fields' order."""
    return {field.encode_name: find_column_type(field.type) for field in msgspec.structs.fields(struct)}


def find_column_type(annotation: Any) -> str:
    """The type of a column for a field's type. Raises KeyError for a type that no dataset has."""
    kinds = [kind for kind in typing.get_args(annotation) or (annotation,) if kind is not types.NoneType]
    if typing.get_origin(annotation) is list:
        return f"{find_column_type(kinds[0])}[]"
    if issubclass(kinds[0], msgspec.Struct):
        inner = ", ".join(f'"{name}" {kind}' for name, kind in columns_of(kinds[0]).items())
        return f"STRUCT({inner})"
    return SCALARS[kinds[0]]


def day_of(at: float) -> str:
    """The UTC day of a time in Unix seconds, as the name of its folder."""
    return datetime.fromtimestamp(at, UTC).strftime("day=%Y-%m-%d")


def write_part(storage: ArchiveStorage, dataset: Dataset, lines: Path, place: str) -> int:
    """Write a file of JSON lines as Parquet; it appears whole and synced, or not at all. Returns its size in bytes.

    A file that exists under the name is the same and stays; the size is then 0.
    """
    return replace_part(storage, dataset, lines, place) if storage.size(place) is None else 0


def replace_part(storage: ArchiveStorage, dataset: Dataset, lines: Path, place: str) -> int:
    """Write a file of JSON lines as Parquet in place of an existing file, which stays whole until then. Returns its
    size in bytes."""
    columns = ", ".join(f"'{name}': '{kind}'" for name, kind in columns_of(ROWS[dataset]).items())
    partial = lines.with_suffix(".parquet")
    with connect_duckdb(scratch=lines.parent) as connection:
        rows = f"read_json({write_path(lines)}, format='newline_delimited', columns={{{columns}}})"
        write_parquet(connection, rows, partial)
    size = partial.stat().st_size
    storage.write(place, partial)
    return size


def write_parquet(connection: duckdb.DuckDBPyConnection, rows: str, path: Path) -> None:
    """Write the rows of a table to a file, in their order."""
    connection.execute(f"COPY (SELECT * FROM {rows}) TO {write_path(path)} ({PART_FORMAT})")  # noqa: S608 - our own names


def count(storage: ArchiveStorage, archive_query: ArchiveQuery) -> list[Day]:
    """The rows of a query by day. Raises NothingArchived if there is no file, and DamagedFiles."""
    where, values = _where(archive_query)
    days = []
    with connect_duckdb(storage) as connection:
        for day, places in group_by_day(list_files(storage, archive_query)).items():
            query = f"SELECT count(*) FROM {read(storage, archive_query.dataset, places)} {where}"  # noqa: S608
            with name_damaged(storage, archive_query.dataset, places):
                row = connection.execute(query, values).fetchone()
            size = sum(storage.size(place) or 0 for place in places)
            days.append(Day(day.removeprefix("day="), row[0] if row else 0, len(places), size))
    return days


def group_by_day(places: Iterable[str]) -> dict[str, list[str]]:
    """The files of each day's folder, in their order."""
    days: dict[str, list[str]] = {}
    for place in places:
        days.setdefault(place.split("/")[1], []).append(place)
    return days


def export(storage: ArchiveStorage, archive_query: ArchiveQuery, target: Path) -> int:
    """Write the rows of a query to one file; its suffix names the form: .parquet, .csv or .jsonl. Returns their number.

    In CSV, nested values are JSON, and a text that begins like a formula gets an apostrophe before it. The file appears
    whole or not at all. Raises NothingArchived, DamagedFiles, OSError, and ValueError for another suffix.
    """
    forms = {
        ".parquet": PARQUET,
        ".csv": "FORMAT csv, HEADER",
        ".jsonl": "FORMAT json, ARRAY false",
    }
    form = forms.get(target.suffix)
    if form is None:
        raise ValueError(f"{target} ends in none of {', '.join(forms)}.")
    places = list(list_files(storage, archive_query))
    columns = columns_of(ROWS[archive_query.dataset])
    is_csv = target.suffix == ".csv"
    chosen = ", ".join(f'{_write_cell(name, kind) if is_csv else ""}"{name}"' for name, kind in columns.items())
    where, values = _where(archive_query)
    if not target.parent.is_dir():
        raise FileNotFoundError(2, "there is no such folder", str(target.parent))
    partial = target.with_name(f".{target.name}.partial")
    try:
        with connect_duckdb(storage) as connection, name_damaged(storage, archive_query.dataset, places):
            query = f"SELECT {chosen} FROM {read(storage, archive_query.dataset, places)} {where}"  # noqa: S608 - our own names; values are bound
            written = connection.execute(f"COPY ({query}) TO {write_path(partial)} ({form})", values).fetchone()
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return written[0] if written else 0


def _write_cell(name: str, kind: str) -> str:
    if kind == "VARCHAR":  # a caller's text, which a spreadsheet would evaluate
        return rf"""regexp_replace("{name}", '^[-=+@\t\r]', '''\0') AS """
    return "" if kind.isalpha() else f'to_json("{name}") AS '


def connect_duckdb(storage: ArchiveStorage | None = None, scratch: Path | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory, which downloads no extensions and can read the files of a storage. Data that exceed its
    memory go to `scratch`, if given."""
    connection = duckdb.connect(
        config={
            **({} if scratch is None else {"temp_directory": str(scratch)}),
            "threads": str(THREADS_MAX),
            "memory_limit": MEMORY,
            "preserve_insertion_order": "false",  # else a row group has no bound in bytes; one thread keeps the order
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
    )
    if storage is not None:
        storage.attach(connection)
    return connection


def list_files(storage: ArchiveStorage, query: ArchiveQuery) -> Iterator[str]:
    """The files that may hold rows of a query, in the order of their days. Raises NothingArchived."""
    first = day_of(query.since) if query.since is not None else ""
    last = day_of(query.until) if query.until is not None else "day=9999"
    there = False
    for day in storage.list_names(query.dataset):
        if not day.startswith("day=") or not first <= day <= last:
            continue
        for name in list_unspanned(storage.list_names(f"{query.dataset}/{day}")):
            if name.startswith("part-") and name.endswith(".parquet"):
                there = True
                yield f"{query.dataset}/{day}/{name}"
    if not there:
        raise NothingArchived(f"There are no {query.dataset} of that time in {storage.root}.")


def read_span(name: str) -> Span | None:
    """The range of a file's entries, from its name; None if the name has none."""
    part = PART.fullmatch(name)
    if part is None:
        return None
    first_ms, first, last_ms, last = map(int, part.groups()[1:5])
    return Span(part[1] or "", (first_ms, first), (last_ms, last), part[6] is not None)


def list_unspanned(names: Sequence[str]) -> list[str]:
    """The files of a day, in their order, without those that were merged into another one (archive/merging.py). A file
    that is not merged may span entries that it lacks, for instance after Redis was restored from a backup."""
    spans = [(span, name) for name in names if (span := read_span(name)) is not None]
    spanned, wide = set[str](), Span("", (0, 0), (-1, 0), True)
    for span, name in sorted(spans, key=lambda at: (*at[0][:2], [-part for part in at[0].last], not at[0].is_merged)):
        if span.kind == wide.kind and span.last <= wide.last:
            spanned.add(name)
        elif span.is_merged:
            wide = span
    return [name for name in names if name not in spanned]


def read(storage: ArchiveStorage, dataset: Dataset, places: Sequence[str], named: bool = False) -> str:
    """These files as one SQL table with all columns of the dataset; columns that a file of an older gateway lacks are
    null. `named` adds the column `filename` with ROOT/PLACE."""
    listed = ", ".join(write_path(f"{storage.root}/{place}") for place in places)
    columns = columns_of(ROWS[dataset]) | ({"filename": "VARCHAR"} if named else {})
    nulls = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns.items())
    if not places:
        return f"(SELECT {nulls} WHERE false)"
    return (
        f"(SELECT * FROM read_parquet([{listed}], union_by_name=true, hive_partitioning=false, "  # noqa: S608
        f"filename={str(named).lower()}) "
        f"UNION ALL BY NAME SELECT {nulls} WHERE false)"
    )


def fetch_rows(cursor: duckdb.DuckDBPyConnection) -> Iterator[dict[str, Any]]:
    """The rows of an executed query as mappings by column; few of them are in memory at a time."""
    names = [column[0] for column in cursor.description or ()]
    while batch := cursor.fetchmany(FETCHED_MAX):
        for values in batch:
            yield dict(zip(names, values, strict=True))


def find_table(storage: ArchiveStorage, query: ArchiveQuery) -> str:
    """A dataset as one SQL table, without rows if there is no file."""
    return read(storage, query.dataset, find_files(storage, query))


def find_files(storage: ArchiveStorage, query: ArchiveQuery) -> list[str]:
    """The files that may hold rows of a query, without known damaged ones; none if there is none."""
    try:
        return [place for place in list_files(storage, query) if place not in storage.damaged]
    except NothingArchived:
        return []


def query_files(
    connection: duckdb.DuckDBPyConnection,
    storage: ArchiveStorage,
    dataset: Dataset,
    places: Sequence[str],
    select: str,
    values: Sequence[Any] = (),
    named: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of an SQL query of these files, which `{table}` stands for in it.

    If it fails, each file is asked by itself: some rows then come twice, and aggregates come for each file. A damaged
    file is logged, noted in `storage.damaged`, and left out.
    """
    try:
        table = read(storage, dataset, places, named)
        yield from fetch_rows(connection.execute(select.replace("{table}", table), values))
    except duckdb.Error as error:
        if len(places) > 1:
            for place in places:
                yield from query_files(connection, storage, dataset, [place], select, values, named)
        elif places and _is_damaged(storage, dataset, places[0]):
            storage.damaged.add(places[0])
            log.error("%s/%s is damaged, and is left out: %s", storage.root, places[0], error)
        else:
            raise


@contextmanager
def name_damaged(storage: ArchiveStorage, dataset: Dataset, places: Sequence[str]) -> Iterator[None]:
    """Raise DamagedFiles in place of DuckDB's error, which may not name the file, if files of these are damaged."""
    try:
        yield
    except duckdb.Error as error:
        damaged = [f"{storage.root}/{place}" for place in places if _is_damaged(storage, dataset, place)]
        if not damaged:
            raise
        text = "Leave out their days, or restore or delete them."
        raise DamagedFiles(f"The archive has damaged files: {', '.join(damaged)}. {text}") from error


def _is_damaged(storage: ArchiveStorage, dataset: Dataset, place: str) -> bool:
    """Return whether a file can't be read. Raises BucketError if that is not the file's fault."""
    with suppress(OSError):
        storage.read(place)
    with connect_duckdb(storage) as connection:
        try:
            connection.execute(f"SELECT bit_xor(hash(rows)) FROM {read(storage, dataset, [place])} rows").fetchall()  # noqa: S608
        except duckdb.OutOfMemoryException:
            raise
        except duckdb.Error:
            return True
    return False


def match_requests(requests: Collection[str]) -> tuple[str, list[Any]]:
    """An SQL condition for the rows of these requests (at least one), with its values. It includes their range, so that
    DuckDB skips row groups of other times."""
    within = [min(requests), max(requests), list(requests)]
    return '"request" BETWEEN ? AND ? AND "request" IN (SELECT unnest(?::VARCHAR[]))', within


def _where(archive_query: ArchiveQuery) -> tuple[str, list[Any]]:
    bounds = [('"at" >= ?', archive_query.since), ('"at" < ?', archive_query.until), ('"task" = ?', archive_query.task)]
    conditions = [(condition, value) for condition, value in bounds if value is not None]
    text = " AND ".join(condition for condition, _ in conditions)
    return f"WHERE {text}" if text else "", [value for _, value in conditions]


def write_path(path: Path | str) -> str:
    """A path as an SQL string."""
    return "'" + str(path).replace("'", "''") + "'"
