"""The verdict that follows from a version's streams, and why. Pure.

Labelled streams alone make a version degraded; unlabelled ones make it suspect. So do labels that would make it
degraded and rest on one caller or rater, who gave most of them: somebody has to look.

A degraded version gets healthy by the reverse tests of the labelled streams that have alarmed, a suspect one by labels
that show it to be as good as before, or by time in which nothing more speaks against it: by other evidence than what
made it so, so that it does not go back and forth. That a stream alarms no more shows nothing: its threshold rises with
labels and streams, of which the monitor itself makes more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from monitoring.quality.phases import Judged, Verdict, next_phase
from monitoring.quality.verdicts.health import OTHER_CLASS, Judgement, StreamReport, VersionHealth
from monitoring.quality.verdicts.plan import Plan


class Found(NamedTuple):
    """A verdict, why, the streams that it rests on, and the names of those whose suspicion labels have refuted."""

    verdict: Verdict
    because: str
    streams: list[StreamReport]
    cleared: tuple[str, ...]


class ReverseTest(NamedTuple):
    """A reverse test of a labelled stream: whose, whether it has found a recovery, whether there is one at all (the
    stream is held against something), and whether that is from before the version was degraded."""

    name: str
    alarming: bool
    recovered: bool
    is_there: bool
    from_before: bool


def verdict(known: VersionHealth, judged: Judgement, plan: Plan, now: float) -> Found:
    """The verdict on a version whose verdict was `known`, at `now` in Unix seconds."""
    labelled = against(judged)
    speaking = [one for one in judged.streams if one.rests_on_most or (one.alarming and not one.labelled)]
    cleared = tuple(name for name in known.cleared if any(name_of(one) == name for one in speaking))
    fresh = [one for one in speaking if name_of(one) not in cleared]
    if known.verdict == "degraded":
        return _of_degraded(known, judged, labelled, fresh, cleared)
    if labelled:
        return Found("degraded", worse(labelled), labelled, cleared)
    if known.verdict == "suspect":
        return _of_suspect(known, judged, fresh, cleared, plan, now)
    if fresh:
        return Found("suspect", _suspicion(fresh), fresh, cleared)
    return Found("healthy", known.because, [], cleared)


def against(judged: Judgement) -> list[StreamReport]:
    """The labelled streams that make a version degraded: they alarm, and have not recovered since."""
    return [one for one in judged.streams if one.labelled and one.alarming and not one.recovered]


def health_after(known: VersionHealth, found: Found, judged: Judgement, now: float) -> VersionHealth:
    """The version once this was found: its verdict, since when and why, and what the next one has to know."""
    after = next_phase(known.phase, Judged(found.verdict)).verdict
    turned = after != known.verdict
    observed = None
    if after == "suspect":
        observed = known.observed
        if turned or observed is None:
            observed = {name_of(one): one.observed for one in judged.streams if one.labelled}
    return msgspec.structs.replace(
        known,
        verdict=after,
        since=now if turned else known.since,
        because=found.because if turned else known.because,
        cleared=found.cleared,
        alarmed=alarmed(known, judged) if after == "degraded" else (),
        observed=observed,
        undone=() if after == "healthy" else known.undone,
        quiet_since=_quiet_since(known, found.streams, now) if after == "suspect" else None,
    )


def alarmed(known: VersionHealth, judged: Judgement) -> tuple[str, ...]:
    """The labelled streams that made a version degraded, or have alarmed since."""
    now = [test.name for test in _tests(judged, known.since) if test.alarming]
    return tuple(dict.fromkeys((*known.alarmed, *now)))


def unrecovered(known: VersionHealth, judged: Judgement) -> list[str]:
    """The streams that have alarmed, are still held against something, and have not recovered."""
    return [
        test.name
        for test in _tests(judged, known.since)
        if test.name in known.alarmed and test.is_there and not test.recovered
    ]


def shows_recovery(known: VersionHealth, judged: Judgement) -> bool:
    """Whether any stream could show that a degraded version has recovered: it is held against something from before."""
    return any(test.from_before for test in _tests(judged, known.since))


def name_of(one: StreamReport) -> str:
    """A stream with its class, if it is of one."""
    return one.stream if one.of_class is None else f"{one.stream}:{one.of_class}"


def words(streams: list[StreamReport]) -> str:
    """What the streams say, the strongest first, in a few words each."""
    ordered = sorted(streams, key=lambda one: -one.e_value / one.threshold if one.threshold else 0.0)
    return "; ".join(_word(one) for one in ordered[:3])


def worse(streams: list[StreamReport]) -> str:
    """Why a version is degraded, by the labelled streams that say so."""
    return f"It got worse: {words(streams)}."


def _suspicion(streams: list[StreamReport]) -> str:
    """Why a version is suspect, by these streams."""
    of_one, changed = ([one for one in streams if one.rests_on_most is alone] for alone in (True, False))
    told = [f"Its traffic or its answers are not as they were: {words(changed)}."] if changed else []
    told += [f"It got worse by the labels of one caller or rater alone: {words(of_one)}."] if of_one else []
    return " ".join(told)


def _of_degraded(
    known: VersionHealth,
    judged: Judgement,
    labelled: list[StreamReport],
    fresh: list[StreamReport],
    cleared: tuple[str, ...],
) -> Found:
    """Healthy again where the reverse test of each stream that has alarmed shows it, of those that are still tested; at
    least one test shows it, and nothing else alarms."""
    shown = any(test.from_before and test.recovered for test in _tests(judged, known.since))
    if labelled or not shown or unrecovered(known, judged):
        return Found("degraded", known.because, labelled, cleared)
    recovered = [one for one in judged.streams if one.labelled and one.recovered]
    names = ", ".join(dict.fromkeys(one.stream for one in recovered))
    text = f"It has recovered: labels since then show it ({names})."
    return Found("healthy", text, recovered, _with(cleared, fresh))


def _tests(judged: Judgement, since: float) -> Iterator[ReverseTest]:
    """The reverse tests of a version that is degraded `since` then."""
    for one in judged.streams:
        if one.labelled:
            is_there = _upper(one.baseline) is not None or one.baseline.get("learning") is False
            is_before = is_there and _is_before(one.baseline, since)
            yield ReverseTest(name_of(one), one.alarming, one.recovered, is_there, is_before)


def _is_before(baseline: Mapping[str, Any], since: float) -> bool:
    """Whether a baseline does not come from what the version itself did since then."""
    at = baseline.get("at", baseline.get("to"))
    return baseline.get("kind") != "own" or not isinstance(at, int | float) or at <= since


def _of_suspect(
    known: VersionHealth,
    judged: Judgement,
    fresh: list[StreamReport],
    cleared: tuple[str, ...],
    plan: Plan,
    now: float,
) -> Found:
    refuting = _refuting(known, judged, plan)
    if refuting:
        count = max(_since(known, one) for one in refuting)
        names = ", ".join(one.stream for one in refuting)
        text = f"{count:.0f} labels since then show that it is as good as before ({names})."
        return Found("healthy", text, refuting, _with(cleared, fresh))
    quiet_since = _quiet_since(known, fresh, now)
    if quiet_since is not None and now - quiet_since >= plan.suspect_clears_seconds:
        return Found("healthy", "Nothing has spoken against it since then.", [], cleared)
    return Found("suspect", known.because, fresh, cleared)


def _quiet_since(known: VersionHealth, fresh: list[StreamReport], now: float) -> float | None:
    """Since when nothing alarms of a suspect version; None while something does."""
    if fresh:
        return None
    return now if known.quiet_since is None else known.quiet_since


def _with(cleared: tuple[str, ...], fresh: list[StreamReport]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*cleared, *map(name_of, fresh))))


def _refuting(known: VersionHealth, judged: Judgement, plan: Plan) -> list[StreamReport]:
    """The labelled streams that show a suspect version to be as good as before: each has enough labels since, and the
    interval of its errors lately is not above what it is held against, whichever caller is left out; where that is not
    known it refutes nothing. None does while another one lies wholly above that, but for one that rests on who gave
    most of its labels."""
    held = [(one, upper) for one in judged.streams if one.labelled and (upper := _upper(one.baseline)) is not None]
    above = [one for one, upper in held if one.low is not None and one.low > upper and not one.rests_on_most]
    if any(one.observed >= plan.labels_min for one in above):
        return []
    return [
        one
        for one, upper in held
        if one.of_class is None
        and one.high is not None
        and one.high <= upper
        and one.high_without_one is not None
        and one.high_without_one <= upper
        and _since(known, one) >= 2 * plan.labels_min
    ]


def _since(known: VersionHealth, one: StreamReport) -> float:
    """How many labels this stream has had since its version became suspect; none where that is not known."""
    return 0.0 if known.observed is None else one.observed - known.observed.get(name_of(one), 0.0)


def _upper(baseline: Mapping[str, Any]) -> float | None:
    """The rate, or the difference, that a stream is held against; None where there is none yet."""
    upper = baseline.get("upper")
    return upper if isinstance(upper, int | float) else None


def _word(one: StreamReport) -> str:
    of_class = f" of the class {one.of_class}" if one.of_class else ""
    of_class = " of all other classes" if one.of_class == OTHER_CLASS else of_class
    rate = held = ""
    if one.estimate is not None and one.labelled:
        unit, bad = (" points", "worse") if one.baseline.get("difference") else ("%", "bad")
        rate = f", {100 * one.estimate:.1f}{unit} {bad} lately"
        upper = _upper(one.baseline)
        held = f" against at most {100 * upper:.1f}{unit}" if upper is not None else ""
    return f"{one.stream}{of_class}{rate}{held} (e-value {one.e_value:.3g}, threshold {one.threshold:.3g})"
