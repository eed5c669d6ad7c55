"""Erasure of requests' texts from files: the archive's Parquet, and the rows of data sets that came from them.

After an interruption, each file is either the whole old one or the whole new one. A second run changes nothing.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec

from monitoring.archive.storage import ArchiveStorage
from monitoring.archive.tables import ArchiveQuery, Dataset, connect_duckdb, find_files, query_files
from monitoring.datasets.folder import CARD_FILE, FILES_FOLDER, GONE, REQUESTS_FILE
from monitoring.feedback_erasure import WORDED_FIELDS
from monitoring.ids import SHAPE, strip_id
from monitoring.synced_files import replace_file
from monitoring.text_retention import list_parts_of, rewrite_part
from monitoring.text_stream import forgotten_name_of
from monitoring.unread_places import UNREADABLE, note_unread

ERASED_FILE = "erased.json"
LEFTOVERS = ("**/.partial-*", "**/.*.partial", "*/*.new")
"""Files and folders that a killed process left half written."""
KEPT_ENDINGS = (".json", ".jsonl", ".txt")
ERASED = "[erased]"
COVERAGE_ERASED = "Texts that it was measured by are erased: build a set again to know it."
NAMES = re.compile(r"[\w-]+")
ID = re.compile(SHAPE.pattern.encode())
SET_NAME = re.compile(r"(?:\.[a-z]+-)?[0-9a-f]{64}")
"""The name of a data set's folder, also while it is removed. Other folders, such as lost+found, are not ours."""
COMPARED_CHARACTERS = 40
"""A string of a card is erased if it holds this much of the beginning of an erased text."""
STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')


class _RowNames(msgspec.Struct):
    """The names of a row. Nothing else is decoded, since files are large. `row` is a row that was left out."""

    id: Any = None
    parent: Any = None
    request: Any = None
    row: Any = None


class ErasedSet(msgspec.Struct):
    """A data set that held some of the texts: its digest, and the numbers of these requests and of rows erased now."""

    digest: str
    requests: int
    rows: int


def find_requests(storage: ArchiveStorage, names: Sequence[str], until: float) -> set[str]:
    """The archived requests of these callers and handles that were made up to `until` (Unix seconds).

    The earlier of a record's own time and that of its stream id counts: its gateway's clock may have been ahead.
    """
    came = """least("at", try_cast(split_part("entry", '-', 1) AS DOUBLE) / 1000)"""
    ids = _find_in(storage, "records", "id", came, names, until)
    return ids | _find_in(storage, "texts", "request", '"at"', names, until)


def _find_in(
    storage: ArchiveStorage, dataset: Dataset, column: str, at: str, names: Sequence[str], until: float
) -> set[str]:
    query = (  # as a join, since there may be a name for each key that ever existed
        f'SELECT DISTINCT "{column}" FROM (SELECT "{column}", unnest(list_append("handles", ? || "caller")) AS name '  # noqa: S608
        f"FROM {{table}} WHERE {at} <= ?) WHERE name IN (SELECT unnest(?::VARCHAR[]))"
    )
    files, values = find_files(storage, ArchiveQuery(dataset)), [forgotten_name_of(""), until, list(names)]
    with connect_duckdb(storage) as connection:
        return {row[column] for row in query_files(connection, storage, dataset, files, query, values)}


def find_tasks(storage: ArchiveStorage, requests: Set[str]) -> dict[str, float]:
    """The tasks of archived requests, each with the time of its first request (Unix seconds)."""
    query = 'SELECT "task", min("at") AS "at" FROM {table} WHERE "id" IN (SELECT unnest(?::VARCHAR[])) GROUP BY "task"'
    files, tasks = find_files(storage, ArchiveQuery("records")), dict[str, float]()
    with connect_duckdb(storage) as connection:
        for row in query_files(connection, storage, "records", files, query, [list(requests)]):
            tasks[row["task"]] = min(row["at"], tasks.get(row["task"], row["at"]))
    return tasks


def remove_leftovers(folder: Path, unread: list[str]) -> None:
    """Remove half-written files of killed processes from a folder in which nobody else writes."""
    for path in [path for pattern in LEFTOVERS for path in folder.glob(pattern)]:
        with note_unread(unread, path):
            if path.is_dir():
                with contextlib.suppress(FileNotFoundError):  # a running export removes its own files, too
                    shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def erase_texts(storage: ArchiveStorage, requests: Set[str]) -> int:
    """Erase these requests' kept texts from the archive. Returns their number. The caller has locked the storage."""
    return _rewrite_rows(storage, "texts", requests, lambda _: None)


def erase_words_of_feedback(storage: ArchiveStorage, requests: Set[str]) -> int:
    """Erase comments, demonstrations and tags on these requests from the archive; values stay. Returns the number of
    judgements that had any. The caller has locked the storage."""
    return _rewrite_rows(storage, "feedback", requests, lambda row: row | dict.fromkeys(WORDED_FIELDS))


def _rewrite_rows(
    storage: ArchiveStorage,
    dataset: Dataset,
    requests: Set[str],
    change: Callable[[dict[str, Any]], dict[str, Any] | None],
) -> int:
    """Rewrite each file that has rows of these requests, and return the number of changed rows."""
    changed = 0

    def rewrite(row: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal changed
        after = change(row) if row["request"] in requests else row
        changed += after != row
        return after

    for place in list_parts_of(storage, dataset, requests):
        before = changed
        if not rewrite_part(storage, dataset, place, rewrite):
            changed = before
    return changed


def erase_unreadable(storage: ArchiveStorage, requests: Set[str], unread: list[str]) -> None:
    """Erase unreadable entries that name one of the requests. Adds to `unread` files that can't be read or changed. The
    caller has locked the storage."""
    names_one = make_search(requests)
    for place in [f"unreadable/{name}" for name in storage.list_names("unreadable")]:
        with note_unread(unread, f"{storage.root}/{place}"):
            rest = _without_lines(storage.read(place), names_one)
            if rest is not None:
                with tempfile.TemporaryDirectory(prefix=".partial-", dir=storage.scratch) as scratch:
                    file = Path(scratch) / "rest"
                    file.write_bytes(rest)
                    storage.write(place, file)


def erase_from_sets(
    folder: Path, requests: Set[str], tasks: Mapping[str, float], at: float, unread: list[str]
) -> list[ErasedSet]:
    """Erase the rows of these requests, and rows derived from them, from all data sets.

    A data set with erased rows keeps its name, which is no longer the digest of its bytes; ERASED_FILE says so. Files
    that wait for a build lose the lines that name one of the requests. If such a line is not a JSON row, the whole file
    is deleted. `tasks` are the tasks of the requests, each with the time of its first one: later cards lose their
    coverage of production. Of a deleted data set, and of a file that was trained on, only the ids of requests are left.
    Adds to `unread` files and folders that can't be read or changed.
    """
    sets: dict[str, ErasedSet] = {}
    names_one = make_search(requests)
    named = {path for path in folder.iterdir() if SET_NAME.fullmatch(path.name)}  # a set may have lost its list
    for path in sorted(named.union(path.parent for path in folder.glob(f"*/{REQUESTS_FILE}"))):
        with note_unread(unread, path):
            listed = requests & _read_listed(path / REQUESTS_FILE, unread)
            erased, rows = _erase_rows(path, requests, at, tasks, unread, is_listed=bool(listed))
            of_set = listed | {request for row in erased.values() for request in _requests_of(row) & requests}
            if of_set or rows:
                digest = path.name.removeprefix(GONE)
                sets[digest] = ErasedSet(digest, len(of_set), rows)
    _erase_from_files(folder / FILES_FOLDER, names_one, unread)
    return list(sets.values())


def _erase_from_files(folder: Path, names_one: Callable[[bytes], bool], unread: list[str]) -> None:
    """Erase lines from all files that wait for a build. A file that was moved meanwhile is searched for again."""
    is_moved, faults = True, list[str]()
    while is_moved:
        is_moved, faults = False, []
        for path in folder.rglob("*"):
            with note_unread(faults, path):
                try:
                    if path.is_file():
                        _erase_lines(path, names_one)
                except FileNotFoundError:
                    is_moved = True
    unread += faults


def _read_listed(path: Path, unread: list[str]) -> set[str]:
    """The ids of a data set's requests; none if it has no list, or the list can't be read."""
    with note_unread(unread, path), contextlib.suppress(FileNotFoundError):
        return set(path.read_text(encoding="utf-8", errors="replace").split("\n"))
    return set()


def _erase_lines(path: Path, names_one: Callable[[bytes], bool]) -> None:
    """Erase lines that name one of the requests from a file that waits for a build. Raises OSError."""
    content = path.read_bytes()
    rest = _without_lines(content, names_one)
    if rest is None:
        return
    are_rows = all(map(_read_names, filter(names_one, content.splitlines())))
    if are_rows and path.parent.name == FILES_FOLDER:
        replace_file(path, rest)
    else:  # still being sent, or left by a killed gateway: the rest would look like a whole file
        path.unlink(missing_ok=True)


def erase_from_trainings(folder: Path, requests: Set[str], at: float, unread: list[str]) -> tuple[int, list[str]]:
    """Erase the rows of these requests from the folders of trainings that run, or that failed and may be resumed.
    Returns the number of rows, and the names of all folders that have lost some, now or before. Adds to `unread`
    folders that can't be read or changed."""
    folders = [path for path in sorted(folder.glob("*")) if path.is_dir()]
    rows = 0
    for path in folders:
        with note_unread(unread, path):
            rows += _erase_rows(path, requests, at, {}, unread)[1]
    return rows, [path.name for path in folders if (path / ERASED_FILE).exists()]


def make_search(requests: Set[str]) -> Callable[[bytes], bool]:
    """Make a function that returns whether bytes name one of the requests, also behind a prefix such as `chatcmpl-`.
    Its time does not grow with the number of ids in the gateways' own form."""
    ids = frozenset(request.encode() for request in requests)
    others = [each for each in ids if not ID.fullmatch(each)]
    return lambda text: not ids.isdisjoint(ID.findall(text)) or any(each in text for each in others)


def _without_lines(content: bytes, names_one: Callable[[bytes], bool]) -> bytes | None:
    """The lines of a file that neither name one of the requests nor derive from a line that does; None if all stay."""
    lines = content.splitlines(keepends=True)
    gone = {at for at, line in enumerate(lines) if names_one(line)}
    if not gone:
        return None
    named = {at: _read_names(line) for at, line in enumerate(lines) if at in gone or b'"parent"' in line}
    names = {at: row for at, row in named.items() if row is not None}
    count = 0
    while count != len(gone):  # until no row is left that was derived from an erased one
        count, ids = len(gone), {str(row.id) for at, row in names.items() if at in gone and row.id is not None}
        gone |= {at for at, row in names.items() if row.parent is not None and str(row.parent) in ids}
    return b"".join(line for at, line in enumerate(lines) if at not in gone)


def _read_names(line: bytes) -> _RowNames | None:
    """The names in the JSON object on a line; None if the line is not one."""
    try:
        return msgspec.json.decode(line, type=_RowNames)
    except UNREADABLE:
        return None


def _erase_rows(
    folder: Path,
    requests: Set[str],
    at: float,
    tasks: Mapping[str, float],
    unread: list[str],
    is_listed: bool = False,
) -> tuple[dict[str, dict[str, Any]], int]:
    """Erase rows from one folder's files; returns them by id, and their number. The card is changed first: after a
    kill, the next run still finds in the rows the texts that the card may quote. A line that is not a JSON row goes if
    it names one of the requests, or if the folder lists one of them (`is_listed`): the line may be its row."""
    names_one = make_search(requests)

    def may_hold(line: bytes) -> bool:
        return is_listed or names_one(line)

    has_row: dict[Path, bool] = {}
    for path in sorted(folder.glob("*.jsonl")):
        with note_unread(unread, path):
            has_row[path] = _has_row_of(path, requests, may_hold)
    # decoding whole rows takes long, and most folders have no such row
    paths = has_row if any(has_row.values()) else ()
    lines_of = {path: [(line, _read_row(line)) for line in path.read_bytes().splitlines() if line] for path in paths}
    torn = {line for lines in lines_of.values() for line, row in lines if not row and may_hold(line)}
    erased = {f"torn {number}": {"texts": _read_strings(line)} for number, line in enumerate(torn)}
    count = -1
    while count != len(erased):  # until no row is left that was derived from an erased one
        count = len(erased)
        erased |= {
            _id_of(row): row for lines in lines_of.values() for _, row in lines if _comes_from(row, requests, erased)
        }
    rest_of = {
        path: [(line, row) for line, row in lines if line not in torn and not _comes_from(row, requests, erased)]
        for path, lines in lines_of.items()
    }
    lost = {
        path: len(lines) - len(rest_of[path]) for path, lines in lines_of.items() if len(rest_of[path]) < len(lines)
    }
    total = sum(lost.values())
    if (folder / CARD_FILE).is_file():
        rest = {path.stem: [row for _, row in lines if row] for path, lines in rest_of.items()}
        with note_unread(unread, folder / CARD_FILE):
            _erase_from_card(folder, requests, erased, rest, tasks)
    if lost:
        replace_file(folder / ERASED_FILE, msgspec.json.encode({"rows": total, "at": at}))
    for path in lost:
        replace_file(path, b"".join(line + b"\n" for line, _ in rest_of[path]))
    return erased, total


def _has_row_of(path: Path, requests: Set[str], may_hold: Callable[[bytes], bool]) -> bool:
    """Return whether a file has a row that names one of the requests, or a torn one that may do so. Raises OSError."""
    with path.open("rb") as lines:
        for line in lines:
            if (names := _read_names(line)) is None:
                if line.strip() and may_hold(line):
                    return True
                continue
            if _requests_of(msgspec.structs.asdict(names)) & requests:
                return True
    return False


def _read_row(line: bytes) -> dict[str, Any]:
    """The JSON object on a line; empty if the line is not one."""
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except UNREADABLE:
        return {}


def _read_strings(line: bytes) -> list[str]:
    """The strings of a line that is not JSON as a whole."""
    strings = []
    for text in STRING.findall(line):
        with contextlib.suppress(*UNREADABLE):
            strings.append(msgspec.json.decode(text, type=str))
    return strings


def _comes_from(row: dict[str, Any], requests: Set[str], erased: dict[str, Any]) -> bool:
    return bool(_requests_of(row) & requests) or _row_in(row).get("parent") in erased


def _requests_of(row: dict[str, Any]) -> set[str]:
    """The ids by which a row may name its request, also behind a prefix such as `chatcmpl-`. In a training example, its
    own id may be the request's, or its parent's."""
    inner = _row_in(row)
    names = {str(inner[name]) for name in ("request", "id", "parent") if inner.get(name)}
    return names | {strip_id(name) for name in names}


def _id_of(row: dict[str, Any]) -> str:
    return str(_row_in(row).get("id"))


def _row_in(row: dict[str, Any]) -> dict[str, Any]:
    """The row itself: one that was left out lies inside its reason."""
    inner = row.get("row")
    return inner if isinstance(inner, dict) else row


def _texts_of(value: Any) -> Iterator[str]:
    """The beginnings of all texts in a JSON value that are long enough to be distinctive."""
    if isinstance(value, str) and len(value) >= COMPARED_CHARACTERS:
        yield value[:COMPARED_CHARACTERS]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_of(part)


def _erase_from_card(
    folder: Path,
    requests: Set[str],
    erased: Mapping[str, dict[str, Any]],
    rest: Mapping[str, list[dict[str, Any]]],
    tasks: Mapping[str, float],
) -> None:
    """Erase quotations of erased texts and names of their requests and rows from the card; count its rows and classes
    again. Other pages are deleted, since they are made from rows and card."""
    before = msgspec.json.decode((folder / CARD_FILE).read_bytes(), type=dict[str, Any])
    card = _without(before, [text for row in erased.values() for text in _texts_of(row)], requests | erased.keys())
    if erased:
        counts = {part: Counter(row.get("class") or "" for row in rest.get(part, ())) for part in ("train", "heldout")}
        card["rows"] = before.get("rows", {}) | {part: count.total() for part, count in counts.items()}
        card["classes"] = {
            part: dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))) for part, count in counts.items()
        }
    is_later = before.get("built_at", 0.0) >= tasks.get(before.get("task", ""), float("inf"))
    if is_later and before["coverage"]["requests"]:
        card["coverage"] |= {"far": None, "gaps": [], "words": [COVERAGE_ERASED]}
    if card == before:
        return
    for path in folder.iterdir():
        if path.suffix not in KEPT_ENDINGS:
            path.unlink()
    replace_file(folder / CARD_FILE, msgspec.json.format(msgspec.json.encode(card)))


def _without(value: Any, texts: list[str], names: Set[str]) -> Any:
    """A JSON value with ERASED in place of each string that holds one of the texts or names."""
    if isinstance(value, str):
        is_named = value in names or not names.isdisjoint(NAMES.findall(value))
        return ERASED if is_named or any(text in value for text in texts) else value
    if isinstance(value, list):
        return [_without(part, texts, names) for part in value]
    if isinstance(value, dict):
        return {name: _without(part, texts, names) for name, part in value.items()}
    return value
