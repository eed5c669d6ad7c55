"""Erasure of requests' texts from files: the archive's Parquet, and the rows of data sets that came from them.

Each file is the old one whole or the new one whole, whenever this ends; done again, it changes nothing more.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec

from monitoring.archive import ArchiveQuery, Dataset, Nothing, connected, files, read
from monitoring.feedback_erasure import WORDS
from monitoring.text_retention import list_parts_of, rewrite_part
from monitoring.text_stream import forgotten_name_of

REQUESTS_FILE, CARD_FILE, ERASED_FILE = "requests.txt", "card.json", "erased.json"
WAITING_FOLDER = ".files"
KEPT_ENDINGS = (".json", ".jsonl", ".txt")
ERASED = "[erased]"
COMPARED_CHARACTERS = 40
"""A part of a card that holds so much of the beginning of an erased text is erased too."""


class ErasedSet(msgspec.Struct):
    """A data set that texts went into: its digest, how many of the requests, and how many rows are erased now."""

    digest: str
    requests: int
    rows: int


def find_requests(folder: Path, names: Sequence[str], until: float) -> set[str]:
    """The archived requests of these callers and handles that were made until then (Unix seconds)."""
    return _find_in(folder, "records", "id", names, until) | _find_in(folder, "texts", "request", names, until)


def _find_in(folder: Path, dataset: Dataset, column: str, names: Sequence[str], until: float) -> set[str]:
    try:
        table = read(dataset, list(files(folder, ArchiveQuery(dataset))))
    except Nothing:
        return set()
    query = (
        f'SELECT "{column}" FROM {table} WHERE "at" <= ? '  # noqa: S608 - our own names; values are bound
        'AND (list_has_any("handles", ?::VARCHAR[]) OR ? || "caller" IN (SELECT unnest(?::VARCHAR[])))'
    )
    with connected() as connection:
        rows = connection.execute(query, [until, list(names), forgotten_name_of(""), list(names)]).fetchall()
    return {request for (request,) in rows}


def erase_texts(folder: Path, requests: Set[str]) -> int:
    """Erase the kept texts of these requests from the archive. Returns their number. The folder is locked."""
    erased = 0

    def without(row: dict[str, Any]) -> dict[str, Any] | None:
        nonlocal erased
        erased += row["request"] in requests
        return None if row["request"] in requests else row

    for path in list_parts_of(folder, "texts", "request", [*requests]):
        rewrite_part("texts", path, without)
    return erased


def erase_words_of_feedback(folder: Path, requests: Set[str]) -> int:
    """Erase comments and demonstrations of these requests from the archive; values stay. Returns the judgements that
    had any. The folder is locked."""
    erased = 0

    def without(row: dict[str, Any]) -> dict[str, Any]:
        nonlocal erased
        if row["request"] not in requests:
            return row
        erased += any(row[name] is not None for name in WORDS)
        return row | dict.fromkeys(WORDS)

    for path in list_parts_of(folder, "feedback", "request", [*requests]):
        rewrite_part("feedback", path, without)
    return erased


def erase_unreadable(folder: Path, requests: Set[str]) -> None:
    """Erase entries that no gateway could read, where they name one of the requests. The folder is locked."""
    for path in (folder / "unreadable").glob("*.jsonl"):
        _erase_lines(path, requests)


def erase_from_sets(folder: Path, requests: Set[str], at: float) -> list[ErasedSet]:
    """Erase the rows that came from these requests from all data sets, and what was derived from them.

    A data set with erased rows keeps its name, which is no longer the digest of its bytes; ERASED_FILE says so. Files
    that wait for a build lose the lines that name one of the requests.
    """
    found = []
    for listed in sorted(folder.glob(f"*/{REQUESTS_FILE}")):
        listed_ids = requests & set(listed.read_text(encoding="utf-8").split("\n"))
        of_set, texts, rows = _erase_rows(listed.parent, requests)
        if rows:
            _erase_from_pages(listed.parent, texts)
            replace_file(listed.parent / ERASED_FILE, msgspec.json.encode({"rows": rows, "at": at}))
        if listed_ids | of_set:
            found.append(ErasedSet(listed.parent.name, len(listed_ids | of_set), rows))
    for path in (folder / WAITING_FOLDER).glob("*"):
        if path.is_file():
            _erase_lines(path, requests)
    return found


def erase_from_trainings(folder: Path, requests: Set[str]) -> int:
    """Erase the rows that came from these requests from the folders of trainings: those that run, and those that
    failed and may go on. Returns the rows."""
    return sum(_erase_rows(files, requests)[2] for files in sorted(folder.glob("*")) if files.is_dir())


def _erase_lines(path: Path, requests: Set[str]) -> None:
    """Erase the lines of a file that name one of the requests."""
    lines = path.read_bytes().splitlines(keepends=True)
    rest = [line for line in lines if not any(request.encode() in line for request in requests)]
    if len(rest) < len(lines):
        replace_file(path, b"".join(rest))


def _erase_rows(folder: Path, requests: Set[str]) -> tuple[set[str], list[str], int]:
    """The requests that rows of one folder came from, their texts, and the number of rows erased from its files."""
    erased: dict[str, dict[str, Any]] = {}
    paths = sorted(folder.glob("*.jsonl"))
    rows_of = {path: [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] for path in paths}
    count = -1
    while count != len(erased):  # until no row is left that was derived from an erased one
        count = len(erased)
        erased |= {_id_of(row): row for rows in rows_of.values() for row in rows if _comes_from(row, requests, erased)}
    total = 0
    for path, rows in rows_of.items():
        rest = [row for row in rows if not _comes_from(row, requests, erased)]
        if len(rest) < len(rows):
            replace_file(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rest))
            total += len(rows) - len(rest)
    texts = [text for row in erased.values() for text in _texts_of(row)]
    return {request for row in erased.values() for request in _requests_of(row) & requests}, texts, total


def _comes_from(row: dict[str, Any], requests: Set[str], erased: dict[str, Any]) -> bool:
    return bool(_requests_of(row) & requests) or (row.get("row") or row).get("parent") in erased


def _requests_of(row: dict[str, Any]) -> set[str]:
    """The ids by which a row may name its request: of an example to train on, its own id is that."""
    inner = row.get("row") or row  # one that was left out stands inside the reason
    return {str(inner[name]) for name in ("request", "id") if inner.get(name)}


def _id_of(row: dict[str, Any]) -> str:
    return str((row.get("row") or row).get("id"))


def _texts_of(value: Any) -> Iterator[str]:
    """All texts in a JSON value that are long enough to be told from others."""
    if isinstance(value, str) and len(value) >= COMPARED_CHARACTERS:
        yield value[:COMPARED_CHARACTERS]
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts_of(part)


def _erase_from_pages(folder: Path, texts: list[str]) -> None:
    """Of the card, what quotes an erased text goes. All other pages go, since they are made from rows and card."""
    for path in folder.iterdir():
        if path.suffix not in KEPT_ENDINGS:
            path.unlink()
    card = folder / CARD_FILE
    if card.is_file():
        rest = _without(msgspec.json.decode(card.read_bytes()), texts)
        replace_file(card, msgspec.json.format(msgspec.json.encode(rest)))


def _without(value: Any, texts: list[str]) -> Any:
    if isinstance(value, str):
        return ERASED if any(text in value for text in texts) else value
    if isinstance(value, list):
        return [_without(part, texts) for part in value]
    if isinstance(value, dict):  # an answer may be the name of a class
        return {_without(name, texts): _without(part, texts) for name, part in value.items()}
    return value


def replace_file(path: Path, content: bytes) -> None:
    """Write a file's new content so that it is the old or the new one whole, and on the disk."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
