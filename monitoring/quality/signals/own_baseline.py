"""The baseline from a version's own labels: the lowest of those with each caller left out. Pure."""

from __future__ import annotations

from monitoring.quality.detectors import baselines, guards
from monitoring.quality.detectors.baselines import Baseline, BaselineKind
from monitoring.quality.detectors.dependence import Dependence
from monitoring.quality.detectors.leave_one_out import OTHERS_MIN

CONFIDENCE = 0.99
"""The confidence of a bound from own first labels, or the version before's: they are few, and versions are many."""

Parts = tuple[tuple[float, float], ...]
"""The weight and the badness of labels by groups of callers."""


def add_part(parts: Parts, own: int | None, weight: float, bad: float) -> Parts:
    """The parts after a label from this group."""
    if own is None or not weight:
        return parts
    current = parts or ((0.0, 0.0),) * guards.GROUPS
    return tuple(
        [(of + weight, wrong + bad) if place == own else (of, wrong) for place, (of, wrong) in enumerate(current)]
    )


def measure_least(
    kind: BaselineKind, wrong: float, of: float, parts: Parts, state: Dependence, at: float, by: str, source: str
) -> Baseline:
    """The baseline from these labels: the least one, whichever caller is left out.

    So no caller can raise it. The least of several bounds is below the truth more often than each of them. So the bound
    of all labels gets half of the error, and those without a caller share the other half. Labels in clusters count as
    fewer.
    """
    clusters_without = state.without or (None,) * len(parts)  # an earlier release kept none
    without = [
        (min(of - part, max(0.0, wrong - wrong_part)), of - part, clusters_without[place] or state.whole)
        for place, (part, wrong_part) in enumerate(parts)  # weights are not whole numbers: differences are rounded
        if part and of - part >= OTHERS_MIN * of
    ]
    error = (1.0 - CONFIDENCE) / 2
    confidences = [1.0 - error, *[1.0 - error / len(without)] * len(without)] if without else [CONFIDENCE]
    bounds = [
        baselines.measure(kind, bad, count, at, by, source, level, clusters.find_dispersion())
        for (bad, count, clusters), level in zip(((wrong, of, state.whole), *without), confidences, strict=True)
    ]
    return min(bounds, key=lambda baseline: baseline.upper)
