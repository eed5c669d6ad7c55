"""The rows of a file of labels, whatever wrote it: CSV, JSON lines, a JSON list, or Parquet. Values are texts.

CSV has a head, and commas, semicolons, tabs or bars. An object within an object is named with a dot, as in
`feedback.correct`; lists are left out.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from io import TextIOWrapper
from itertools import chain, count
from pathlib import Path
from typing import Any

from monitoring.evaluation.dataset import TEXT_LOOKED_AT_BYTES, find_separator, find_text_fault

ROWS_AT_ONCE = 1_000
LIST_BYTES_MAX = 1 << 28
"""The largest JSON list: it is read whole."""

Fields = Mapping[str, str]


class LabelFileError(ValueError):
    """A file that is no stream of labels. Its message names the line, and says what to do."""


def read_fields(path: Path) -> Iterator[tuple[int, Fields]]:
    """Read the rows, each with its line, or its number in a list or a table: true is "1", null is "".

    Raises LabelFileError for what can't be read.
    """
    if path.suffix.lower() in (".parquet", ".pq"):
        yield from _read_parquet(path)
        return
    try:
        with (
            path.open("rb") as opened,
            TextIOWrapper(opened, encoding="utf-8-sig", errors="surrogateescape", newline="") as file,
        ):
            beginning = opened.peek(TEXT_LOOKED_AT_BYTES)
            fault = find_text_fault(beginning) if beginning else "are missing: the file is empty."
            if fault:
                raise LabelFileError(f"The labels in {path} {fault}")
            lines = _decode(file)
            first = next(lines, "")
            begins = first.lstrip()[:1]
            read = _read_list if begins == "[" else _read_objects if begins == "{" else _read_csv
            yield from read(chain([first], lines))
    except OSError as error:
        raise LabelFileError(f"{path} can't be read: {error.strerror or error}.") from error


def _decode(lines: Iterable[str]) -> Iterator[str]:
    """The lines. Raises LabelFileError for one that is not UTF-8."""
    for number, line in enumerate(lines, 1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError as error:
                raise LabelFileError(f"line {number}: it is not UTF-8.") from error
        yield line


def _read_csv(lines: Iterator[str]) -> Iterator[tuple[int, Fields]]:
    """The rows of CSV, each with its line; empty ones are left out."""
    first = next(lines, "")
    reader = csv.reader(chain([first], lines), strict=True, delimiter=find_separator(first))
    head = [name.strip() for name in _next(reader) or []]
    twice = next((name for name in head if name and head.count(name) > 1), None)
    if twice is not None:
        raise LabelFileError(f"line 1: two columns are named {twice!r}: rename one.")
    while (fields := _next(reader)) is not None:
        if not any(text.strip() for text in fields):
            continue
        if len(fields) != len(head):
            raise LabelFileError(f"line {reader.line_num}: {len(fields)} fields, and the head has {len(head)}.")
        yield reader.line_num, dict(zip(head, (text.strip() for text in fields), strict=True))


def _next(reader: Any) -> list[str] | None:
    """The next row; None at the end. Raises LabelFileError with the line at which one begins that is none."""
    line = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise LabelFileError(f"line {line}: what begins there is no CSV: {error}.") from error


def _read_objects(lines: Iterator[str]) -> Iterator[tuple[int, Fields]]:
    """The objects of JSON lines, each with its line; values as CSV has them."""
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            entry = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise LabelFileError(f"line {line}: it is no JSON: {error}. Write an object in each line.") from error
        yield line, _flatten_row(f"line {line}", entry)


def _read_list(lines: Iterator[str]) -> Iterator[tuple[int, Fields]]:
    """The objects of a JSON list, each with its number."""
    parts, size = list[str](), 0
    for line in lines:
        parts.append(line)
        size += len(line)
        if size > LIST_BYTES_MAX:
            raise LabelFileError(f"a JSON list of over {LIST_BYTES_MAX} bytes: write an object in each line.")
    try:
        entries = json.loads("".join(parts))
    except (ValueError, RecursionError) as error:
        raise LabelFileError(f"line 1: a list in JSON begins there, but it is none: {error}.") from error
    for number, entry in enumerate(entries, 1):
        yield number, _flatten_row(f"entry {number}", entry)


def _read_parquet(path: Path) -> Iterator[tuple[int, Fields]]:
    import duckdb  # noqa: PLC0415 - 60 ms, which other files do not need

    numbers = count(1)
    with duckdb.connect() as connection:
        try:
            connection.execute("SET TimeZone='UTC'")
            cursor = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            names = [column[0] for column in cursor.description or ()]
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                for row in rows:
                    yield next(numbers), dict(_flatten("", dict(zip(names, row, strict=True))))
        except duckdb.Error as error:
            raise LabelFileError(f"{path} is no Parquet, or is damaged: {str(error).splitlines()[0][:200]}") from None


def _flatten_row(place: str, entry: Any) -> Fields:
    if not isinstance(entry, dict):
        raise LabelFileError(f'{place}: it is no object, as in {{"right": true}}.')
    return dict(_flatten("", entry))


def _flatten(prefix: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The values of an object as texts, and those of the objects in it under their path."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{name}.", value)
        elif isinstance(value, bool) or value is None:
            yield prefix + name, "" if value is None else str(int(value))
        elif not isinstance(value, list):
            yield prefix + name, str(value).strip()
