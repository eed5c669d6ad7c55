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
"""The newest requests that are kept."""
EXAMPLES_MAX = 500
"""Examples of one request to train."""


class Example(Sealable, frozen=True, kw_only=True, omit_defaults=True):
    """A request whose answer was judged bad: by which metric and value, when (Unix seconds), and what was said of it.

    `demonstration` is what the answer should have been, where those who decide the label agree on it. `label_words`
    tell who they are ("2 of 3 say wrong"). `class_name` is the request's class.
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
    """A request to train a version's successor. Times are Unix seconds; `action` is what of its quality opened it.

    `examples` says how many there are; they are apart, since they are long. `dataset` is the digest of what was built
    of them, and `command` trains on it. Where the system goes on by itself, `training` and `evaluation` are the ids of
    what it began; `note` says why it did not go on.
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
        """The time since when its evidence has grown; 0 where none tells. `streams` is an earlier name of signals."""
        signals = self.evidence.get("signals") or self.evidence.get("streams") or ()
        return min([signal["since"] for signal in signals if signal.get("since")], default=0.0)


def close_request(request: Retraining, by: str, at: float) -> Retraining:
    """The request, closed; one that is closed already stays as it is."""
    if request.state == "closed":
        return request
    return replace(request, state="closed", closed_at=at, closed_by=by)


def row_of(example: Example, prompt: dict[str, Any] | None, answer: str | None) -> dict[str, Any]:
    """An example as a row of a data set (monitoring/evaluation/dataset.py), as far as it is known.

    `prompt` has the request's `messages` or its `prompt`, `answer` is what was answered; None: the texts are not kept.
    Beside a right answer it is `rejected`, so that a training knows which answers are right no more.
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
    """Return whether an evaluation can read the row: it has what was asked, and what is expected."""
    return "expected" in row and ("messages" in row or "prompt" in row)
