"""Requests to train a task's adapter again: the reasons, and examples of requests that it got wrong."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from monitoring.evaluation.answer_forms import write_demonstration
from monitoring.texts import Sealable

EXAMPLE_WORDS = MappingProxyType({"comment": None, "demonstration": None})
RETRAININGS_MAX = 200
"""The number of newest requests that are kept."""
EXAMPLES_MAX = 500
"""The number of examples of one request to train."""


class Example(Sealable, frozen=True, kw_only=True, omit_defaults=True):
    """A request whose answer was judged bad: the metric and value, the time (Unix seconds), and the comment.

    `demonstration` is the right answer, if those who decide the label agree on it. `label_words` describe these ("2 of
    3 say wrong"). `class_name` is the request's class.
    """

    request_id: str
    metric: str
    value: bool | float | str
    at: float
    comment: str | None = None
    demonstration: Any = None
    class_name: str | None = None
    label_words: str | None = None


class Retraining(msgspec.Struct, frozen=True, kw_only=True):
    """A request to train a version's successor. Times are Unix seconds; `action` is the action that opened it.

    `examples` is the number of examples, which are stored apart, since they are long. `dataset` is the digest of the
    data set built from them, and `command` trains on it. If the system goes on by itself, `training` and `evaluation`
    are the ids of what it began. `note` says why it did not go on.
    """

    id: str
    task: str
    version: str
    opened_at: float
    by: str
    because: str
    evidence: dict[str, Any] = {}
    action: str | None = None
    state: Literal["open", "closed"] = "open"
    closed_at: float | None = None
    closed_by: str | None = None
    examples: int = 0
    dataset: str = ""
    command: str = ""
    training: str | None = None
    evaluation: str | None = None
    note: str = ""

    @property
    def slipped_at(self) -> float:
        """The time since its evidence grew; 0 if it is not known. `streams` is an earlier name of signals."""
        signals = self.evidence.get("signals") or self.evidence.get("streams") or ()
        return min([signal["since"] for signal in signals if signal.get("since")], default=0.0)


def close_request(request: Retraining, by: str, at: float) -> Retraining:
    """The request, closed. A closed one stays as it is."""
    if request.state == "closed":
        return request
    return replace(request, state="closed", closed_at=at, closed_by=by)


def row_of(example: Example, prompt: dict[str, Any] | None, answer: str | None) -> dict[str, Any]:
    """An example as a row of a data set (monitoring/evaluation/dataset.py), with the known fields.

    `prompt` has the request's `messages` or its `prompt`, `answer` is the answer given; None: the texts are not kept.
    Beside a right answer, the given one is `rejected`: so a training knows which answers are no longer right.
    """
    row: dict[str, Any] = {"id": example.request_id, **(prompt or {})}
    optional = {
        "expected": None if example.demonstration is None else write_demonstration(example.demonstration),
        "class": example.class_name,
        "answer": answer,
        "comment": example.comment,
        "label_words": example.label_words,
    }
    row |= {name: value for name, value in optional.items() if value is not None}
    if "expected" in row:
        row["origin"] = "demonstrated"
        if answer not in (None, row["expected"]) and "tools" not in row:
            row["rejected"] = answer
    return row | {"metric": example.metric, "value": example.value, "at": example.at}


def is_complete(row: dict[str, Any]) -> bool:
    """Return whether an evaluation can read the row: it has a prompt, and an expected answer."""
    return "expected" in row and ("messages" in row or "prompt" in row)
