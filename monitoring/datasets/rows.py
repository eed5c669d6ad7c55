"""The rows of a data set: their fields, the counts of rows left out, and the texts by which they are compared."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar

import msgspec

from monitoring.evaluation.answer_metrics import normalize
from monitoring.evaluation.dataset import Row, has_tool_call, list_offered, write_calls, write_canonically
from monitoring.ids import SHAPE, strip_id

Origin = Literal["demonstrated", "real", "synthetic"]
ORIGINS: tuple[Origin, ...] = ("demonstrated", "real", "synthetic")
"""The origins of rows. Of two equal rows, the one with the earlier origin is kept."""
Because = Literal["unreadable", "conflict", "exact_duplicate", "near_duplicate", "class_ratio", "made_from_heldout"]
SPELLINGS_TOLD = 8
PARAPHRASED = "paraphrase "
"""The prefix of a group's name that a row gives as `paraphrase`."""
INSTRUCTING = frozenset({"system", "developer"})


class DataRow(msgspec.Struct, frozen=True, kw_only=True, rename={"label": "class"}):
    """One row: a chat that ends with the assistant's answer, and where it comes from.

    `request` is the id of its original request, `parent` the row from which it was made. Rows of one `group` are never
    divided between training and held-out rows. `rejected` is a worse answer to the same input.
    """

    messages: list[dict[str, Any]]
    id: str
    label: str | None = None
    group: str | None = None
    origin: Origin = "real"
    parent: str | None = None
    request: str | None = None
    source: str = ""
    at: float | None = None
    rejected: str | None = None
    tools: list[dict[str, Any]] | msgspec.UnsetType = msgspec.UNSET
    parallel_tool_calls: bool | msgspec.UnsetType = msgspec.UNSET
    tool_choice: str | dict[str, Any] | msgspec.UnsetType = msgspec.UNSET

    @property
    def answer(self) -> str:
        """The text of the assistant's last message, or its calls as JSON."""
        last = self.messages[-1]
        return write_calls(last) if has_tool_call(last) else str(last["content"])

    def evaluated(self) -> Row:
        """The row in the form for an evaluation."""
        return Row(0, self.id, 0, self.answer, self.messages[:-1], None, self.label)


AnyRow = TypeVar("AnyRow", DataRow, Row)


class LeftOut(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A row that is in no part of the set. `of` is the id of the row that stands for it; rows of one conflict have the
    same `conflict`. An unreadable row has its `fault`, with source and line."""

    because: Because
    row: DataRow | None = None
    of: str = ""
    conflict: str = ""
    fault: str = ""
    source: str = ""
    line: int = 0


def name_requests(rows: Iterable[AnyRow], every: Iterable[AnyRow]) -> list[AnyRow]:
    """The rows; a row that was made from others gets the request of the first of these. An erasure finds it by this
    request, wherever the others are. `every` are all possible parents."""
    by_id = {row.id: row for row in every}
    return [msgspec.structs.replace(row, request=_find_request(row, by_id)) if row.parent else row for row in rows]


def list_requests(rows: Iterable[DataRow | Row]) -> list[str]:
    """The ids of the requests that the rows came from. A row's own id counts if a request's id is in it."""
    return sorted({request for row in rows if (request := _find_request(row, {}))})


def _find_request(row: DataRow | Row, by_id: Mapping[str, DataRow | Row]) -> str | None:
    ids: set[str] = set()
    while not row.request and (parent := by_id.get(row.parent or "")) is not None and row.id not in ids:
        ids.add(row.id)
        row = parent
    own_ids = [name for name in (row.id, row.parent or "") if SHAPE.search(name)]
    return strip_id(row.request) if row.request else strip_id(own_ids[0]) if own_ids else None


def share_tools(row: AnyRow, known: dict[bytes, list[dict[str, Any]]]) -> AnyRow:
    """The row with the tools object that equal tools share in memory: all requests of an application repeat them."""
    if not row.tools:
        return row
    return msgspec.structs.replace(row, tools=known.setdefault(msgspec.json.encode(row.tools), row.tools))


def input_of(row: DataRow) -> str:
    """The text of the request, without instructions that all requests of a task share."""
    turns = [message for message in row.messages[:-1] if message.get("role") not in INSTRUCTING]
    return "\n".join(text_of(message) for message in turns or row.messages[:-1])


def text_of(message: dict[str, Any]) -> str:
    """The text of a message, or of all its parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)


def fold_text(text: str) -> str:
    """A text in the form for comparing rows: case, white space and variants of a letter make no difference."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def describe_spellings(classes: Iterable[str]) -> str:
    """A sentence on classes whose names differ only in case or white space; empty if there are none."""
    folded: dict[str, list[str]] = {}
    for name in sorted(set(classes)):
        folded.setdefault(fold_text(name), []).append(name)
    several = [" and ".join(f"{name[:60]!r}" for name in names) for names in folded.values() if len(names) > 1]
    more = f", and {len(several) - SPELLINGS_TOLD} more" if len(several) > SPELLINGS_TOLD else ""
    return f"Spell each class in one way: {', '.join(several[:SPELLINGS_TOLD])}{more}." if several else ""


def digest_of_input(row: DataRow) -> str:
    """The digest of everything before the answer, with instructions and tools."""
    turns = [[message.get("role"), fold_text(text_of(message)), _more(message)] for message in row.messages[:-1]]
    return digest(write_canonically([turns, *list_offered(row.tools, row.tool_choice)] if row.tools else turns))


def digest_of_answer(row: DataRow) -> str:
    """The digest of the answer: of JSON by its value, of other texts without differences in white space."""
    return hashlib.sha256(normalize(row.answer)).hexdigest()


def digest(text: str) -> str:
    """A text's sha256 as hexadecimal digits."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _more(message: dict[str, Any]) -> dict[str, Any]:
    """The parts of a message that are not text, such as tool calls or pictures."""
    more = {name: value for name, value in message.items() if name not in ("role", "content") and value is not None}
    content = message.get("content")
    others = (
        [part for part in content if not (isinstance(part, dict) and "text" in part)]
        if isinstance(content, list)
        else []
    )
    return more | ({"parts": others} if others else {})
