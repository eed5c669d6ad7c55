"""The class of each expected answer, so that a cheap model can learn it. Pure.

It is a named field of a JSON answer; else the label that the data give; else the tools that are called; else the
answer, where few are different; else the fields of a JSON answer that have few values, together. Answers in free words
have none.
"""

from __future__ import annotations

from collections.abc import Sequence

from monitoring.evaluation.answer_metrics import normalize, read_object
from monitoring.evaluation.dataset import write_as_text
from monitoring.evaluation.row_classes import CLASSES_MAX, NO_CALL
from monitoring.readiness.evidence import LabelledText

REPEATED_MIN = 2.0
"""A class has as many rows as this on average, at least: answers that differ from each other are no classes."""


def find_classes(rows: Sequence[LabelledText], class_field: str = "") -> tuple[str, list[str]] | None:
    """The name of what is the class, and the class of each row; None where answers are free texts."""
    if class_field:
        return class_field, [write_as_text((read_object(row.expected) or {}).get(class_field)) for row in rows]
    if all(row.label is not None for row in rows):
        labels = [row.label or "" for row in rows]
        if _are_classes(labels):
            return "label", labels
    if any(row.called for row in rows):
        called = [row.called or NO_CALL for row in rows]
        if _are_classes(called):
            return "tool", called
    answers = [normalize(row.expected).decode(errors="replace") for row in rows]
    if _are_classes(answers):
        return "answer", answers
    objects = [read_object(row.expected) for row in rows]
    if not all(objects):
        return None
    names = [
        name
        for name in objects[0] or {}
        if all(name in (each or {}) for each in objects)
        and _are_classes([write_as_text((each or {})[name]) for each in objects])
    ]
    together = [" / ".join(write_as_text((each or {})[name]) for name in names) for each in objects]
    return (" / ".join(names), together) if names and _are_classes(together) else None


def _are_classes(values: Sequence[str]) -> bool:
    different = len(set(values))
    return different <= CLASSES_MAX and different * REPEATED_MIN <= len(values)
