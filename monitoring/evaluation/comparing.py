"""Comparison of answers by a metric: the same text, the same normal form, the same fields, or enough words.

Beside it, the class of a row and of an answer: figures are given for each class.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, assert_never

import msgspec

from monitoring.evaluation.answer_overlap import measure_overlap
from monitoring.evaluation.dataset import DatasetError, Row, read_calling, write_as_text, write_canonically

NORMAL_LENGTH_MAX = 1 << 16
"""Longer texts are compared as they are: they would hold the event loop for too long."""
FIELDS_MAX = 32
CLASSES_MAX = 200
TEXTS_MAX = 50
"""So many different expected answers are classes of their own; with more, none is."""
CLASS_CHARACTERS_MAX = 200
OVERLAP_LEAST = 0.5
NO_CALL = "no tool call"
"""The class of an answer without a call, where others call tools."""
Source = Literal["field", "label", "calls", "text", "none"]


class MetricError(Exception):
    """There is no such metric; the message says which there are."""


def normalize(text: str) -> bytes:
    """The form in which answers are compared: JSON by its value, other texts with each run of white space as one."""
    if len(text) > NORMAL_LENGTH_MAX:
        return text.encode(errors="surrogatepass")
    try:
        return json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError, UnicodeEncodeError):
        return " ".join(text.split()).encode(errors="surrogatepass")


@dataclass(frozen=True, slots=True)
class ComparisonMetric:
    """A way to compare answers. `fields` are those that have to be equal, of the kind `fields`; `least` is the overlap
    from which on an answer is right, of the kind `overlap`. Of the kind `judge` a model is asked about each answer that
    does not say the same as the expected one."""

    kind: Literal["exact", "normal", "fields", "overlap", "judge"]
    fields: tuple[str, ...] = ()
    least: float = OVERLAP_LEAST

    def __str__(self) -> str:
        if self.kind == "overlap":
            return f"overlap:{self.least:g}"
        return f"fields:{','.join(self.fields)}" if self.kind == "fields" else self.kind

    def right(self, expected: str, answer: str) -> bool:
        """True if this answer counts as the expected one."""
        match self.kind:
            case "exact":
                return answer == expected
            case "normal" | "judge":
                return normalize(answer) == normalize(expected)
            case "overlap":
                return measure_overlap(expected, answer) >= self.least
            case "fields":
                wanted, got = read_object(expected) or {}, read_object(answer) or {}
                return all(
                    name in wanted and name in got and write_canonically(wanted[name]) == write_canonically(got[name])
                    for name in self.fields
                )
            case _:
                assert_never(self.kind)

    def check(self, row: Row) -> None:
        """Raises DatasetError for a row that can't be compared so."""
        if self.kind != "fields":
            return
        wanted = read_object(row.expected)
        lacking = next((name for name in self.fields if wanted is None or name not in wanted), None)
        if lacking is not None:
            lack = "no JSON object" if wanted is None else f"without the field {lacking!r}"
            raise DatasetError(f"Line {row.line}: its expected answer is {lack}, which the metric {self} compares.")


PLAIN_METRICS: Mapping[str, ComparisonMetric] = MappingProxyType(
    {"exact": ComparisonMetric("exact"), "normal": ComparisonMetric("normal"), "judge": ComparisonMetric("judge")}
)


def metric_of(text: str) -> ComparisonMetric:
    """The metric of this name: `exact`, `normal`, `fields:a,b`, `overlap:0.5` or `judge`. Raises MetricError."""
    kind, _, listed = text.partition(":")
    names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
    if text in PLAIN_METRICS:
        return PLAIN_METRICS[text]
    if kind == "fields" and 0 < len(names) <= FIELDS_MAX:
        return ComparisonMetric("fields", names)
    if kind == "overlap" and (least := _share_in(listed or str(OVERLAP_LEAST))) is not None:
        return ComparisonMetric("overlap", least=least)
    raise MetricError(f"{text[:80]!r} is no metric: it is exact, normal, fields:NAME,NAME, overlap:SHARE or judge.")


def _share_in(text: str) -> float | None:
    try:
        return share if 0.0 < (share := float(text)) <= 1.0 else None
    except ValueError:
        return None


def choose_metric(contract: Mapping[str, Any] | None, first: Row) -> ComparisonMetric:
    """The metric where none is named: the fields that the contract requires, if the first row's answer has them all."""
    schema = (contract or {}).get("json_schema")
    required = schema.get("required") if isinstance(schema, Mapping) else None
    wanted = read_object(first.expected)
    if wanted is None or not isinstance(required, list | tuple) or not 0 < len(required) <= FIELDS_MAX:
        return ComparisonMetric("normal")
    names = tuple(str(name) for name in required)
    return ComparisonMetric("fields", names) if all(name in wanted for name in names) else ComparisonMetric("normal")


def read_object(text: str) -> dict[str, Any] | None:
    """The JSON object that a text is; None where it is none."""
    if len(text) > NORMAL_LENGTH_MAX or not text.lstrip().startswith("{"):
        return None
    try:
        read = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None
    return read if isinstance(read, dict) else None


class Classes(msgspec.Struct, frozen=True):
    """The classes of a data set's rows. `names` are the classes; `by_digest` gives that of an answer where they are
    labels.

    With the source `none` there are no classes; without `by_digest` labels are known of rows, and not of answers. Its
    keys are digests of expected answers. With the source `calls` a class is the tools that are called: arguments
    differ from row to row.
    """

    source: Source = "none"
    field: str = ""
    names: tuple[str, ...] = ()
    by_digest: dict[str, str] | None = None

    def of_row(self, row: Row) -> str | None:
        """The class that the row is of."""
        return row.label if self.source == "label" else self._of_text(row.expected)

    def of_answer(self, answer: str) -> str | None:
        """The class that the answer says; None where it says none that there is."""
        if self.source == "label":
            return (self.by_digest or {}).get(_digest(normalize(answer)))
        name = self._of_text(answer)
        return name if name in self.names else None

    def _of_text(self, text: str) -> str | None:
        match self.source:
            case "field":
                return _field_of(text, self.field)
            case "calls":
                return name_called(text)
            case "text":
                return _shown(normalize(text))
            case "label" | "none":
                return None
            case _:
                assert_never(self.source)


@dataclass
class ClassFinder:
    """Finds the classes of a data set while it is read. `wanted` is the field that was named, if one was."""

    wanted: str = ""
    _values: dict[str, None] = field(default_factory=dict)
    _labels: dict[str, str] = field(default_factory=dict)
    _label_names: dict[str, None] = field(default_factory=dict)
    _all_labelled: bool = True
    _called: dict[str, None] = field(default_factory=dict)
    _calls: bool = False
    _texts: dict[str, None] = field(default_factory=dict)
    _clear: bool = True

    def add(self, row: Row) -> None:
        """Look at one row. Raises DatasetError where it lacks the wanted field, or there are too many classes."""
        if self.wanted:
            value = _field_of(row.expected, self.wanted)
            if value is None:
                raise DatasetError(f"Line {row.line}: its expected answer has no field {self.wanted!r} for a class.")
            self._values.setdefault(value)
            if len(self._values) > CLASSES_MAX:
                raise DatasetError(f"Line {row.line}: {self.wanted!r} has more than {CLASSES_MAX} values: too many.")
            return
        form = normalize(row.expected)
        text, digest = _shown(form), _digest(form)
        self._all_labelled = self._all_labelled and row.label is not None
        if self._all_labelled and len(self._label_names) <= CLASSES_MAX and row.label is not None:
            self._label_names.setdefault(row.label)
            self._clear = self._clear and self._labels.setdefault(digest, row.label) == row.label
            self._clear = self._clear and len(self._labels) <= CLASSES_MAX
        self._calls = self._calls or row.calling is not None
        if len(self._called) <= CLASSES_MAX:
            self._called.setdefault(name_called(row.expected) if row.tools else NO_CALL)
        if len(self._texts) <= TEXTS_MAX:
            self._texts.setdefault(text)

    def found(self) -> Classes:
        """The classes, once every row was added."""
        if self.wanted:
            return Classes("field", self.wanted, tuple(sorted(self._values)))
        if self._all_labelled and 0 < len(self._label_names) <= CLASSES_MAX:
            return Classes("label", "", tuple(sorted(self._label_names)), self._labels if self._clear else None)
        if self._calls and len(self._called) <= CLASSES_MAX:
            return Classes("calls", "", tuple(sorted(self._called)))
        if len(self._texts) <= TEXTS_MAX and all(len(text) <= CLASS_CHARACTERS_MAX for text in self._texts):
            return Classes("text", "", tuple(sorted(self._texts)))
        return Classes()


def name_called(answer: str) -> str:
    """The class of an answer by the tools that it calls: their names, each once; NO_CALL where it calls none."""
    calls = (read_calling(answer) or {"tool_calls": ()})["tool_calls"]
    return ", ".join(sorted({call["function"]["name"] for call in calls}))[:CLASS_CHARACTERS_MAX] or NO_CALL


def _field_of(text: str, name: str) -> str | None:
    value = (read_object(text) or {}).get(name)
    if value is None or isinstance(value, dict | list):
        return None
    return write_as_text(value)[:CLASS_CHARACTERS_MAX]


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _shown(text: bytes) -> str:
    """A normal form as the name of a class; a long one is cut where no class can be so long."""
    return text[: 4 * CLASS_CHARACTERS_MAX + 4].decode(errors="replace")
