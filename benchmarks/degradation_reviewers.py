"""The monitor's signals of labels whose reviewers are known, over many runs at once: `degradation_signals.py` with
`monitoring/quality/detectors/reviewers_mix.py`. A test holds it to the monitor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.degradation_signals import DOUBTED, WEIGHTS, Held, Signals
from benchmarks.degradation_worlds import Bools, Floats
from monitoring.quality.detectors import reviewers_mix, rising_errors

Numbers = npt.NDArray[np.intp]


class ReviewedSignals(Signals):
    """Signals of labels by reviewers, who are numbered: runs by labels."""

    def __init__(self, held: Held, runs: int, reviewers: Numbers) -> None:
        super().__init__(held, runs)
        self._reviewers, self._rows = np.ascontiguousarray(reviewers.T), np.arange(runs)
        shape = (runs, int(reviewers.max()) + 1)
        self._now, self._noted, self._before = np.zeros((3, 2, *shape))  # labels, and how many were wrong
        self._noted_at = np.zeros(runs)
        self._part_left = np.ones(runs)

    def take(self, bad: Bools, at: Floats) -> None:
        """Take a label of each run, at these times."""
        reviewer, most = self._reviewers[self._labels], self.most.copy()
        judged = ~np.isnan(self.held)
        super().take(bad, at)
        self._now[0, self._rows, reviewer] += 1
        self._now[1, self._rows, reviewer] += bad
        change = np.where(judged, self._started + self._begun_after[self._leads, self._rows], self._labels)
        if not self._labels % reviewers_mix.MARKED_EACH:
            moves = change >= self._noted_at
            self._before[:, moves] = self._noted[:, moves]
            self._noted[:, moves] = self._now[:, moves]
            self._noted_at[moves] = self._labels
        largest = ~np.isnan(self.held) & (WEIGHTS @ self.sums >= np.maximum(most, DOUBTED))
        if largest.any():
            self._part_left[largest] = self._find_part_left(np.flatnonzero(largest))

    def find_doubtful(self, these: Bools, bar: float) -> Bools:
        """Which of these, whose evidence reaches the threshold, are doubted."""
        left = np.log(np.maximum(self.most, 1e-300)) * self._part_left
        return np.asarray(super().find_doubtful(these, bar) | (these & (left < np.log(bar))))

    def _find_part_left(self, places: Numbers) -> Floats:
        """The part of the evidence of these runs that stricter reviewers do not explain."""
        leads, held = self._leads[places], self.held[places]
        of = self._observed[places] - self._begun[leads, places]
        bad = self._observed_wrong[places] - self._begun_wrong[leads, places]

        def weigh(baseline: Floats) -> Floats:
            baseline = np.minimum(1.0 - rising_errors.BASELINE_MIN, baseline)
            ways = (1.0 - baseline) * np.array(rising_errors.WAYS)[leads]
            rates = baseline + np.minimum(np.array(rising_errors.POINTS)[leads], ways)
            return np.asarray(bad * np.log(rates / baseline) + (of - bad) * np.log((1.0 - rates) / (1.0 - baseline)))

        times, whole = self._find_times(places), weigh(held)
        left = np.clip(weigh(held * times) / np.where(whole > 0.0, whole, 1.0), 0.0, 1.0)
        return np.where((times > 1.0) & (whole > 0.0), left, 1.0)

    def _find_times(self, places: Numbers) -> Floats:
        """The errors that present reviewers would see where earlier ones saw one."""
        (labels, wrong), now = self._before[:, places], self._now[0, places]
        total, since = labels.sum(1), (now - labels).sum(1)
        smoothed, few = reviewers_mix.SMOOTHED_LABELS, np.maximum(1.0, total)
        mean = (wrong.sum(1) / few)[:, None]
        shares = (wrong + smoothed * mean) / (labels + smoothed)
        due_before = (labels * shares).sum(1) / few
        due_since = ((now - labels) * shares).sum(1) / np.maximum(1.0, since)
        times = np.where(due_before > 0.0, due_since / np.where(due_before > 0.0, due_before, 1.0), 1.0)
        return np.where(since > 0.0, np.clip(times, 1.0, reviewers_mix.TIMES_MAX), 1.0)

    @property
    def _leads(self) -> Numbers:
        """The alternative that leads in each run."""
        return np.asarray((np.log1p(self.sums) + np.log(WEIGHTS)[:, None]).argmax(axis=0))
