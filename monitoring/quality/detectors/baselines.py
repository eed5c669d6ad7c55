"""Baselines: a version's error rate while it was healthy, with its kind and its evidence.

Each kind of signal has its own kind of baseline. Reviewed labels are compared with the gate's rows, user feedback with
the previous version or the version's own first labels. An admin may set either. False alarms are bounded only if the
baseline is not below the true rate. So a detector gets the upper end of an exact one-sided interval.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from monitoring.intervals import CONFIDENCE, find_lower_bound, find_upper_bound

BaselineKind = Literal["gate", "previous", "own", "admin"]
OF_MIN = 20
"""With fewer judged requests the upper bound is so high that hardly any error rate could exceed it."""
RATE_MAX = 0.999
"""A signal with an upper bound this high could never alarm."""
CALIBRATION_ROWS_MIN = 50
"""With fewer rows the bounds of the labellers' difference lie too far apart."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """A baseline with its evidence: `wrong` (a sum of badness) of `of` labels, and `upper`, the bound that counts.

    `kind` is its source: the gate's rows, the previous version's labels, the version's own first labels, or an admin.
    `at` is the time it was set (Unix seconds), `by` its author, `source` the evaluation or version it comes from.
    """

    kind: BaselineKind
    wrong: float
    of: float
    upper: float
    at: float
    by: str
    source: str


def measure(
    kind: BaselineKind,
    wrong: float,
    of: float,
    at: float,
    by: str,
    source: str,
    confidence: float = CONFIDENCE,
    dispersion: float = 1.0,
) -> Baseline:
    """The baseline from these labels. In clusters, `dispersion` labels count as one.

    Raises ValueError as `find_upper_bound` does.
    """
    upper = find_upper_bound(wrong / dispersion, of / dispersion, confidence)
    return Baseline(kind=kind, wrong=float(wrong), of=float(of), upper=upper, at=at, by=by, source=source)


def measure_counts(kind: BaselineKind, wrong: float, of: float, at: float, by: str, source: str) -> Baseline:
    """The baseline from the counts of an evaluation or an admin.

    Raises ValueError, with a sentence as its message, if the counts cannot serve as a signal's baseline.
    """
    if of < OF_MIN:
        raise ValueError(f"{of:g} were judged, and a baseline takes at least {OF_MIN}.")
    baseline = measure(kind, wrong, of, at, by, source)
    if baseline.upper >= RATE_MAX:
        text = f"As many as {100 * baseline.upper:.1f}% may be wrong by that, so that the signal could never alarm."
        raise ValueError(text)
    return baseline


def calibrate(gate: Baseline, stricter: int, milder: int, rows: int, at: float, by: str, source: str) -> Baseline:
    """The gate's baseline, corrected for other labellers, who also judged `rows` of its rows.

    They called `stricter` rows wrong that the gate calls right, and `milder` rows right that it calls wrong. The upper
    bound of the stricter share less the lower bound of the milder share, both at 97.5%, is added; nothing is
    subtracted. Raises ValueError, with a sentence, if the rows are too few or the result leaves no room for an alarm.
    """
    if rows < CALIBRATION_ROWS_MIN:
        raise ValueError(f"{rows} rows were judged by both, and a calibration takes at least {CALIBRATION_ROWS_MIN}.")
    confidence = (1.0 + CONFIDENCE) / 2
    more = find_upper_bound(stricter, rows, confidence) - find_lower_bound(milder, rows, confidence)
    upper = find_upper_bound(gate.wrong, gate.of) + max(0.0, more)
    if upper >= RATE_MAX:
        raise ValueError("The labellers differ in so many rows that the signal could never alarm.")
    return Baseline(kind="admin", wrong=gate.wrong, of=gate.of, upper=upper, at=at, by=by, source=source)


def declare_rate(rate: float, at: float, by: str, source: str) -> Baseline:
    """A rate that an admin sets without labels. Raises ValueError if it is not between 0 and 1."""
    if not 0.0 < rate < 1.0:
        raise ValueError(f"A baseline of {rate}: it must lie between 0 and 1.")
    return Baseline(kind="admin", wrong=0.0, of=0.0, upper=float(rate), at=at, by=by, source=source)


def get_rate(baseline: Baseline) -> float | None:
    """The share of wrong labels; None if the baseline was set without labels."""
    return baseline.wrong / baseline.of if baseline.of else None
