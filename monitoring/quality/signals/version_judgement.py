"""The judgement of a version at one moment: each signal with its evidence, both arms, and the time to find a
degradation.

The fleet's accepted false alarms are divided equally among all labelled signals of all versions. The unlabelled ones,
which only make a version suspect, get as many again. A signal's part and its labels a month give the e-value at which
it alarms (`detection_delay.py`). Both are taken at the largest numbers of signals and labels since its detector began
(`alarm_shares.py`). A class is a signal of its own.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import cost_saving, detection_delay, drift, recent_values
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.detectors.estimates import Estimate
from monitoring.quality.signal_table import UNLABELLED, get_measure
from monitoring.quality.signals import arm_bets, arms, days_to_detect
from monitoring.quality.signals.entries import GENERAL
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.labelled import ALPHA, ReportTerms, e_value_of
from monitoring.quality.signals.pair_signal import PairSignal
from monitoring.quality.signals.version_watch import LabelledSignal, Watch, get_labelled
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import (
    ArmEvidence,
    ArmReport,
    Judgement,
    JudgeReport,
    SavingReport,
    SignalReport,
)
from monitoring.quality.verdicts.verdict import name_of
from monitoring.time_units import DAY_SECONDS

POINTS = (5, 10)
SILENT_SECONDS = 3 * 86_400.0
"""The time without requests after which changes in unlabelled signals are no longer reported: no value can show their
end. It is longer than a weekend."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """The fleet's false alarms a month, and the numbers of labelled and unlabelled signals that share them now."""

    false_alarms_per_month: float
    labelled: int
    unlabelled: int


def judge(watch: Watch, plan: MonitorPlan, budget: Budget, at: float, previous_version: str | None = None) -> Judgement:
    """The judgement from a watch at `at` (Unix seconds). It depends on watch, plan, budget and time alone.

    `previous_version` is the task's previous version now: pairs with an earlier one are left out.
    """
    label_rate = recent_values.count_per_day(watch.label_rate, at)
    request_rate, coverage = recent_values.count_per_day(watch.request_rate, at), None
    if watch.request_rate is not None:
        # Both rates begin at the first request: else a single first label would be a high rate.
        judged = watch.judged and replace(watch.judged, since=watch.request_rate.since)
        coverage = min(1.0, recent_values.count_per_day(judged, at) / request_rate) if request_rate else None
    reports = [*_labelled(watch, plan, budget, at), *_unlabelled(watch, budget, at)]
    track = watch.complaints
    complained = track.detectors.whole if track is not None and not track.learns else None
    return Judgement(
        task=watch.task,
        version=watch.version,
        at=at,
        requests=watch.requests,
        requests_per_day=request_rate,
        led_per_day=recent_values.count_per_day(watch.led_rate, at),
        requests_since=watch.request_rate.since if watch.request_rate is not None else None,
        labels=watch.labels,
        labels_per_day=label_rate,
        labels_since=watch.label_rate.since if watch.label_rate is not None else None,
        label_coverage=coverage,
        feedback_delay_seconds=recent_values.find_median(watch.delays),
        complaints_expected=complained.expected if complained is not None else None,
        complaints_seen=float(complained.seen) if complained is not None else None,
        seconds_to_detect=dict(_seconds_to_detect(reports, budget)),
        saving_usd=watch.saving_usd,
        shadow_usd=watch.shadow_usd,
        shadows=watch.shadows,
        reports=reports,
        arms=list(_arms(watch, _slips_since(watch, reports), previous_version)),
        judge_agreement=recent_values.find_mean(watch.agreed),
        judge_agreement_low=(recent_values.find_share_interval(watch.agreed) or (None,))[0],
        judge=_of_judge(watch),
        signals=max(1, budget.labelled),
        saving=_of_saving(watch, at),
    )


def _of_judge(watch: Watch) -> JudgeReport | None:
    """The recent record of the model that judges its pairs."""
    silent = recent_values.find_mean(watch.judge.silent)
    if silent is None:
        return None
    return JudgeReport(asked=watch.judge.silent.weight, silent=silent, answered_since=watch.judge.answered_since)


def _of_saving(watch: Watch, at: float) -> SavingReport | None:
    """The version's present saving, and the cost of its shadows."""
    if watch.saving is None or not watch.saving.requests:
        return None
    saved, shadows = cost_saving.find_per_day(watch.saving, at)
    counted, unknown = watch.saving.requests, watch.saving.unknown
    return SavingReport(
        saved_usd_per_day=saved,
        shadow_usd_per_day=shadows,
        requests=cost_saving.fade(watch.saving, at).requests,
        known=counted / (counted + unknown),
        since=watch.saving.since,
    )


def _threshold(signal: LabelledSignal, budget: Budget, at: float) -> float:
    """The e-value at which a labelled signal alarms, by the most signals and labels a day since its detector began."""
    signals, per_day = max(signal.signals, budget.labelled), recent_values.find_busiest(signal.busiest, signal.rate, at)
    return detection_delay.find_labels_between(budget.false_alarms_per_month, signals, per_day)


# ---- labelled signals ------------------------------------------------------------------------------


def _labelled(watch: Watch, plan: MonitorPlan, budget: Budget, at: float) -> Iterator[SignalReport]:
    signals = get_labelled(watch)
    for name in (*[name for name in signals if name not in watch.classes], *sorted(watch.classes)):
        signal = signals[name]
        whole, _, of_class = name.partition(":")
        is_outdated = name in watch.outdated
        if not (of_class or signal.is_reported or (is_outdated and get_measure(whole) == "share")):
            continue
        terms = ReportTerms(
            at=at,
            labels_min=plan.labels_min,
            threshold=_threshold(signal, budget, at),
            roll=watch.roll,
            is_outdated=is_outdated,
        )
        report = signal.report(whole, of_class or None, terms)
        if whole != "holdout" or report.alarming or not _is_over(watch.holdout, watch.feedback):
            yield report


def _is_over(holdout: PairSignal, feedback: LabelSignal) -> bool:
    """Return whether the last pair is older than the labels in feedback's recent share: nothing is held out now."""
    begins = recent_values.find_time(feedback.marks, max(0, feedback.labels - recent_values.WINDOW))
    return begins is not None and bool(holdout.marks) and holdout.marks[-1][1] < begins


# ---- unlabelled signals ----------------------------------------------------------------------------


def _unlabelled(watch: Watch, budget: Budget, at: float) -> Iterator[SignalReport]:
    is_silent = watch.request_rate is None or at - watch.request_rate.at >= SILENT_SECONDS
    for name in UNLABELLED:
        signal = watch.signals.get(name)
        if signal is not None:
            signals = max(signal.signals, budget.unlabelled)
            per_day = recent_values.find_busiest(signal.busiest, watch.request_rate, at)
            yield _of_signal(
                name,
                signal,
                watch,
                detection_delay.find_labels_between(budget.false_alarms_per_month, signals, per_day),
                is_silent,
            )


def _of_signal(name: str, signal: Signal, watch: Watch, wanted: float, is_silent: bool) -> SignalReport:
    learns = drift.learns(signal)
    alarming = not (learns or is_silent) and drift.has_alarmed(signal, wanted * ALPHA, ALPHA)
    baseline: dict[str, Any] = drift.describe_reference(signal)
    baseline |= {"direction": drift.find_direction(signal), "learning": learns}
    if name == "language":
        baseline["main"] = watch.languages.main
    begun = drift.find_change(signal)
    since = None
    if begun is not None and signal.observed:
        back = (signal.observed - begun) * watch.requests / max(signal.observed, watch.looked_at)
        since = recent_values.find_time(watch.request_marks, max(0, int(watch.requests - back)))
    return SignalReport(
        signal=name,
        labelled=False,
        observed=float(signal.observed),
        baseline=baseline,
        e_value=e_value_of(signal.log_max if alarming else drift.log_e(signal)),
        threshold=wanted,
        alarming=alarming,
        since=since,
    )


# ---- arms, and the time to find a degradation ---------------------------------------------------------------


def _slips_since(watch: Watch, reports: Sequence[SignalReport]) -> float | None:
    """The earliest beginning of evidence that still makes the version degraded; None without any.

    Evidence of a recovered signal, or lost evidence, begins again all the time: no pairs come after that.
    """
    signals = get_labelled(watch)
    degrading = [report for report in reports if report.labelled and report.alarming and not report.recovered]
    times = [report.since for report in degrading if signals[name_of(report)].has_strong_evidence]
    return min([at for at in times if at is not None], default=None)


def _arms(watch: Watch, since: float | None, previous_version: str | None) -> Iterator[ArmReport]:
    """The version and both other arms; the previous version only if the pairs are with `previous_version`.

    `since` is the time at which labels began to get worse. Their requests did so earlier, mostly by less than twice the
    median delay of labels.
    """
    since = None if since is None else since - 2.0 * (recent_values.find_median(watch.delays) or 0.0)
    general = arms.compare(watch.general, since)
    other = (
        watch.previous_version
        if watch.previous_version is not None and watch.previous_version.other == previous_version
        else None
    )
    beside = arms.compare(other, since) if other is not None else None
    there = [comparison for comparison in (general, beside) if comparison is not None]
    own = next((comparison for comparison in there if comparison.version is not None), there[0] if there else None)
    if own is not None:
        yield _of_arm("version", watch.version, own, own.version)
    names: tuple[Literal["general", "previous_version"], ...] = ("general", "previous_version")
    for name, version, comparison in zip(names, (None, previous_version), (general, beside), strict=True):
        evidence = _evidence(watch, GENERAL if name == "general" else previous_version)
        if comparison is not None:
            low, high, words = comparison.advantage_low, comparison.advantage_high, comparison.words
            report = _of_arm(name, version, comparison, comparison.other)
            yield replace(report, advantage_low=low, advantage_high=high, advantage_words=words, evidence=evidence)
        elif evidence is not None:
            yield ArmReport(arm=name, version=version, evidence=evidence)


def _evidence(watch: Watch, other: str | None) -> ArmEvidence | None:
    """The evidence, since the version was degraded, that another arm is better."""
    bets = watch.bets.get(other or "")
    if bets is None or not watch.course.is_degraded or bets.since != watch.course.since:
        return None
    return arm_bets.describe(bets, watch.roll)


def _of_arm(name: Any, version: str | None, comparison: arms.ArmComparison, quality: Estimate | None) -> ArmReport:
    """The report on an arm, with its quality if known."""
    return ArmReport(
        arm=name,
        version=version,
        mean=quality.mean if quality is not None else None,
        low=quality.low if quality is not None else None,
        high=quality.high if quality is not None else None,
        labels=comparison.labels,
        pairs=comparison.pairs,
    )


def _seconds_to_detect(reports: Sequence[SignalReport], budget: Budget) -> Iterator[tuple[str, float | None]]:
    """The seconds, by points, until the fastest signal finds such a rise of badness; None if no signal would."""
    for points in POINTS:
        days = days_to_detect.find_days(reports, points / 100, budget.false_alarms_per_month, budget.labelled)
        yield str(points), None if days is None else days * DAY_SECONDS
