"""The monitor's certainty, in plain words: each signal with its estimate, its baseline and its evidence. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, assert_never

from monitoring.quality.phrases import (
    format_count,
    format_day,
    format_digits,
    format_evidence,
    format_moment,
    format_percent,
    format_span,
    is_short,
    join_words,
)
from monitoring.quality.signal_table import LABELLED, get_measure
from monitoring.quality.signals.days_to_detect import list_label_signals
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.quality import OTHER_CLASS, Judgement, SignalReport
from monitoring.time_units import DAY_SECONDS

KINDS: Mapping[str, str] = {
    "gate": "its evaluation before it was released",
    "previous": "the version before it",
    "own": "its own first labels",
    "admin": "an admin",
}
"""The words for the source of a baseline."""
DISPERSION_TOLD = 1.2
"""The dispersion above which it is reported: independent labels show up to this much by chance."""


E_VALUES = (
    "An e-value counts beside its alarm alone: while nothing is wrong, it reaches N at most once in N labels, values "
    "or complaints on average. Far below its alarm it says nothing (docs/explanation/judging.md)."
)
"""The meaning of the numbers of its evidence."""


def describe_signals(judged: Judgement, plan: MonitorPlan, stale: bool) -> Iterator[str]:
    """A sentence on each labelled signal, on each alarm, and on all others together. `stale`: the task has changed."""
    quiet: list[str] = []
    learning: list[str] = []
    for report in judged.reports:
        if report.labelled:
            yield _labelled(report, judged.task, plan)
        elif report.alarming:
            yield _unlabelled(report)
        elif report.baseline.get("learning"):
            learning.append(report.signal)
        else:
            quiet.append(report.signal)
    if quiet:
        names = join_words(list(dict.fromkeys(quiet)))
        yield f"Without labels, {names} {'is' if len(set(quiet)) == 1 else 'are'} as before."
    if learning:
        names = join_words(list(dict.fromkeys(learning)))
        yield f"What is usual of {names} is still being learned: nothing of it can be unlike before."
    if stale and judged.reports:
        yield "What these are compared with was learned under the old rules: a change in them may be the new rules'."


def describe_detection(judged: Judgement) -> Iterator[str]:
    """The time until a rise is found at today's label rate; the number of labels while no rate is known."""
    for points, seconds in sorted(judged.seconds_to_detect.items(), key=lambda item: int(item[0])):
        if seconds is None:
            yield f"A rise of {points} points would never be found: {_why_never(judged)}."
        elif is_short(judged.labels_since, judged.at):
            count = format_digits(seconds / DAY_SECONDS * judged.labels_per_day)
            yield f"A rise of {points} points would be found within about {count} labels."
        else:
            yield f"A rise of {points} points would be found in about {format_span(seconds)} at today's label rate."


def _why_never(judged: Judgement) -> str:
    if judged.labels_per_day <= 0.0:
        return "no labels come"
    if all(report.baseline.get("upper") is None for report in list_label_signals(judged.reports)):
        return "labels are compared with nothing yet"
    return (
        "so much is hardly more than what labels are compared with, however many come. A baseline of more labels is "
        "closer to the truth (`apprentice tasks baseline`)"
    )


def _labelled(report: SignalReport, task: str, plan: MonitorPlan) -> str:
    name = _name(report)
    if not report.observed:
        return f"{name}: nothing came of this signal{_outdated(report)}."
    parts = [f"{name}: {_seen(report)}"]
    if reference := _held(report.baseline):
        parts.append(f"compared with {reference}")
    elif wanted := report.baseline.get("wanted"):
        of = ("pair", "pairs") if report.baseline.get("difference") else ("label", "labels")
        has = format_count(float(report.baseline.get("labels") or 0.0), *of)
        parts.append(f"compared with nothing before {format_count(float(wanted), *of)} are there ({has} so far)")
    if report.dispersion > DISPERSION_TOLD:
        parts.append(f"errors come in clusters: about {format_digits(report.dispersion)} labels count as one")
    if report.has_rhythm:
        parts.append("errors follow the day")
    if report.baseline.get("rests_on_one"):
        parts.append("it would alarm, but rests on one caller or rater, whose labels alone make nothing degraded")
    return "; ".join([*parts, _evidence(report)]) + _outdated(report) + "."


def _seen(report: SignalReport) -> str:
    measure = get_measure(report.signal)
    match measure:
        case "complaints":
            return _complaints(report)
        case "difference":
            return _difference(report)
        case "share" | None:  # None: a signal that a newer release reports
            return _amount(report)
        case _:
            assert_never(measure)


def _name(report: SignalReport) -> str:
    if report.of_class == OTHER_CLASS:
        return f"{report.signal}, all other classes"
    return report.signal if report.of_class is None else f"{report.signal}, class {report.of_class}"


def _outdated(report: SignalReport) -> str:
    """The note that its baseline is no longer in force."""
    if not report.baseline.get("set_for_another_metric"):
        return ""
    return "; the baseline that was set for it was for another metric: set it again (`apprentice tasks baseline`)"


def _amount(report: SignalReport) -> str:
    part = (
        f"{format_evidence(report.wrong)} of {format_evidence(report.observed)} were wrong"
        if report.wrong is not None
        else ""
    )
    if report.estimate is None:
        return part or f"{format_evidence(report.observed)} seen"
    return f"{format_percent(report.estimate)} wrong lately{_interval(report)}" + (f" ({part} in all)" if part else "")


def _interval(report: SignalReport) -> str:
    if report.low is None or report.high is None:
        return ""
    return f", 95% interval {format_percent(report.low)} to {format_percent(report.high)}"


def _difference(report: SignalReport) -> str:
    """A signal of pairs: the version's error rate less the other arm's, on the same requests."""
    pairs = format_count(report.observed, "pair", "pairs")
    other = next((row.compared_with for name, row in LABELLED.items() if name == report.signal), "")
    if report.estimate is None:
        return f"{pairs} so far"
    than = "more often" if report.estimate >= 0 else "less often"
    ends = ""
    if report.low is not None and report.high is not None:
        ends = f", 95% interval {100 * report.low:.1f} to {100 * report.high:.1f}"
    return f"wrong {100 * abs(report.estimate):.1f} points {than} than {other} lately{ends} ({pairs})"


def _complaints(report: SignalReport) -> str:
    come = format_count(report.wrong or 0.0, "complaint", "complaints")
    text = f"{come} about {format_count(report.observed, 'request', 'requests')}"
    rate = report.baseline.get("rate")
    if report.baseline.get("learning"):
        return f"{text}; how many are usual, and how late they come, is being learned{_progress(report.baseline)}"
    if not isinstance(rate, int | float):
        return text
    text += f"; about {format_digits(10_000 * float(rate))} in 10,000 are usual"
    deviation = report.baseline.get("day_deviation")
    return f"{text}, on a day {format_percent(float(deviation))} more or fewer" if deviation else text


def _progress(baseline: Mapping[str, Any]) -> str:
    """The progress of the reference period in days and, once these are over, in complaints."""
    days, wanted = baseline.get("days"), baseline.get("days_wanted")
    if days is None or not wanted:
        return ""
    if days < wanted:
        return f": {int(days)} of {int(wanted)} days"
    return f": {format_evidence(baseline['complaints'])} of {format_evidence(baseline['complaints_wanted'])} complaints"


def _held(baseline: Mapping[str, Any]) -> str:
    """A baseline with its kind and its evidence."""
    upper = baseline.get("upper")
    if not isinstance(upper, int | float):
        return ""
    if baseline.get("difference"):
        text = f"at most {100 * float(upper):.1f} points more often"
    else:
        text = f"at most {format_percent(float(upper))}"
    kind = KINDS.get(str(baseline.get("kind")))
    if kind is None:
        return text
    kind = kind.replace("labels", "pairs") if baseline.get("difference") else kind
    text += f", from {kind}"
    if baseline.get("of") and not baseline.get("difference"):
        wrong, of = float(baseline.get("wrong") or 0.0), float(baseline["of"])
        text += f" ({format_evidence(wrong)} of {format_evidence(of)} wrong)"
    if baseline.get("at"):
        text += f" on {format_day(float(baseline['at']))}"
    return text


def _evidence(report: SignalReport) -> str:
    word = f"e-value {format_evidence(report.e_value)}, alarm at {format_evidence(report.threshold)}"
    if report.alarming:
        since = f", growing since {format_moment(report.since)}" if report.since else ""
        return f"ALARM ({word}{since})" + ("; recovered since then" if report.recovered else "")
    return f"recovered ({word})" if report.recovered else f"no alarm ({word})"


def _unlabelled(report: SignalReport) -> str:
    amount = format_count(report.observed, "value", "values")
    way = {"above": "more of it than before", "below": "less of it than before"}.get(
        str(report.baseline.get("direction")), "not as it was"
    )
    return f"{report.signal}: {way}, over {amount}; {_evidence(report)}. No label says yet whether that is worse."
