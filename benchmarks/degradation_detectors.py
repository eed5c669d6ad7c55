"""The detectors of `benchmarks.degradation`, over many runs at once. Each gives the label at which it alarms first.

`degradation` and `guarded` are `monitoring.quality.detectors.rising_errors` and `.raters` in numpy: a test holds them
to those, to 1e-9."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.degradation_worlds import GIVERS, Bools, Floats, Givers
from monitoring.quality.detectors import dependence, guards, rising_errors

WEIGHTS = np.array(rising_errors.WEIGHTS)
WINDOW = 200
WINDOW_POINTS = 0.05
CLEAR_EVERY = 32
NEVER = np.inf
SUM_MAX = 1e200


@dataclass(frozen=True, slots=True)
class Design:
    """Other alternatives than the monitor's, and their weights: points above the baseline."""

    points: tuple[float, ...]
    weights: tuple[float, ...]


def factors(baselines: Floats, design: Design | None = None) -> tuple[Floats, Floats]:
    """What a bad label and a good one multiply the sums by: alternatives by runs."""
    if design is None:
        rates = np.array([rising_errors.list_alternatives(float(one), "above") for one in baselines]).T
    else:
        rates = baselines + np.array(design.points)[:, None]
    return rates / baselines, (1.0 - rates) / (1.0 - baselines)


def evidence(bad: Bools, baselines: Floats) -> Iterator[Floats]:
    """The e-value of each run after each label: for tests, since it goes on after an alarm."""
    on_bad, on_good = factors(baselines)
    sums = np.zeros_like(on_bad)
    for column in np.ascontiguousarray(bad.T):
        sums = (sums + 1.0) * np.where(column, on_bad, on_good)
        yield WEIGHTS @ sums


def first_alarms(bad: Bools, baselines: Floats, bars: Floats, design: Design | None = None) -> Floats:
    """For each run the label (from 1) at which the e-value reaches its bar, infinite where it never does."""
    found = np.full(len(bad), NEVER)
    at_work = np.arange(len(bad))
    on_bad, on_good = factors(baselines, design)
    weights = WEIGHTS if design is None else np.array(design.weights)
    sums = np.zeros_like(on_bad)
    columns, left = np.ascontiguousarray(bad.T), bars
    for n in range(len(columns)):
        sums += 1.0
        sums *= np.where(columns[n], on_bad, on_good)
        hit = weights @ sums >= left
        if hit.any():
            found[at_work[hit]] = np.minimum(found[at_work[hit]], n + 1)
        if n % CLEAR_EVERY == 0:
            np.minimum(sums, SUM_MAX, out=sums)
            keep = np.isinf(found[at_work])
            if keep.sum() < 0.9 * len(at_work):
                at_work, left, columns = at_work[keep], left[keep], np.ascontiguousarray(columns[:, keep])
                sums, on_bad, on_good = sums[:, keep], on_bad[:, keep], on_good[:, keep]
                if not len(at_work):
                    break
    return found


class Guard:
    """`guards.Guarded` of up to eight callers who all are known, for many runs at once."""

    def __init__(self, baselines: Floats) -> None:
        runs = len(baselines)
        self._on_bad, self._on_good = factors(baselines)
        self._sums = np.zeros((GIVERS + 1, *self._on_bad.shape))  # the last leaves nobody out
        self._labels = 0.0
        self._heavy = np.zeros((GIVERS, runs))
        self._runs = np.arange(runs)
        self._room = dependence.NEAR * (baselines + dependence.CROWDED_POINTS)
        self._near = np.zeros((GIVERS + 1, runs))

    def evidence(self, bad: npt.NDArray[np.bool_], givers: Givers) -> Floats:
        """The evidence of each run after one more label."""
        weight = self._weight(givers)
        factor = 1.0 + weight * (np.where(bad, self._on_bad, self._on_good) - 1.0)
        crowding = np.minimum(1.0, self._room / np.maximum(self._near, 1e-12))
        without, near = self._sums[givers, :, self._runs], self._near[givers, self._runs]
        self._sums += 1.0
        self._sums *= factor ** crowding[:, None, :]
        self._sums[givers, :, self._runs] = without
        self._near = (1.0 - 1.0 / dependence.NEAR) * self._near + weight * bad
        self._near[givers, self._runs] = near
        least: Floats = (WEIGHTS @ self._sums).min(axis=0)
        return least

    def keep(self, these: npt.NDArray[np.bool_]) -> None:
        """Go on with these runs only, and bound what has alarmed long since."""
        self._on_bad, self._on_good = self._on_bad[:, these], self._on_good[:, these]
        self._sums = np.minimum(self._sums[:, :, these], SUM_MAX)
        self._heavy = self._heavy[:, these]
        self._room, self._near = self._room[these], self._near[:, these]
        self._runs = np.arange(int(these.sum()))

    def _weight(self, givers: Givers) -> Floats:
        self._labels = guards.FADING * self._labels + 1.0
        self._heavy *= guards.FADING
        have = self._heavy[givers, self._runs]
        count = (self._heavy >= guards.PRESENT_MIN).sum(axis=0) + (have < guards.PRESENT_MIN)
        room = np.maximum(guards.RATER_SHARE_MAX, 1.0 / count) * self._labels - have
        weight = np.where(count < guards.RATERS_MIN, 1.0, np.clip(room, guards.WEIGHT_MIN, 1.0))
        self._heavy[givers, self._runs] += weight
        return np.asarray(weight, dtype=np.float64)


def first_alarms_guarded(bad: Bools, givers: Givers, baselines: Floats, bars: Floats) -> Floats:
    """`first_alarms` of the evidence that stays whichever caller is left out."""
    found = np.full(len(bad), NEVER)
    at_work = np.arange(len(bad))
    guard, left = Guard(baselines), bars
    columns, who = np.ascontiguousarray(bad.T), np.ascontiguousarray(givers.T)
    for n in range(len(columns)):
        hit = guard.evidence(columns[n], who[n]) >= left
        found[at_work[hit]] = np.minimum(found[at_work[hit]], n + 1)
        if n % CLEAR_EVERY == 0:
            keep = np.isinf(found[at_work])
            if keep.sum() >= 0.9 * len(at_work):
                keep[:] = True
            else:
                at_work, left = at_work[keep], left[keep]
                columns, who = np.ascontiguousarray(columns[:, keep]), np.ascontiguousarray(who[:, keep])
            guard.keep(keep)
            if not len(at_work):
                break
    return found


def first_of_last_200(bad: Bools, baseline: float) -> Floats:
    """The usual rule: the label at which the last 200 are wrong 5 points more often than the baseline."""
    runs, count = bad.shape
    if count < WINDOW:
        return np.full(runs, NEVER)
    so_far = np.concatenate([np.zeros((runs, 1), dtype=np.int32), np.cumsum(bad, axis=1, dtype=np.int32)], axis=1)
    over = so_far[:, WINDOW:] - so_far[:, :-WINDOW] >= WINDOW * (baseline + WINDOW_POINTS) - 1e-9
    return np.where(over.any(axis=1), over.argmax(axis=1) + WINDOW, NEVER)
