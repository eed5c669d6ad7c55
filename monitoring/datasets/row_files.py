"""The rows of a file from any program: CSV, JSON lines, a JSON list, or Parquet. Each is a JSON object with its line.

CSV has a header, and commas, semicolons, tabs or bars. CSV rows without any text are skipped.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from io import TextIOWrapper
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from monitoring.evaluation.dataset import (
    BYTE_ORDER_MARK,
    TEXT_LOOKED_AT_BYTES,
    DatasetError,
    find_text_fault,
    object_of,
)

if TYPE_CHECKING:
    from _csv import Reader as CsvReader

SEPARATORS = (",", ";", "\t", "|")
QUOTED = re.compile(r'"[^"]*"')
ROW_BYTES_MAX = 1 << 18
LIST_BYTES_MAX = 1 << 28
"""The largest JSON list, since it is read whole."""
ROWS_AT_ONCE = 1000

Objects = Iterator[tuple[int, dict[str, Any] | DatasetError]]
CheckColumns = Callable[[list[str]], None]


def read_objects(path: Path, name: str, check_columns: CheckColumns) -> Objects:
    """The rows, each with its line, or its number in a list or in Parquet; a bad row is replaced by its fault.

    `name` is the file's name in errors; its suffix decides the form if the first bytes do not. `check_columns` gets the
    header of a table. Raises DatasetError for a file that can't be read further, and OSError.
    """
    ending = Path(name).suffix.lower()
    if ending in (".parquet", ".pq"):
        yield from _read_parquet(path, name, check_columns)
        return
    with path.open("rb") as file:
        beginning = file.peek(TEXT_LOOKED_AT_BYTES)
        if fault := find_text_fault(beginning):
            raise DatasetError(f"The rows of {name} {fault}")
        begins = beginning.removeprefix(BYTE_ORDER_MARK).lstrip()[:1]
        if begins == b"[" or (begins == b"{" and ending == ".json"):
            yield from _read_list(file, name)
        elif begins == b"{" or ending == ".jsonl":
            yield from _read_lines(file)
        else:
            yield from _read_csv(file, name, check_columns)


def _read_lines(file: BinaryIO) -> Objects:
    for at, raw in enumerate(file, 1):
        line = raw.removeprefix(BYTE_ORDER_MARK) if at == 1 else raw
        if not line.strip():
            continue
        if len(line) > ROW_BYTES_MAX:
            yield at, DatasetError(f"Line {at}: it has more than {ROW_BYTES_MAX} bytes: shorten it.")
            continue
        try:
            yield at, object_of(line, at)
        except DatasetError as error:
            yield at, error


def _read_list(file: BinaryIO, name: str) -> Objects:
    """The objects of a JSON list, also of a list inside an object, as in TensorZero's API answers."""
    whole = file.read(LIST_BYTES_MAX + 1).removeprefix(BYTE_ORDER_MARK)
    if len(whole) > LIST_BYTES_MAX:
        raise DatasetError(f"{name} has a JSON list of over {LIST_BYTES_MAX} bytes: write an object in each line.")
    entries = _decode_whole(whole, name)
    if isinstance(entries, dict):
        entries = next((value for value in entries.values() if isinstance(value, list)), [entries])
    for number, entry in enumerate(entries, 1):
        is_object = isinstance(entry, dict)
        yield number, entry if is_object else DatasetError(f"Row {number}: it is not a JSON object.")


def _decode_whole(whole: bytes, name: str) -> Any:
    """The JSON value; for JSON lines, a list of their values."""
    faults = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
    try:
        return msgspec.json.decode(whole)
    except faults as error:
        with suppress(*faults):
            return msgspec.json.Decoder().decode_lines(whole)
        raise DatasetError(f"{name} is not JSON ({error}).") from None


def _read_csv(file: BinaryIO, name: str, check_columns: CheckColumns) -> Objects:
    with TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield from read_table(_see_that_all_is_utf_8(text, name), name, check_columns)


def read_table(lines: Iterator[str], name: str, check_columns: CheckColumns) -> Objects:
    """The rows of these CSV lines, in the form of `read_objects`. Raises DatasetError for lines that are not CSV."""
    first = next(lines, "")
    rows = _number_rows(csv.reader(chain([first], lines), strict=True, delimiter=find_separator(first)), name)
    head = [column.strip() for column in next(rows, (1, []))[1]]
    check_columns(head)
    for at, cells in rows:
        if len(cells) == len(head):
            yield at, {column: cell or None for column, cell in zip(head, cells, strict=True)}
        else:
            difference = "more" if len(cells) > len(head) else "fewer"
            yield at, DatasetError(f"Line {at}: it has {difference} cells than the {len(head)} columns.")


def find_separator(head: str) -> str:
    """The delimiter of a CSV file with this first line: a comma, or another one that spreadsheets write."""
    return max(SEPARATORS, key=QUOTED.sub("", head).count)


def _see_that_all_is_utf_8(lines: Iterable[str], name: str) -> Iterator[str]:
    for at, line in enumerate(lines, 1):
        if not line.isascii():
            try:
                line.encode()
            except UnicodeEncodeError:
                raise DatasetError(
                    f"{name} is not text in UTF-8: save it as such. The fault is on line {at}."
                ) from None
        yield line


def _number_rows(reader: CsvReader, name: str) -> Iterator[tuple[int, list[str]]]:
    """The rows with any text, each with the number of its first line."""
    while True:
        at = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DatasetError(f"{name}, line {at}: the row that begins there is no CSV ({error}).") from None
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield at, cells


def _read_parquet(path: Path, name: str, check_columns: CheckColumns) -> Objects:
    import duckdb  # noqa: PLC0415 - 60 ms, which other files do not need

    with duckdb.connect() as connection:
        try:
            connection.execute("SET TimeZone='UTC'")
            cursor = connection.execute("SELECT * FROM read_parquet(?)", [str(path)])
            head = [column[0] for column in cursor.description or ()]
            check_columns(head)
            numbers = count(1)
            while rows := cursor.fetchmany(ROWS_AT_ONCE):
                for row in rows:
                    yield next(numbers), {column: _read_cell(cell) for column, cell in zip(head, row, strict=True)}
        except duckdb.Error as error:
            fault = str(error).splitlines()[0].replace(str(path), name)
            raise DatasetError(f"{name} is not Parquet, or is damaged: {fault[:200]}") from None


def _read_cell(value: Any) -> Any:
    """A table's value in JSON's types. A list of messages that is written as JSON is decoded."""
    value = _as_json(value)
    if isinstance(value, str) and value.startswith('[{"role"'):
        with suppress(msgspec.DecodeError, RecursionError):
            return msgspec.json.decode(value)
    return value


def _as_json(value: Any) -> Any:
    """A value in JSON's types, without null members, which stand for keys of other rows."""
    if isinstance(value, dict):
        return {name: _as_json(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_as_json(each) for each in value if each is not None]
    if isinstance(value, bytes | bytearray):
        return bytes(value).decode(errors="replace")
    return value if value is None or isinstance(value, str | int | float) else str(value)  # such as a date
