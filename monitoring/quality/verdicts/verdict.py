"""The verdict that follows from a version's signals, with its reason. Pure. `phases.py` has the table of phases.

Only labelled signals make a version degraded. Unlabelled signals make it suspect. So do labels whose alarm is in doubt:
a person has to look.

A verdict ends by other evidence than it began with, so that it does not alternate:
- Degraded ends with the reverse tests of the labelled signals that have alarmed.
- Suspect ends with labels that show the version to be as good as before, or after a time without an alarm.
An alarm that ends shows nothing. Its threshold rises with the number of labels and signals, and the monitor itself
causes more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from msgspec.structs import replace

from monitoring.quality.phases import Judged, Verdict, next_phase
from monitoring.quality.phrases import format_evidence
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import OTHER_CLASS, Doubt, Judgement, SignalReport, VersionQuality


class Conclusion(NamedTuple):
    """A verdict, its reason, the signals that show it, and the names of signals that labels have refuted."""

    verdict: Verdict
    because: str
    reports: list[SignalReport]
    cleared: tuple[str, ...]


class ReverseTest(NamedTuple):
    """The reverse test of a labelled signal `name`: `alarming` and `recovered` as in its report.

    `is_there`: the signal has a baseline. `from_before`: its baseline is from before the version was degraded.
    """

    name: str
    alarming: bool
    recovered: bool
    is_there: bool
    from_before: bool


def find_verdict(quality: VersionQuality, judged: Judgement, plan: MonitorPlan, now: float) -> Conclusion:
    """The verdict that follows from a version's present quality and its judgement, at `now` (Unix seconds)."""
    labelled = find_degraded(judged)
    speaking = [report for report in judged.reports if report.doubt or (report.alarming and not report.labelled)]
    cleared = tuple(name for name in quality.cleared if any(name_of(report) == name for report in speaking))
    fresh = [report for report in speaking if name_of(report) not in cleared]
    if quality.verdict == "degraded":
        return _of_degraded(quality, judged, labelled, fresh, cleared)
    if labelled:
        return Conclusion("degraded", explain_degraded(labelled), labelled, cleared)
    if quality.verdict == "suspect":
        return _of_suspect(quality, judged, fresh, cleared, plan, now)
    if fresh:
        return Conclusion("suspect", _suspicion(fresh), fresh, cleared)
    return Conclusion("healthy", quality.because, [], cleared)


def find_degraded(judged: Judgement) -> list[SignalReport]:
    """The labelled signals that make a version degraded: they alarm, and have not recovered since."""
    return [report for report in judged.reports if report.labelled and report.alarming and not report.recovered]


def apply_conclusion(quality: VersionQuality, conclusion: Conclusion, judged: Judgement, now: float) -> VersionQuality:
    """The version's quality after a conclusion: the verdict with its time and reason, and the state for the next one.

    If the clock was set back, a verdict keeps the time of the one before: the monitor's process ignores older ones.
    """
    after = next_phase(quality.phase, Judged(conclusion.verdict)).verdict
    turned = after != quality.verdict
    observed = None
    if after == "suspect":
        observed = quality.observed
        if turned or observed is None:
            observed = {name_of(report): report.observed for report in judged.reports if report.labelled}
    return replace(
        quality,
        verdict=after,
        since=max(now, quality.since) if turned else quality.since,
        because=conclusion.because if turned else quality.because,
        cleared=conclusion.cleared,
        alarmed=list_alarmed(quality, judged) if after == "degraded" else (),
        observed=observed,
        undone=() if after == "healthy" else quality.undone,
        quiet_since=_quiet_since(quality, conclusion.reports, now) if after == "suspect" else None,
    )


def list_alarmed(quality: VersionQuality, judged: Judgement) -> tuple[str, ...]:
    """The labelled signals that made a version degraded, or have alarmed since."""
    now = [test.name for test in _tests(judged, quality.since) if test.alarming]
    return tuple(dict.fromkeys((*quality.alarmed, *now)))


def find_unrecovered(quality: VersionQuality, judged: Judgement) -> list[str]:
    """The signals that have alarmed, still have a baseline, and have not recovered."""
    return [
        test.name
        for test in _tests(judged, quality.since)
        if test.name in quality.alarmed and test.is_there and not test.recovered
    ]


def shows_recovery(quality: VersionQuality, judged: Judgement) -> bool:
    """Return whether any signal could show a recovery of a degraded version: its baseline is from before."""
    return any(test.from_before for test in _tests(judged, quality.since))


def name_of(report: SignalReport) -> str:
    """A signal's name, with its class if it has one."""
    return report.signal if report.of_class is None else f"{report.signal}:{report.of_class}"


def describe_evidence(reports: list[SignalReport]) -> str:
    """The evidence of the signals, the strongest first, in a few words each."""
    ordered = sorted(reports, key=lambda report: -report.e_value / report.threshold if report.threshold else 0.0)
    return "; ".join(_word(report) for report in ordered[:3])


def explain_degraded(reports: list[SignalReport]) -> str:
    """The reason for a degraded verdict, from the labelled signals that show it."""
    return f"It got worse: {describe_evidence(reports)}."


DOUBTS: Mapping[Doubt | None, str] = MappingProxyType(
    {
        None: "Its traffic or its answers are not as they were",
        "one_giver": "It got worse by the labels of one caller or rater alone",
        "one_session": "It got worse in one session alone, whose answers may be right or wrong together",
        "first_day": "It got worse within its first day of labels, and a bad hour may be so bad",
        "days_differ": "Its errors differ from day to day, and it got worse by no more than some bad days may bring",
        "reviewers": "Its present reviewers are stricter than the earlier ones, so errors may not have grown",
        "labellers": "It may have been worse than in its evaluation from the first label on, as labellers may differ",
    }
)
"""The reason for a suspicion, by its doubt; None: an unlabelled signal alarms."""


def _suspicion(reports: list[SignalReport]) -> str:
    """The reason for a suspicion, from these signals."""
    by_doubt = {doubt: [report for report in reports if report.doubt == doubt] for doubt in DOUBTS}
    return " ".join(
        f"{DOUBTS[doubt]}: {describe_evidence(speaking)}." for doubt, speaking in by_doubt.items() if speaking
    )


def _of_degraded(
    quality: VersionQuality,
    judged: Judgement,
    labelled: list[SignalReport],
    fresh: list[SignalReport],
    cleared: tuple[str, ...],
) -> Conclusion:
    """The conclusion on a degraded version. It is healthy again if the reverse tests of all alarmed signals that are
    still tested show a recovery. At least one test must show it, and no other labelled signal may alarm."""
    shown = any(test.from_before and test.recovered for test in _tests(judged, quality.since))
    if labelled or not shown or find_unrecovered(quality, judged):
        return Conclusion("degraded", quality.because, labelled, cleared)
    recovered = [report for report in judged.reports if report.labelled and report.recovered]
    names = ", ".join(dict.fromkeys(report.signal for report in recovered))
    text = f"It has recovered: labels since then show it ({names})."
    return Conclusion("healthy", text, recovered, _with(cleared, fresh))


def _tests(judged: Judgement, since: float) -> Iterator[ReverseTest]:
    """The reverse tests of a version that is degraded since `since`."""
    for report in judged.reports:
        if report.labelled:
            is_there = _upper(report.baseline) is not None or report.baseline.get("learning") is False
            is_before = is_there and _is_before(report.baseline, since)
            yield ReverseTest(name_of(report), report.alarming, report.recovered, is_there, is_before)


def _is_before(baseline: Mapping[str, Any], since: float) -> bool:
    """Return whether a baseline does not come from the version's own labels since then."""
    at = baseline.get("at", baseline.get("to"))
    return baseline.get("kind") != "own" or not isinstance(at, int | float) or at <= since


def _of_suspect(
    quality: VersionQuality,
    judged: Judgement,
    fresh: list[SignalReport],
    cleared: tuple[str, ...],
    plan: MonitorPlan,
    now: float,
) -> Conclusion:
    refuting = _refuting(quality, judged, plan)
    if refuting:
        count = max(_since(quality, report) for report in refuting)
        names = ", ".join(report.signal for report in refuting)
        text = f"{count:.0f} labels since then show that it is as good as before ({names})."
        return Conclusion("healthy", text, refuting, _with(cleared, fresh))
    quiet_since = _quiet_since(quality, fresh, now)
    if quiet_since is not None and now - quiet_since >= plan.suspect_clears_seconds:
        return Conclusion("healthy", "Nothing has spoken against it since then.", [], cleared)
    return Conclusion("suspect", quality.because, fresh, cleared)


def _quiet_since(quality: VersionQuality, fresh: list[SignalReport], now: float) -> float | None:
    """The time since nothing alarms for a suspect version; None while something does."""
    if fresh:
        return None
    return now if quality.quiet_since is None else min(now, quality.quiet_since)


def _with(cleared: tuple[str, ...], fresh: list[SignalReport]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*cleared, *map(name_of, fresh))))


def _refuting(quality: VersionQuality, judged: Judgement, plan: MonitorPlan) -> list[SignalReport]:
    """The labelled signals that show a suspect version to be as good as before. Each has enough labels since then. The
    interval of its recent errors is not above its baseline, whichever caller is left out; if that is not known, the
    signal refutes nothing. No signal does while another's interval lies wholly above its baseline. Evidence that rests
    on one giver does not count there."""
    reports = [
        (report, upper)
        for report in judged.reports
        if report.labelled and (upper := _upper(report.baseline)) is not None
    ]
    above = [
        report
        for report, upper in reports
        if report.low is not None and report.low > upper and report.doubt != "one_giver"
    ]
    if any(report.observed >= plan.labels_min for report in above):
        return []
    return [
        report
        for report, upper in reports
        if report.of_class is None
        and report.high is not None
        and report.high <= upper
        and report.high_without_one is not None
        and report.high_without_one <= upper
        and _since(quality, report) >= 2 * plan.labels_min
    ]


def _since(quality: VersionQuality, report: SignalReport) -> float:
    """The number of this signal's labels since its version became suspect; 0 if that is not known."""
    return 0.0 if quality.observed is None else report.observed - quality.observed.get(name_of(report), 0.0)


def _upper(baseline: Mapping[str, Any]) -> float | None:
    """The upper bound of a signal's baseline, a rate or a difference; None without a baseline."""
    upper = baseline.get("upper")
    return upper if isinstance(upper, int | float) else None


def _word(report: SignalReport) -> str:
    of_class = f" of the class {report.of_class}" if report.of_class else ""
    of_class = " of all other classes" if report.of_class == OTHER_CLASS else of_class
    rate = against = ""
    if report.estimate is not None and report.labelled:
        unit, bad = (" points", "worse") if report.baseline.get("difference") else ("%", "bad")
        rate = f", {100 * report.estimate:.1f}{unit} {bad} lately"
        upper = _upper(report.baseline)
        against = f" against at most {100 * upper:.1f}{unit}" if upper is not None else ""
    evidence = f"e-value {format_evidence(report.e_value)}, threshold {format_evidence(report.threshold)}"
    return f"{report.signal}{of_class}{rate}{against} ({evidence})"
