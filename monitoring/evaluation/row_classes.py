"""Classes of a data set's rows and of answers, for figures by class, and counts of rows by slice."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, assert_never

import msgspec

from monitoring.evaluation.answer_metrics import normalize, read_object
from monitoring.evaluation.dataset import DatasetError, Row, read_calling, write_as_text

CLASSES_MAX = 200
TEXTS_MAX = 50
"""Up to this many different expected answers are classes; with more, none is."""
CLASS_CHARACTERS_MAX = 200
NO_CALL = "no tool call"
"""The class of an answer without a tool call, if others call tools."""
Source = Literal["field", "label", "calls", "text", "none"]
VALUES_MAX = 200
"""The most values of one slice that are counted each."""


class Classes(msgspec.Struct, frozen=True):
    """The classes of a data set's rows. `names` are the classes; `by_digest` gives an answer's class if classes are
    labels.

    With the source `none` there are no classes. Without `by_digest`, only rows have labels, and answers have none. Its
    keys are digests of expected answers. With the source `calls`, a class is the set of called tools, since arguments
    differ from row to row.
    """

    source: Source = "none"
    field: str = ""
    names: tuple[str, ...] = ()
    by_digest: dict[str, str] | None = None

    def of_row(self, row: Row) -> str | None:
        """The class of a row."""
        return row.label if self.source == "label" else self._of_text(row.expected)

    def of_answer(self, answer: str) -> str | None:
        """The class of an answer; None if it has none of the classes."""
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
    """Finds the classes of a data set while it is read. `wanted` is the named field, if any."""

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
        """Take in one row. Raises DatasetError if it lacks the wanted field, or there are too many classes."""
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
        """The classes, after all rows were added."""
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
    """The class of an answer by the tools that it calls: their names, each once; NO_CALL if it calls none."""
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
    """A normal form as the name of a class. It is cut only if it is too long for a class."""
    return text[: 4 * CLASS_CHARACTERS_MAX + 4].decode(errors="replace")


class SliceCounts:
    """Counter of rows by slice and value."""

    def __init__(self, classes: Classes) -> None:
        self._classes = classes
        self._counters: dict[str, Counter[str]] = {"class": Counter()}

    def add(self, row: Row) -> None:
        """Count one row."""
        for name, value in {**row.slices, "class": self._classes.of_row(row) or ""}.items():
            self._counters.setdefault(name, Counter())[value] += bool(value)

    def list_all(self) -> dict[str, dict[str, int]]:
        """The numbers of rows by slice and value, most frequent values first."""
        return {name: dict(counts.most_common(VALUES_MAX)) for name, counts in self._counters.items() if counts.total()}
