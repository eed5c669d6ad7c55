"""The verdict that follows from a version's streams, and why. Pure.

Labelled streams alone make a version degraded; unlabelled ones make it suspect. A degraded version gets healthy by the
reverse test of a labelled stream, a suspect one by labels that show it to be as good as before, or by time in which
nothing more speaks against it: by other evidence than what made it so, so that it does not go back and forth.
"""

from __future__ import annotations

from typing import NamedTuple

from monitoring.degradation.verdicts.health import Judgement, StreamReport, Verdict, VersionHealth
from monitoring.degradation.verdicts.plan import Plan


class Found(NamedTuple):
    """A verdict, why, the streams that it rests on, and the unlabelled ones whose alarm labels have refuted."""

    verdict: Verdict
    because: str
    streams: list[StreamReport]
    cleared: tuple[str, ...]


def verdict(known: VersionHealth, judged: Judgement, plan: Plan, now: float) -> Found:
    """The verdict on a version whose verdict was `known`, at `now` in Unix seconds."""
    alarming = [one for one in judged.streams if one.alarming]
    labelled = [one for one in alarming if one.labelled and not one.recovered]
    cleared = tuple(name for name in known.cleared if any(one.stream == name for one in alarming))
    fresh = [one for one in alarming if not one.labelled and one.stream not in cleared]
    if known.verdict == "degraded":
        return _of_degraded(known, judged, labelled, fresh, cleared)
    if labelled:
        return Found("degraded", f"It got worse: {words(labelled)}.", labelled, cleared)
    if known.verdict == "suspect":
        return _of_suspect(known, judged, fresh, cleared, plan, now)
    if fresh:
        text = f"Its traffic or its answers are not as they were: {words(fresh)}."
        return Found("suspect", text, fresh, cleared)
    return Found("healthy", known.because, [], cleared)


def words(streams: list[StreamReport]) -> str:
    """What the streams say, the strongest first, in a few words each."""
    ordered = sorted(streams, key=lambda one: -one.e_value / one.threshold if one.threshold else 0.0)
    return "; ".join(_word(one) for one in ordered[:3])


def _of_degraded(
    known: VersionHealth,
    judged: Judgement,
    labelled: list[StreamReport],
    fresh: list[StreamReport],
    cleared: tuple[str, ...],
) -> Found:
    """Healthy again where the reverse test shows it on each stream that speaks against the version."""
    recovered = [one for one in judged.streams if one.labelled and one.recovered]
    if recovered and not labelled:
        names = ", ".join(dict.fromkeys(one.stream for one in recovered))
        text = f"It has recovered: labels since then show it ({names})."
        return Found("healthy", text, recovered, _with(cleared, fresh))
    return Found("degraded", known.because, labelled, cleared)


def _of_suspect(
    known: VersionHealth,
    judged: Judgement,
    fresh: list[StreamReport],
    cleared: tuple[str, ...],
    plan: Plan,
    now: float,
) -> Found:
    refuting = _refuting(known, judged, plan)
    if refuting and fresh:
        text = f"{judged.labels - known.labels} labels since then show that it is as good as before."
        return Found("healthy", text, refuting, _with(cleared, fresh))
    if not fresh and now - known.since >= plan.suspect_clears_seconds:
        return Found("healthy", "Nothing has spoken against it since then.", [], cleared)
    return Found("suspect", known.because, fresh, cleared)


def _with(cleared: tuple[str, ...], fresh: list[StreamReport]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*cleared, *(one.stream for one in fresh))))


def _refuting(known: VersionHealth, judged: Judgement, plan: Plan) -> list[StreamReport]:
    """The labelled streams that show a suspect version to be as good as before: enough labels since, and the interval
    of the errors lately is not above what they are held against."""
    if judged.labels - known.labels < 2 * plan.labels_min:
        return []
    return [
        one
        for one in judged.streams
        if one.labelled
        and one.of_class is None
        and one.high is not None
        and isinstance(upper := one.baseline.get("upper"), int | float)
        and one.high <= upper
    ]


def _word(one: StreamReport) -> str:
    of_class = f" of the class {one.of_class}" if one.of_class else ""
    rate = f", {100 * one.estimate:.1f}% bad lately" if one.estimate is not None and one.labelled else ""
    upper = one.baseline.get("upper")
    held = f" against at most {100 * upper:.1f}%" if rate and isinstance(upper, int | float) else ""
    return f"{one.stream}{of_class}{rate}{held} (e-value {one.e_value:.3g}, threshold {one.threshold:.3g})"
