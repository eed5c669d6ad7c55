"""Delays in labels, and their medians with exact intervals: what the parts of `benchmarks.degradation` share."""

from __future__ import annotations

import numpy as np
from scipy.stats import binom

from benchmarks.degradation_worlds import Bools, Floats

CONFIDENCE = 0.99


def delays(alarms: Floats, changed: Bools) -> Floats:
    """How many labels of requests since the change had come at each alarm; infinite where there was none.

    Runs that alarmed before the first such label are left out: their alarm was a false one.
    """
    come = np.cumsum(changed, axis=1, dtype=np.int32)
    ended = np.isfinite(alarms)
    at = np.where(ended, alarms, 1).astype(int) - 1
    of_change = come[np.arange(len(alarms)), at].astype(float)
    found = np.where(ended, of_change, np.inf)
    kept: Floats = found[~(ended & (of_change == 0))]
    return kept


def median_of(values: Floats) -> dict[str, float | None]:
    """A median with its exact 99% interval, by order statistics. None where it lies beyond what was simulated."""
    if not len(values):
        return {"median": None, "low": None, "high": None}
    ordered = np.sort(values)
    below = int(binom.ppf((1 - CONFIDENCE) / 2, len(ordered), 0.5))
    found = (ordered[(len(ordered) - 1) // 2], ordered[max(0, below - 1)], ordered[len(ordered) - max(1, below)])
    median, low, high = (None if np.isinf(one) else float(one) for one in found)
    return {"median": median, "low": low, "high": high}
