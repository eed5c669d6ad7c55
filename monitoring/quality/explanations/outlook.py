"""The outlook of a task's monitor: labels and days until a degradation is found, false alarms, and doubts. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from monitoring.quality.explanations.certainty import DISPERSION_TOLD, KINDS
from monitoring.quality.phrases import (
    NOBODY_WOKEN,
    format_count,
    format_digits,
    format_pace,
    format_percent,
    is_short,
)
from monitoring.quality.signals import days_to_detect
from monitoring.quality.signals.days_to_detect import Held
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import Judgement, SignalReport
from monitoring.quality.verdicts.verdict import DOUBTS

POINTS = (2, 5, 10, 20)


class SignalOutlook(msgspec.Struct, frozen=True, kw_only=True):
    """A signal's outlook: its baseline, its dispersion, and the labels and days until a degradation by POINTS is found
    on average (None: never). `labels_per_day` and days are None, too, while no rate is known."""

    signal: str
    labels_per_day: float | None
    baseline: float
    dispersion: float
    labels: dict[str, float | None]
    days: dict[str, float | None]


class Outlook(msgspec.Struct, frozen=True, kw_only=True):
    """A version's outlook: that of each labelled signal with a baseline, or enough labels to guess one. `days` are
    those of the fastest.

    `labels_per_day` is None if the known time is too short for a rate: `pace` has the number in that time.
    `false_alarms_per_month` are those of all tasks and versions together. `doubts` are the doubts that hold now.
    """

    task: str
    version: str
    labels_per_day: float | None
    pace: str
    false_alarms_per_month: float
    labels_min: int
    signals: list[SignalOutlook]
    days: dict[str, float | None]
    doubts: list[str]
    sentences: list[str]


def make_outlook(judged: Judgement, plan: MonitorPlan, labels_per_day: float | None = None) -> Outlook:
    """The outlook if each signal has `labels_per_day`; None: at the present rates."""
    reports = days_to_detect.list_label_signals(judged.reports)
    signals = [
        _look_ahead(report, bound, judged, plan, labels_per_day)
        for report in reports
        if (bound := days_to_detect.find_held(report)) is not None
    ]
    days = {
        str(points): min((day for signal in signals if (day := signal.days[str(points)]) is not None), default=None)
        for points in POINTS
    }
    now = None if is_short(judged.labels_since, judged.at) else judged.labels_per_day
    return Outlook(
        task=judged.task,
        version=judged.version,
        labels_per_day=now if labels_per_day is None else labels_per_day,
        pace=format_pace(judged.labels, ("label", "labels"), judged.labels_per_day, judged.labels_since, judged.at),
        false_alarms_per_month=plan.false_alarms_per_month,
        labels_min=plan.labels_min,
        signals=signals,
        days=days,
        doubts=[report.doubt for report in judged.reports if report.doubt is not None],
        sentences=list(_describe(judged, plan, reports)),
    )


def _look_ahead(
    report: SignalReport, bound: Held, judged: Judgement, plan: MonitorPlan, labels_per_day: float | None
) -> SignalOutlook:
    threshold = days_to_detect.find_threshold(report, plan.false_alarms_per_month, judged.signals, labels_per_day)
    labels = {str(points): days_to_detect.count_labels(report, points / 100, threshold) for points in POINTS}
    per_day = labels_per_day
    if per_day is None and not is_short(judged.labels_since, judged.at):
        per_day = report.labels_per_day
    return SignalOutlook(
        signal=report.signal,
        labels_per_day=per_day,
        baseline=bound.upper,
        dispersion=report.dispersion,
        labels=labels,
        days={points: None if count is None or not per_day else count / per_day for points, count in labels.items()},
    )


def _describe(judged: Judgement, plan: MonitorPlan, reports: list[SignalReport]) -> Iterator[str]:
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
            yield f"Now evidence of {report.signal} makes {name} suspect at most. {DOUBTS[report.doubt]}."
        if report.baseline.get("upper") is None:
            missing = float(report.baseline.get("wanted") or 0.0) - float(report.baseline.get("labels") or 0.0)
            more = format_count(missing, "more label", "more labels")
            yield f"{report.signal} finds nothing before its baseline is known, after {more}."
        elif report.dispersion > DISPERSION_TOLD:
            count = format_digits(report.dispersion)
            yield f"Errors of {report.signal} come in clusters: about {count} labels count as one, so it takes longer."
        if report.has_rhythm:
            yield f"Errors of {report.signal} follow the day; bad hours are allowed for."
    if not reports:
        command = f"apprentice tasks baseline {judged.task} {name} feedback --wrong 50 --of 1000 --reason TEXT"
        yield f"No label of {name} has come, and it has no baseline: nothing would be found. To set one: {command}."
    bounded = [report for report in reports if isinstance(report.baseline.get("upper"), int | float)]
    for report in bounded:
        kind = KINDS.get(str(report.baseline.get("kind")), "its settings")
        yield f"{report.signal} is compared with {format_percent(report.baseline['upper'])} errors, from {kind}."
