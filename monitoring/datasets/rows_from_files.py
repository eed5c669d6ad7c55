"""Rows from files: JSON lines, JSON, CSV and Parquet, our own or foreign. A bad row is a fault with its line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from monitoring.datasets.foreign_rows import as_own_form, open_item, time_of
from monitoring.datasets.row_files import read_objects
from monitoring.datasets.rows import ORIGINS, PARAPHRASED, DataRow, LeftOut, Origin, digest
from monitoring.evaluation.dataset import (
    DatasetError,
    group_named,
    has_tool_call,
    read_answer,
    row_of,
    write_canonically,
)
from monitoring.ids import SHAPE

SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "text": ("question", "message", "user"),
    "expected": ("answer", "completion", "response", "assistant"),
}
"""Other names of columns, for tables that have none of ours."""
INSTEAD_OF: Mapping[str, frozenset[str]] = {
    "text": frozenset({"messages", "text", "prompt", "input"}),
    "expected": frozenset({"messages", "expected", "output", "preferred_output", "chosen"}),
}
TAKEN: Mapping[str, frozenset[str]] = {
    "text": INSTEAD_OF["text"],
    "expected": INSTEAD_OF["expected"] | {"label", "class"},  # the answer of a row that has no other
}
MADE_ORIGINS = frozenset({"synthetic", "template", "generated", "paraphrase", "augmented"})
WRITTEN_ORIGINS = frozenset({"demonstrated", "hand", "human"})


class SourceFile(msgspec.Struct, frozen=True):
    """A given file: its `name`, whose suffix gives its form, and its `path` here. `columns` maps our names to the
    file's, such as `{"text": "body"}`."""

    name: str
    path: str
    columns: dict[str, str] = {}


def read_rows(file: SourceFile) -> Iterator[DataRow | LeftOut]:
    """The rows of a file, and its unreadable rows. Raises DatasetError for a file of another form, and OSError."""
    for at, entry in read_objects(Path(file.path), file.name, partial(_see_that_columns_fit, file)):
        try:
            if isinstance(entry, DatasetError):
                raise entry
            cells = {name: value for name, value in open_item(entry).items() if value is not None}
            own = as_own_form(_with_our_names(cells, file.columns), at)
            yield from [data_row_of(each, at, file.name) for each in _divide_chat(own, at)]
        except DatasetError as error:
            yield LeftOut(because="unreadable", fault=str(error), source=file.name, line=at)


def data_row_of(entry: dict[str, Any], at: int, source: str) -> DataRow:
    """The row of an object with our rows' keys, on line `at`. Raises DatasetError."""
    row = row_of(entry, at, 0)
    named = group_named({name: entry.get(name) for name in ("group", "paraphrase")}, at)
    parent = group_named({"parent": entry.get("parent")}, at)
    turns = row.messages if row.messages is not None else [{"role": "user", "content": row.prompt}]
    for message in turns:
        if not isinstance(message.get("role"), str):
            raise DatasetError(f"Line {at}: a message of it has no role: give system, user, assistant or tool.")
    messages = [*turns, row.answer]
    row_id = entry.get("id")
    rejected = entry.get("rejected")
    return DataRow(
        messages=messages,
        id=str(row_id) if row_id not in (None, "") else f"row-{digest(write_canonically(messages))[:16]}",
        label=row.label,
        group=(PARAPHRASED if named[0] == "paraphrase" else "") + named[1] if named else None,
        origin=_origin_of(entry.get("origin")),
        parent=parent[1] if parent else None,
        request=str(entry["request"]) if entry.get("request") else None,
        source=str(entry.get("source") or source),
        at=time_of(entry.get("at")),
        rejected=rejected if isinstance(rejected, str) and rejected else None,
        **row.offer,
    )


def _divide_chat(entry: dict[str, Any], at: int) -> list[dict[str, Any]]:
    """An object for each answer that a chat teaches, all in one group. The last is first, to stay among near
    duplicates.

    As with OpenAI, an answer of weight 0 teaches nothing. An earlier answer is only context if no user message precedes
    it, or it calls a tool and the object has none. Raises DatasetError if no answer is left.
    """
    messages = entry.get("messages")
    if entry.get("expected") is not None or not isinstance(messages, list) or not _ends_with_answer(messages):
        return [entry]
    bare = [{name: value for name, value in message.items() if name != "weight"} for message in messages]
    roles = [message.get("role") for message in messages]
    last = len(messages) - 1
    places = [
        place
        for place in range(last, -1, -1)
        if roles[place] == "assistant"
        and messages[place].get("weight", 1) != 0
        and (place == last or ("user" in roles[:place] and _teaches(messages[place], entry)))
    ]
    if not places:
        raise DatasetError(f"Line {at}: each answer in it has the weight 0, so it teaches nothing: leave it out.")
    if places == [last]:
        return [entry | {"messages": bare}]
    named = str(entry.get("id") or "")
    whole = named or f"chat-{digest(write_canonically(bare))[:16]}"
    shared = {
        "group": entry.get("group") or (None if entry.get("paraphrase") else whole),
        "request": entry.get("request") or (named if SHAPE.fullmatch(named) else None),
    }
    divided = []
    for place in places:
        own = {} if place == last else {"rejected": None, "id": f"{named}-{place}" if named else None}
        own |= {} if place == last else {"tool_choice": None}  # it applies to the last answer
        divided.append(entry | shared | own | {"messages": bare[: place + 1]})
    return divided


def _ends_with_answer(messages: list[Any]) -> bool:
    if not messages or not all(isinstance(message, dict) for message in messages):
        return False
    return bool(messages[-1].get("role") == "assistant")


def _teaches(message: dict[str, Any], entry: dict[str, Any]) -> bool:
    if has_tool_call(message):
        return bool(entry.get("tools") or entry.get("functions"))
    return bool(read_answer(message.get("content")))


def _origin_of(value: Any) -> Origin:
    """The origin that a row names; real if it names none."""
    name = str(value or "").lower()
    if name in MADE_ORIGINS:
        return "synthetic"
    return "demonstrated" if name in WRITTEN_ORIGINS else next((each for each in ORIGINS if each == name), "real")


def _see_that_columns_fit(file: SourceFile, names: list[str]) -> None:
    """Raise DatasetError if no column of a table has questions, or none has answers."""
    ours = set(_with_our_names(dict.fromkeys(names), file.columns))
    missing = [name for name in file.columns.values() if name not in names]
    if missing:
        raise DatasetError(f"{file.name} has no column {missing[0]!r}: it has {', '.join(names)[:400]}.")
    doubled = {name for name in names if names.count(name) > 1}
    known = {*file.columns.values()}.union(*TAKEN.values(), *SYNONYMS.values())
    if doubled & known:
        raise DatasetError(f"{file.name} has two columns {min(doubled & known)!r}: which one counts? Rename the other.")
    for column, taken in TAKEN.items():
        if not ours & taken:
            text = f"{file.name} has no column {column}: name one, as in --column {column}=NAME. It has"
            choices = ", ".join(sorted(taken | {*SYNONYMS[column]}))
            raise DatasetError(f"{text} {', '.join(names)[:400] or 'none'}; known are {choices}.")


def _with_our_names(entry: dict[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The object under our names, by the given `columns` or else by known synonyms."""
    names = {theirs: ours for ours, theirs in columns.items()}
    for ours, others in SYNONYMS.items():
        if not INSTEAD_OF[ours] & {*entry, *columns}:
            names |= {name: ours for name in others if name in entry and ours not in names.values()}
    if not names:
        return entry
    renamed = {names[name]: value for name, value in entry.items() if name in names}
    return {name: value for name, value in entry.items() if name not in names and name not in renamed} | renamed
