"""A label as evidence: a guarded detector weighs it, and compares it with the rate that its session predicts. Pure."""

from __future__ import annotations

from monitoring.quality.detectors import guards, sessions
from monitoring.quality.detectors.dependence import LabelTerms
from monitoring.quality.detectors.guards import Guarded
from monitoring.quality.detectors.leave_one_out import GiverRoll
from monitoring.quality.detectors.sessions import Likeness
from monitoring.quality.signals.entries import Label

LEAST_TIMES = 0.7
"""The least multiple of the baseline to compare a label with, however good its session was: r may be less."""


def observe_label(
    guard: Guarded, label: Label, at: float, roll: GiverRoll, terms: LabelTerms, seen: Likeness
) -> Guarded:
    """The detector after a label. `seen` is the likeness of labels within sessions."""
    detector, times = guard.detectors.whole, 1.0
    if label.session is not None and label.session.labels:
        times = sessions.find_times(sessions.find_correlation(seen), label.session, detector.baseline)
    times = max(LEAST_TIMES, times) if detector.side == "above" else min(1.0, times)
    return guards.observe(
        guards.set_callers(guard, roll),
        label.badness,
        label.caller,
        label.trusted,
        label.weight,
        rater=label.rater,
        reported=label.reported,
        at=at,
        terms=terms._replace(times=terms.times * times),
    )


def may_teach(label: Label, roll: GiverRoll) -> bool:
    """Return whether a label may become part of a baseline. A label of a report may if reports count (`GiverRoll`)."""
    return label.trusted or label.reported == roll.reported
