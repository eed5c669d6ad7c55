"""The outlook of a task's monitor: labels and days until a slip is found, false alarms, and doubts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from monitoring.quality.detectors import dependence, planning
from monitoring.quality.detectors.baselines import RATE_MAX
from monitoring.quality.detectors.rising_errors import BASELINE_MIN
from monitoring.quality.explanations.certainty import DISPERSION_TOLD, KINDS
from monitoring.quality.explanations.phrases import NOBODY_WOKEN, format_count, format_digits, format_percent
from monitoring.quality.signal_table import get_measure
from monitoring.quality.signals.labelled import ALPHA
from monitoring.quality.verdicts.plan import Plan
from monitoring.quality.verdicts.quality import Judgement, StreamReport
from monitoring.quality.verdicts.verdict import DOUBTS

POINTS = (2, 5, 10, 20)


class SignalOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """A signal's outlook: its baseline, its dispersion, and the labels and days until a slip of so many points is found
    on average (None: never)."""

    signal: str
    labels_per_day: float
    baseline: float
    dispersion: float
    labels: dict[str, float | None]
    days: dict[str, float | None]


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """A version's outlook: of each labelled signal that has a baseline, and `days` of the fastest of them.

    `false_alarms_per_month` are those of all tasks and versions together. `doubts` are the doubts that hold now.
    """

    task: str
    version: str
    labels_per_day: float
    false_alarms_per_month: float
    labels_min: int
    signals: list[SignalOutlook]
    days: dict[str, float | None]
    doubts: list[str]
    sentences: list[str]


def make_outlook(judged: Judgement, plan: Plan, labels_per_day: float | None = None) -> Outlook:
    """The outlook at so many labels a day of each signal; None: as they come now, by each signal's share of them."""
    reports = [report for report in judged.streams if get_measure(report.stream) == "share" and report.of_class is None]
    total = sum(report.observed for report in reports)
    signals = []
    for report in reports:
        upper = report.baseline.get("upper")
        if isinstance(upper, int | float) and upper < RATE_MAX:
            per_day_now = judged.labels_per_day * report.observed / total if total else 0.0
            per_day = per_day_now if labels_per_day is None else labels_per_day
            threshold = planning.find_labels_between(plan.false_alarms_per_month, judged.signals, per_day)
            if labels_per_day is None:  # its own, which keeps its busiest days; a young version has none yet
                threshold = max(threshold, report.threshold)
            signals.append(_look_ahead(report, upper, per_day, threshold))
    days = {
        str(points): min((day for signal in signals if (day := signal.days[str(points)]) is not None), default=None)
        for points in POINTS
    }
    return Outlook(
        task=judged.task,
        version=judged.version,
        labels_per_day=judged.labels_per_day if labels_per_day is None else labels_per_day,
        false_alarms_per_month=plan.false_alarms_per_month,
        labels_min=plan.labels_min,
        signals=signals,
        days=days,
        doubts=[report.doubt for report in judged.streams if report.doubt is not None],
        sentences=list(_describe(judged, plan, reports)),
    )


def _look_ahead(report: StreamReport, upper: float, per_day: float, threshold: float) -> SignalOutlook:
    held, rate = max(BASELINE_MIN, upper), report.baseline.get("rate")
    if rate is None and report.estimate is not None:  # of a bound that was set without labels
        rate = min(upper, report.estimate)
    exponent = dependence.find_exponent_of(report.dispersion, int(report.observed))
    labels = {
        str(points): planning.find_labels_to_detect(
            held, points / 100, threshold * ALPHA, ALPHA, rate, exponent=exponent
        )
        for points in POINTS
    }
    return SignalOutlook(
        signal=report.stream,
        labels_per_day=per_day,
        baseline=upper,
        dispersion=report.dispersion,
        labels=labels,
        days={points: None if count is None or not per_day else count / per_day for points, count in labels.items()},
    )


def _describe(judged: Judgement, plan: Plan, reports: list[StreamReport]) -> Iterator[str]:
    name = judged.version
    yield (
        f"You are woken when {name} becomes degraded: labels, complaints or judged pairs show more errors than their "
        f"baseline, on {format_count(plan.labels_min, 'label', 'labels')} at least."
    )
    yield (
        f"For nothing: at most {format_count(plan.false_alarms_per_month, 'time', 'times')} a month over all tasks and "
        "versions, while errors keep to their baselines."
    )
    if not plan.has_webhook:
        yield NOBODY_WOKEN
    doubts = "; ".join([doubt[0].lower() + doubt[1:] for doubt in DOUBTS.values()])
    yield f"Suspect at most, for a person to look at: {doubts}."
    for report in reports:
        if report.doubt is not None:
            yield f"Now evidence of {report.stream} makes {name} suspect at most. {DOUBTS[report.doubt]}."
        if report.baseline.get("upper") is None:
            yield f"{report.stream} has no baseline yet, so it finds nothing."
        elif report.dispersion > DISPERSION_TOLD:
            count = format_digits(report.dispersion)
            yield f"Errors of {report.stream} come in clusters: about {count} labels count as one, so it takes longer."
        if report.has_rhythm:
            yield f"Errors of {report.stream} follow the day; bad hours are allowed for."
    if not reports:
        command = f"apprentice tasks baseline {judged.task} {name} feedback --wrong 50 --of 1000 --reason TEXT"
        yield f"No label of {name} has come, and it has no baseline: nothing would be found. To set one: {command}."
    held = [report for report in reports if isinstance(report.baseline.get("upper"), int | float)]
    for report in held:
        kind = KINDS.get(str(report.baseline.get("kind")), "its settings")
        yield f"{report.stream} is held against at most {format_percent(report.baseline['upper'])} errors, from {kind}."
