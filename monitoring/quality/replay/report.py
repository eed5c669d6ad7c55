"""The report on a stream of labels: verdicts, their delays after known changes, and the course of the error.

The code is the monitor's (`version.py`). P(any false alarm within `labels` labels) is at most `alpha` while the error
keeps to its baseline, over all classes together.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from monitoring.quality.detectors import baselines
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.replay.label_times import format_time
from monitoring.quality.replay.rows import KnownChange, LabelRows, Progress
from monitoring.quality.replay.version import ALL, Claim, SignalReplay, VerdictChange, VersionReplay
from monitoring.quality.signals.version_watch import FIRST_FEEDBACK, FIRST_OF_CLASS
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

PROGRESS_EVERY = 10_000
PARTS_MAX = 72
"""The most parts of equal time in the course of the error."""
USUAL = Claim(10_000, 0.05, MonitorPlan().labels_min)
CLASSES_IGNORED = "the column class is not used: --classes gives each class a detector of its own too"


@dataclass(frozen=True, slots=True)
class ReplayTerms:
    """The terms of a replay. Without `baseline`, the first `warm_up` labels make one, and the first `class_warm_up` of
    a class. `has_classes`: each class has a detector of its own too. `like` names the signal of a task with the same
    terms (None: no such task)."""

    baseline: Baseline | None = None
    warm_up: int = FIRST_FEEDBACK
    class_warm_up: int = FIRST_OF_CLASS
    has_classes: bool = False
    claim: Claim = USUAL
    like: str | None = None


def replay_labels(rows: LabelRows, terms: ReplayTerms, on_progress: Progress = lambda _: None) -> dict[str, Any]:
    """Put the labels through the monitor. Returns the report as JSON."""
    named = rows.classes()
    classes = named if terms.has_classes else []
    unnamed, has_callers = rows.callers.count(0), any(rows.callers)
    version = VersionReplay(classes, terms.warm_up, terms.class_warm_up, terms.baseline, terms.claim, has_callers)
    changes = list(_find_changes(rows, version, on_progress))
    points = rows.points()
    ends = [*(point.after for point in points[1:]), len(rows)]
    delays = [_describe_point(rows, point, end, changes) for point, end in zip(points, ends, strict=False)]
    signals = {name: _describe_signal(signal) for name, signal in version.signals.items()}
    return {
        "labels": len(rows),
        "wrong": sum(rows.wrong),
        "wrong_share": sum(rows.wrong) / len(rows),
        "from": format_time(rows.times[0]),
        "to": format_time(rows.times[-1]),
        "longest_gap_seconds": max((b - a for a, b in pairwise(rows.times)), default=0.0),
        "columns": rows.columns,
        "one_means": rows.one_means,
        "claim": {**terms.claim._asdict(), "signals": len(version.signals), "like": terms.like},
        "verdict": version.verdict,
        "verdict_changes": [change.describe() for change in changes],
        "signals": signals,
        "notes": [
            *(note for name, signal in signals.items() for note in _list_notes(name, signal, rows.one_means)),
            *rows.notes,
            *([f"rows without a caller, which count as one caller's: {unnamed}"] if unnamed and has_callers else []),
            *([CLASSES_IGNORED] if named and not classes else []),
        ],
        "changes": delays,
        "figures": _count_figures(changes, points, delays),
        "course": list(_cut_course(rows, changes)),
    }


def _find_changes(rows: LabelRows, version: VersionReplay, on_progress: Progress) -> Iterator[VerdictChange]:
    """All changes of the verdict, in order."""
    for label, row in enumerate(rows, 1):
        change = version.observe(label, row)
        if change is not None:
            yield change
        if label % PROGRESS_EVERY == 0:
            on_progress(f"Replayed {label:,} of {len(rows):,} labels: {version.verdict}")


def _cut_course(rows: LabelRows, changes: Sequence[VerdictChange]) -> Iterator[dict[str, Any]]:
    """The parts of equal time: labels, share of wrong ones (None without labels), verdict at the end."""
    first, last = rows.times[0], rows.times[-1]
    parts = min(PARTS_MAX, len(rows))
    done = 0
    for part in range(1, parts + 1):
        end = len(rows) if part == parts else bisect_right(rows.times, first + (last - first) * part / parts)
        wrong = sum(rows.wrong[done:end])
        verdict = next((change.after for change in reversed(changes) if change.label <= end), "healthy")
        share = wrong / (end - done) if end > done else None
        yield {"to_label": end, "labels": end - done, "wrong_share": share, "verdict": verdict}
        done = end


def _describe_point(rows: LabelRows, point: KnownChange, end: int, changes: Sequence[VerdictChange]) -> dict[str, Any]:
    """A known change, with the first verdict that shows it before the next known change."""
    before = next((change.after for change in reversed(changes) if change.label <= point.after), "healthy")
    wanted = "degraded" if point.direction == "worse" else "healthy"
    shown = next((change for change in changes if change.after == wanted and point.after < change.label <= end), None)
    began = rows.times[min(point.after, len(rows) - 1)]
    return {
        "after_labels": point.after,
        "time": format_time(began),
        "direction": point.direction,
        "verdict_before": before,
        "verdict_label": shown.label if shown else None,
        "delay_labels": shown.label - point.after if shown else None,
        "delay_seconds": shown.at - began if shown else None,
    }


def _count_figures(
    changes: Sequence[VerdictChange], points: Sequence[KnownChange], delays: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The figures of the whole replay. A false alarm comes while the version is known to be unchanged, a false recovery
    while it is known to be worse. The delays are those of the first change in either direction."""
    alarms = [change for change in changes if change.after == "degraded"]
    recoveries = [change for change in changes if change.before == "degraded"]
    figures: dict[str, Any] = {"verdict_changes": len(changes), "alarms": len(alarms)}
    figures["false_alarms"] = sum(not _is_worse(points, alarm.label) for alarm in alarms) if points else None
    figures["false_recoveries"] = sum(_is_worse(points, change.label) for change in recoveries) if points else None
    for name, direction in (("delay", "worse"), ("recovery_delay", "better")):
        first = next((delay for delay in delays if delay["direction"] == direction), None)
        figures[f"{name}_labels"] = first["delay_labels"] if first else None
        figures[f"{name}_seconds"] = first["delay_seconds"] if first else None
    return figures


def _is_worse(points: Sequence[KnownChange], label: int) -> bool:
    """Return whether the version is known to be worse at this label."""
    last = next((point for point in reversed(points) if point.after < label), None)
    return last is not None and last.direction == "worse"


def _describe_signal(signal: SignalReplay) -> dict[str, Any]:
    """A signal with its baseline, which is None if there were too few labels."""
    track = signal.track
    held = track.baseline
    described = None if held is None else {"kind": held.kind, "wrong": held.wrong, "of": held.of, "upper": held.upper}
    return {
        "labels": track.labels,
        "wrong_share": track.wrong / track.labels if track.labels else None,
        "baseline": described,
        "wanted": track.wanted,
        "can_alarm": None if held is None else held.upper < baselines.RATE_MAX,
        "rests_on_one": signal.rests_on_one(),
        "dispersion": track.dispersion,
        "has_rhythm": track.dependence.has_rhythm,
    }


def _list_notes(name: str, signal: Mapping[str, Any], one_means: str) -> Iterator[str]:
    """Notes on a signal's verdict that are easily missed."""
    if name == ALL and signal["baseline"] is None:
        yield f"nothing was judged: the first {signal['wanted']} labels are the baseline (--warm-up, --baseline)"
    if signal["rests_on_one"]:
        yield (
            f"{name} would alarm, but rests on one caller or rater, who moves no verdict alone: see whose labels they "
            "are, and whether they are right."
        )
    elif signal["can_alarm"] is False:
        upper, share = signal["baseline"]["upper"], signal["wrong_share"]
        doubt = (
            "is 1 the outcome that is right (--good 1)?" if one_means == "wrong" else "is 1 the outcome that is right?"
        )
        yield (
            f"{name} can never alarm: it is compared with {upper:.4f}, and no more than that can be wrong. {share:.0%} "
            f"of its labels are wrong: {doubt} Else say what is healthy: --baseline, --gate-rows."
        )
