"""A detector of changed behaviour, from signals that need no labels: length, refusals, cost and others.

The first 500 values of a signal are its reference. A rate (did it happen or not) gives its exact two-sided 90%
interval. Other values give their 5% and 95% quantiles, and a bound on the share of values outside these. From then on
two detectors (`rising_errors.py`) test these bounds: the rate has risen, or has fallen; too many values lie above the
range, or below it. Their mean is the evidence, with the claim of a single one. The claim does not depend on the order
of the values, but on their reference: it must be like later values while nothing is wrong. So two cases are misjudged:
a daily rhythm that 500 values do not span, and a version that degrades from its first request.

The signal claims that something has changed, never that it is wrong: it makes a version suspect, and no more.

Pure functions over frozen data. While it learns, a signal of values keeps up to 500 of them, to five digits each;
afterwards its size is fixed.
"""

from __future__ import annotations

import math
from bisect import insort
from typing import Literal

import msgspec
from msgspec.structs import replace

from monitoring import intervals
from monitoring.quality.detectors import rising_errors, shiryaev_roberts
from monitoring.quality.detectors.rising_errors import BASELINE_MIN, RateDetector
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR

ValueKind = Literal["rate", "value"]
Sides = Literal["both", "above", "below"]

REFERENCE = 500
OUTSIDE = 0.05
ROUNDING = 1e-6
"""More than rounding errors of floats may add to a mean."""


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """A signal and its state. A round trip through JSON changes no bit.

    `sides` says which changes count: a rise, a fall, or both. `observed` counts values, `happened` is the sum of a
    rate's reference. `sorted_values` is a reference of values while it is learned, `low` and `high` are its quantiles
    afterwards. `above` and `below` are the detectors. One is None if its side is not tested or can't change: a rate of
    0 can't fall. `log_max` is the largest log e-value so far. The owner sets the others. `taken_at` is the time of the
    reference's last value. `busiest` and `signals` are the most requests a day, and the most signals of all versions,
    since the detectors began (`alarm_shares.py`).
    """

    kind: ValueKind
    sides: Sides
    observed: int = 0
    happened: float = 0.0
    sorted_values: tuple[float, ...] = ()
    low: float | None = None
    high: float | None = None
    above: RateDetector | None = None
    below: RateDetector | None = None
    log_max: float = LOG_FLOOR
    taken_at: float = 0.0
    busiest: float = 0.0
    signals: int = msgspec.field(default=0, name="streams")


def start(kind: ValueKind, sides: Sides = "both") -> Signal:
    """A signal that first learns its reference."""
    return Signal(kind=kind, sides=sides)


def learns(signal: Signal) -> bool:
    """Return whether its reference is still incomplete, so that it can't alarm."""
    return signal.observed < REFERENCE


def observe(signal: Signal, value: float | bool) -> Signal:
    """The signal after a value. Raises ValueError if it is not finite, or outside [0, 1] for a rate."""
    value = float(value)
    if not math.isfinite(value) or (signal.kind == "rate" and not 0.0 <= value <= 1.0):
        raise ValueError(f"A value of {value}: it must be finite, and that of a rate within 0 and 1.")
    if learns(signal):
        return _learned(signal, value)
    above, below = signal.above, signal.below
    if signal.kind == "rate":
        above, below = above and rising_errors.observe(above, value), below and rising_errors.observe(below, value)
    else:
        assert signal.low is not None
        assert signal.high is not None
        value = shorten(value)
        above = above and rising_errors.observe(above, float(value > signal.high))
        below = below and rising_errors.observe(below, float(value < signal.low))
    moved = replace(signal, observed=signal.observed + 1, above=above, below=below)
    highest = max([max(detector.logs) for detector in (above, below) if detector is not None], default=LOG_FLOOR)
    if highest + ROUNDING <= signal.log_max:  # a mean of sums is under the largest one
        return moved
    return replace(moved, log_max=max(signal.log_max, log_e(moved)))


def shorten(value: float) -> float:
    """A value rounded to five digits, as it is kept and compared."""
    return float(f"{value:.5g}")


def log_e(signal: Signal) -> float:
    """The logarithm of the mean of both sides' sums (reported as an e-value: `rising_errors`): -700 while it learns."""
    there = [rising_errors.log_e(detector) for detector in (signal.above, signal.below) if detector is not None]
    if not there:
        return LOG_FLOOR
    largest = max(there)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in there) / len(there))


def has_alarmed(signal: Signal, labels: float, alpha: float) -> bool:
    """Return whether it has ever reached the threshold for `labels` values. It finds a change, not a fault."""
    return signal.log_max >= shiryaev_roberts.find_threshold(labels, alpha)


def find_change(signal: Signal) -> int | None:
    """The number of values, the reference's included, after which the change most likely began; None while it
    learns."""
    there = [detector for detector in (signal.above, signal.below) if detector is not None]
    return REFERENCE + rising_errors.find_change(max(there, key=rising_errors.log_e)) if there else None


def find_direction(signal: Signal) -> Literal["above", "below"] | None:
    """The side with more evidence; None while it learns."""
    if signal.above is None or signal.below is None:
        return "above" if signal.above is not None else "below" if signal.below is not None else None
    return "above" if rising_errors.log_e(signal.above) >= rising_errors.log_e(signal.below) else "below"


def describe_reference(signal: Signal) -> dict[str, float | int | str | None]:
    """The reference, for people: the number of its values, its quantiles or its rate, and the tested bounds.

    `seen_above` and `seen_below` are the shares seen since then (of a rate: the rate).
    """
    above, below = signal.above, signal.below
    return {
        "kind": signal.kind,
        "values": min(signal.observed, REFERENCE),
        "low": signal.low,
        "high": signal.high,
        "rate": signal.happened / REFERENCE if signal.kind == "rate" and not learns(signal) else None,
        "above_at_most": above.baseline if above is not None else None,
        "below_at_most" if signal.kind == "value" else "at_least": below.baseline if below is not None else None,
        "seen_above": rising_errors.find_mean(above) if above is not None else None,
        "seen_below": rising_errors.find_mean(below) if below is not None else None,
    }


def _learned(signal: Signal, value: float) -> Signal:
    """The signal after a value of its reference; with the last one, its detectors."""
    ordered = signal.sorted_values
    if signal.kind == "value":
        values = [*ordered]
        insort(values, shorten(value))
        ordered = tuple(values)
    signal = replace(
        signal,
        observed=signal.observed + 1,
        happened=signal.happened + (value if signal.kind == "rate" else 0.0),
        sorted_values=ordered,
    )
    if learns(signal):
        return signal
    return _of_rate(signal) if signal.kind == "rate" else _of_values(signal)


def _of_rate(signal: Signal) -> Signal:
    upper = intervals.find_upper_bound(signal.happened, REFERENCE)
    lower = intervals.find_lower_bound(signal.happened, REFERENCE)
    return replace(
        signal,
        above=rising_errors.start(upper) if signal.sides != "below" and upper <= 1.0 - BASELINE_MIN else None,
        below=rising_errors.start(lower, "below") if signal.sides != "above" and lower >= BASELINE_MIN else None,
    )


def _of_values(signal: Signal) -> Signal:
    """Start the detectors. A fixed number of reference values lies outside the quantiles, which bounds later values."""
    outside = round(OUTSIDE * REFERENCE)
    bound = intervals.find_upper_bound(outside, REFERENCE)
    return replace(
        signal,
        sorted_values=(),
        low=signal.sorted_values[outside],
        high=signal.sorted_values[-1 - outside],
        above=rising_errors.start(bound) if signal.sides != "below" else None,
        below=rising_errors.start(bound) if signal.sides != "above" else None,
    )
