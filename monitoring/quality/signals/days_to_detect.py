"""The time until a degradation of a version is found, by its judged signals: one estimate for all reports. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from monitoring import intervals
from monitoring.quality.detectors import baselines, dependence, detection_delay
from monitoring.quality.detectors.rising_errors import BASELINE_MIN
from monitoring.quality.signal_table import get_measure
from monitoring.quality.signals.labelled import ALPHA
from monitoring.quality.verdicts.quality import SignalReport

GUESSED_FROM = 20
"""The number of first labels that suffice to guess a future baseline."""


class Held(NamedTuple):
    """A signal's baseline bound, and its error rate before a degradation (None: the bound). A guessed bound still needs
    `missing` labels."""

    upper: float
    rate: float | None
    missing: float = 0.0


def list_label_signals(reports: Iterable[SignalReport]) -> list[SignalReport]:
    """The reports of label signals that cover all classes."""
    return [report for report in reports if get_measure(report.signal) == "share" and report.of_class is None]


def find_held(report: SignalReport) -> Held | None:
    """Find the bound of a label signal; None if it is not known, or hides every degradation."""
    upper, rate = report.baseline.get("upper"), report.baseline.get("rate")
    if isinstance(upper, int | float):
        if rate is None and report.estimate is not None:  # the bound was set without labels
            rate = min(upper, report.estimate)
        bound = Held(upper, rate)
    else:
        first, wanted = float(report.baseline.get("labels") or 0.0), float(report.baseline.get("wanted") or 0.0)
        if first < GUESSED_FROM or not wanted or report.wrong is None or not report.observed:
            return None
        rate = min(1.0, report.wrong / report.observed)
        bound = Held(intervals.find_upper_bound(rate * wanted, wanted), rate, max(0.0, wanted - first))
    return bound if bound.upper < baselines.RATE_MAX else None


def find_threshold(report: SignalReport, false_alarms_per_month: float, signals: int, per_day: float | None) -> float:
    """The e-value of an alarm at `per_day` labels a day. None: at the present rate, and not below the present
    threshold, which keeps the busiest days; a young version has none yet."""
    now = report.labels_per_day if per_day is None else per_day
    threshold = detection_delay.find_labels_between(false_alarms_per_month, signals, now)
    return max(threshold, report.threshold) if per_day is None else threshold


def count_labels(report: SignalReport, points: float, threshold: float) -> float | None:
    """The mean number of labels until a rise by `points` (0.05: 5 points) is found; None if it never is."""
    bound = find_held(report)
    if bound is None:
        return None
    upper = min(1.0 - BASELINE_MIN, max(BASELINE_MIN, bound.upper))
    exponent = dependence.find_exponent_of(report.dispersion, dependence.find_caution(int(report.observed)))
    labels = detection_delay.find_labels_to_detect(
        upper, points, threshold * ALPHA, ALPHA, bound.rate, exponent=exponent
    )
    return None if labels is None else labels + bound.missing


def find_days(
    reports: Iterable[SignalReport], points: float, false_alarms_per_month: float, signals: int
) -> float | None:
    """The days until the fastest signal finds a rise by `points` at the present label rate; None if none does."""
    days = [
        count / report.labels_per_day
        for report in list_label_signals(reports)
        if report.labels_per_day
        and (threshold := find_threshold(report, false_alarms_per_month, signals, None))
        and (count := count_labels(report, points, threshold)) is not None
    ]
    return min(days, default=None)
