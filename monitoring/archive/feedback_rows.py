"""Conversion between feedback and archive rows: a column for each kind of value, and JSON for structured values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from monitoring.archive.tables import FeedbackRow
from monitoring.feedback import Feedback
from monitoring.records import RecordIndex

VALUES = ("value_boolean", "value_float", "value_category")
AS_JSON = ("demonstration", "tags", "demonstration_digests")
SAME = frozenset(FeedbackRow.__struct_fields__) & frozenset(Feedback.__struct_fields__)


def row_of(feedback: Feedback, request: str, index: RecordIndex, entry: str) -> FeedbackRow:
    """The row of a judgement; `entry` is its place in its stream."""
    value = feedback.value
    fields: dict[str, Any] = {name: getattr(feedback, name) for name in SAME}
    fields["demonstration_digests"] = feedback.demonstration_digests or None
    return FeedbackRow(
        **fields | {name: write_json(fields[name]) for name in AS_JSON},
        value_boolean=value if isinstance(value, bool) else None,
        value_float=float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None,
        value_category=value if isinstance(value, str) else None,
        request=request,
        task=index.task or None,
        version=index.version or None,
        pool=index.pool or None,
        entry=entry,
    )


def feedback_of(row: Mapping[str, Any]) -> Feedback:
    """The judgement of a row, as it was given."""
    value = next((row[name] for name in VALUES if row[name] is not None), False)
    fields = {name: row[name] for name in SAME if row[name] is not None}
    fields |= {name: msgspec.json.decode(row[name]) for name in AS_JSON if row[name] is not None}
    return msgspec.convert(fields | {"value": value}, Feedback)


def add_once(given: list[Feedback], feedback: Feedback) -> None:
    """Add a request's judgement to those that were read, unless it is among them."""
    if all((each.caller, each.feedback_id) != (feedback.caller, feedback.feedback_id) for each in given):
        given.append(feedback)


def write_json(value: Any) -> str | None:
    """A value for a column of JSON; None if there is none."""
    return None if value is None else msgspec.json.encode(value).decode()
