"""The signals: one row for each kind of evidence on a version.

A labelled signal rests on judgements of answers, and can make a version degraded. An unlabelled one rests on requests
and answers alone, and makes it suspect at most.

To add a labelled signal, add its name and its row here. Give `Watch` (`signals/version_watch.py`) a field of the same
name for its state, and take its labels in `signals/watch_events.py`. If no detector fits it, write a class beside
`signals/label_signal.py`, and add it to `LabelledSignal` in `signals/version_watch.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from monitoring.quality.detectors.drift import Sides, ValueKind

LabelledName = Literal["reviewed", "feedback", "holdout", "shadow", "complaints"]
UnlabelledName = Literal[
    "coverage", "confidence", "contract", "escalation", "length", "refusal", "language", "latency", "cost"
]
SignalName = Literal[LabelledName, UnlabelledName]
Measure = Literal["share", "difference", "complaints"]
"""The quantity that a signal measures. More of it is worse.

- `share`: the share of wrong labels. It has signals of classes too, and its baseline may be set by counts.
- `difference`: the version's badness less the badness of the general model.
- `complaints`: complaints, against the expected number. It learns itself how many are usual.
"""


class LabelledRow(NamedTuple):
    """A labelled signal: its measure, whether its labels are values of the task's feedback metric, and words for the
    other arm of a difference. They follow "wrong 2.0 points more often than"."""

    measure: Measure
    is_of_feedback_metric: bool = False
    compared_with: str = ""


class UnlabelledRow(NamedTuple):
    """An unlabelled signal: the kind of its values, and the direction of changes that count."""

    kind: ValueKind
    sides: Sides


LABELLED: Mapping[LabelledName, LabelledRow] = MappingProxyType(
    {
        "reviewed": LabelledRow("share", is_of_feedback_metric=True),
        "feedback": LabelledRow("share", is_of_feedback_metric=True),
        "holdout": LabelledRow(
            "difference",
            is_of_feedback_metric=True,
            compared_with="general was on what was held out for it at the same time",
        ),
        "shadow": LabelledRow("difference", compared_with="general on the same requests"),
        "complaints": LabelledRow("complaints"),
    }
)
UNLABELLED: Mapping[UnlabelledName, UnlabelledRow] = MappingProxyType(
    {
        "coverage": UnlabelledRow("value", "below"),
        "confidence": UnlabelledRow("value", "below"),
        "contract": UnlabelledRow("rate", "above"),
        "escalation": UnlabelledRow("rate", "above"),
        "length": UnlabelledRow("value", "both"),
        "refusal": UnlabelledRow("rate", "above"),
        "language": UnlabelledRow("rate", "above"),
        "latency": UnlabelledRow("value", "above"),
        "cost": UnlabelledRow("value", "above"),
    }
)


def get_measure(name: str) -> Measure | None:
    """The measure of a labelled signal; None for any other name."""
    return next((row.measure for labelled, row in LABELLED.items() if labelled == name), None)


def is_of_feedback_metric(name: str) -> bool:
    """Return whether the labels of a signal, or of a signal of a class, are values of the task's feedback metric."""
    signal = name.partition(":")[0]
    return any(row.is_of_feedback_metric for labelled, row in LABELLED.items() if labelled == signal)
