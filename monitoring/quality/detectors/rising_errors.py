"""A sequential detector of a rising error rate, with a known rate of false alarms.

Each label is a badness in [0, 1]: 1 is wrong, 0 is right. The detector bets on five alternatives to the baseline m: p1
= m plus 2, 5, 11, 20 and 45 points. A label multiplies each bet by the factor L = x·p1/m + (1 - x)·(1 - p1)/(1 - m).
The mean of L is at most 1 while the expected badness, given all earlier labels, is at most m. New bets begin at every
label (`shiryaev_roberts.py`). So P(any alarm within N labels) is at most alpha at a threshold of log(N/alpha). The same
test in the other direction finds a recovery: its null hypothesis is that the rate is still at least m.

Labels that depend on each other change the terms of the bets (`dependence.py`): an exponent on the factors, and a
baseline that follows the day.

The baseline must be an upper bound of the healthy rate (`baselines.py`). With an estimate in its place the claim is not
true.

J. Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2022, arXiv 2203.03532. Pure functions over frozen data of fixed size.
"""

from __future__ import annotations

from functools import lru_cache
from math import log
from typing import Literal

import msgspec

from monitoring.quality.detectors import shiryaev_roberts
from monitoring.quality.detectors.dependence import PLAIN, LabelTerms, add_near, find_crowding
from monitoring.quality.detectors.shiryaev_roberts import find_threshold

__all__ = [
    "RateDetector",
    "Side",
    "find_change",
    "find_mean",
    "find_threshold",
    "list_alternatives",
    "log_e",
    "observe",
    "start",
]

Side = Literal["above", "below"]

# An alternative above lies POINTS over the baseline, at most the part WAYS of the way to 1. One below lies WAYS of the
# way to 0. WEIGHTS, the parts of the sum, were chosen for the delays in docs/measurements.md.
POINTS = (0.02, 0.05, 0.11, 0.20, 0.45)
WAYS = (0.1, 0.25, 0.5, 0.75, 0.9)
WEIGHTS = (0.08, 0.27, 0.17, 0.43, 0.05)
BASELINE_MIN = 1e-4
NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0)


class RateDetector(msgspec.Struct, frozen=True, kw_only=True):
    """A detector and its state. A round trip through JSON changes no bit.

    `side` is what an alarm shows: the rate lies above the baseline, or below it. `observed` counts labels, `weight` is
    the sum of their weights, `total` the weighted sum of badness. `logs` are log(S + 1) of each alternative. `rises`
    are each alternative's gains since its lowest point, `begun` the number of labels by then. `weights` and `totals`
    are `weight` and `total` then. `near` is the faded badness of about ten labels.
    """

    baseline: float
    side: Side
    observed: int = 0
    weight: float = 0.0
    total: float = 0.0
    logs: tuple[float, ...] = NOTHING
    rises: tuple[float, ...] = NOTHING
    begun: tuple[int, ...] = (0, 0, 0, 0, 0)
    weights: tuple[float, ...] = NOTHING
    totals: tuple[float, ...] = NOTHING
    near: float = 0.0


def start(baseline: float, side: Side = "above") -> RateDetector:
    """A detector of a rate that rises above the baseline (`above`), or has fallen below it (`below`).

    Raises ValueError if the baseline is not between 0.0001 and 0.9999.
    """
    if not BASELINE_MIN <= baseline <= 1.0 - BASELINE_MIN:
        raise ValueError(f"The baseline is {baseline}: it must lie within {BASELINE_MIN} and {1 - BASELINE_MIN}.")
    return RateDetector(baseline=float(baseline), side=side)


def list_alternatives(baseline: float, side: Side) -> tuple[float, ...]:
    """The alternative error rates, from the nearest to the farthest."""
    if side == "below":
        return tuple([baseline * (1.0 - way) for way in WAYS])
    return tuple([baseline + min(p, (1.0 - baseline) * way) for p, way in zip(POINTS, WAYS, strict=True)])


@lru_cache(maxsize=1024)  # most labels are 0 or 1
def find_gains(
    baseline: float, side: Side, badness: float, weight: float = 1.0, terms: LabelTerms = PLAIN
) -> tuple[float, ...]:
    """The logarithms of one label's factors, one for each alternative.

    A weight under 1 makes the label count less, and may depend only on earlier labels. Raises ValueError if the badness
    is outside [0, 1], or the weight is not above 0 and at most 1.
    """
    if not (0.0 <= badness <= 1.0 and 0.0 < weight <= 1.0):
        raise ValueError(f"A badness of {badness}, weight {weight}: within 0 and 1, and above 0 and at most 1.")
    baseline = min(1.0 - BASELINE_MIN, baseline * terms.times)
    bad, good, exponent = badness / baseline, (1.0 - badness) / (1.0 - baseline), terms.exponent
    rates = list_alternatives(baseline, side)
    return tuple([exponent * log(1.0 + weight * (bad * p + good * (1.0 - p) - 1.0)) for p in rates])


def observe(detector: RateDetector, badness: float, weight: float = 1.0, terms: LabelTerms = PLAIN) -> RateDetector:
    """The detector after a label. Raises ValueError as `find_gains` does."""
    return advance(detector, badness, weight, find_gains(detector.baseline, detector.side, badness, weight, terms))


def advance(
    detector: RateDetector, badness: float, weight: float, gains: tuple[float, ...], crowds: bool = False
) -> RateDetector:
    """The detector after a label with these gains (`find_gains`). With `crowds` they count less after many errors."""
    near = detector.near
    if crowds and detector.side == "above":
        crowding = find_crowding(near, detector.baseline)
        gains = gains if crowding == 1.0 else tuple([crowding * gain for gain in gains])
        near = add_near(near, weight * badness)
    logs = shiryaev_roberts.grow(detector.logs, gains)
    observed, weighed, total = detector.observed + 1, detector.weight + weight, detector.total + weight * badness
    rises, begun, weights, totals = _find_runs(detector, gains, observed, weighed, total)
    return RateDetector(
        baseline=detector.baseline,
        side=detector.side,
        observed=observed,
        weight=weighed,
        total=total,
        logs=logs,
        rises=rises,
        begun=begun,
        weights=weights,
        totals=totals,
        near=near,
    )


def _find_runs(
    detector: RateDetector, gains: tuple[float, ...], observed: int, weighed: float, total: float
) -> tuple[tuple[float, ...], tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
    """As `shiryaev_roberts.find_runs`, with `weight` and `total` at that moment. One loop: it runs for every label."""
    rises, begun, weights, totals = [], [], [], []
    for rise, gain, at, weight, badness in zip(
        detector.rises, gains, detector.begun, detector.weights, detector.totals, strict=True
    ):
        risen = rise + gain
        if risen > 0.0:
            rises.append(risen)
            begun.append(at)
            weights.append(weight)
            totals.append(badness)
        else:
            rises.append(0.0)
            begun.append(observed)
            weights.append(weighed)
            totals.append(total)
    return tuple(rises), tuple(begun), tuple(weights), tuple(totals)


def log_e(detector: RateDetector) -> float:
    """The logarithm of the weighted sum of all bets: -700 before the first label, never infinite.

    Reports call it an e-value, but strictly it is none: while nothing is wrong, its mean is up to the number of labels.
    """
    return shiryaev_roberts.log_of_mean(detector.logs, WEIGHTS)


def find_change(detector: RateDetector) -> int:
    """The number of labels after which the change most likely began, by the leading alternative."""
    return shiryaev_roberts.find_change(detector.logs, detector.begun, WEIGHTS)


def sum_since_change(detector: RateDetector) -> tuple[float, float]:
    """The weighted badness of the labels since the likeliest change, and their total weight."""
    leads = shiryaev_roberts.find_leader(detector.logs, WEIGHTS)
    return max(0.0, detector.total - detector.totals[leads]), detector.weight - detector.weights[leads]


def weigh_labels(detector: RateDetector, bad: float, of: float, times: float = 1.0) -> float:
    """The leading bet's log gain from `of` labels whose badness sums to `bad`, against `times` the baseline."""
    baseline = min(1.0 - BASELINE_MIN, times * detector.baseline)
    rate = list_alternatives(baseline, detector.side)[shiryaev_roberts.find_leader(detector.logs, WEIGHTS)]
    return bad * log(rate / baseline) + (of - bad) * log((1.0 - rate) / (1.0 - baseline))


def find_mean(detector: RateDetector) -> float | None:
    """The weighted mean of the badness so far; None before the first label."""
    return detector.total / detector.weight if detector.weight else None
