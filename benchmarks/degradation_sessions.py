"""The monitor's signals of labels that name their session, over many runs at once: `degradation_signals.py` with the
weights of repeats, and with `monitoring/quality/detectors/sessions.py`. A test holds it to the monitor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.degradation_signals import Clusters, Held, Signals
from benchmarks.degradation_worlds import Bools, Floats
from monitoring.quality.detectors import dependence, recent_values, rising_errors, sessions
from monitoring.quality.signals import label_evidence, repeats
from monitoring.quality.signals.version_watch import FIRST_FEEDBACK

Numbers = npt.NDArray[np.intp]


class WholeClusters(Clusters):
    """`Clusters` that pass over repeats."""

    def __init__(self, runs: int) -> None:
        super().__init__(runs)
        self.taken, self._counts = np.zeros(runs), np.zeros(runs)

    @property
    def variance(self) -> Floats:
        """The variance of a label."""
        of = self.taken + dependence.SMOOTHED_LABELS
        mean = (self._total + dependence.SMOOTHED_WRONG) / of
        return np.maximum(1e-6, (self._squares + dependence.SMOOTHED_WRONG) / of - mean * mean)

    def take_whole(self, bad: Bools, whole: Bools) -> None:
        """Take a label of those runs where it is no repeat."""
        self.taken += whole
        over = np.where(whole, bad - self._mean, 0.0)
        first = whole & (self.taken > dependence.FIRST)
        self._open += np.where(first, over * self._near, 0.0)
        self._near = np.where(first, dependence.KEEPS * (self._near + over), self._near)
        self._mean += over / np.clip(self.taken, 1.0, dependence.MEAN_OF)
        self._total += bad & whole
        self._squares += bad & whole
        lot = whole & (self.taken % dependence.LOT == 0)
        if not lot.any():
            return
        most, now = dependence.LOT_MAX * dependence.LOT, self._open / self.variance
        full = lot & (now >= most)
        self._mean[full] += self._near[full] * (1.0 - dependence.KEEPS) / dependence.KEEPS
        self._near[full] = 0.0
        self._products += np.where(lot, np.minimum(most, now), 0.0)
        self._open[lot] = 0.0
        self._counts += dependence.LOT * lot
        seen = self._products / (self._prior + self._counts)
        self.dispersion = np.maximum(dependence.PRIOR, 1.0 + 2.0 * dependence.FARTHER * seen)


class SessionSignals(Signals):
    """Signals of labels whose sessions, as `renumber` numbers them, are known: runs by labels."""

    def __init__(self, held: Held, runs: int, of_session: Numbers) -> None:
        super().__init__(held, runs)
        self._sessions, self._rows = np.ascontiguousarray(of_session.T), np.arange(runs)
        shape = (runs, int(of_session.max()) + 1)
        self._last = np.full(shape, -repeats.LATEST - 1)
        self._pasts, self._past_wrong = np.zeros(shape), np.zeros(shape)
        self._whole_clusters = self._clusters = WholeClusters(runs)
        self._whole_wrong, self._whole = np.zeros(runs), np.ones(runs, dtype=np.bool_)
        self._times, self._due = np.ones(runs), np.ones(runs)
        self._taught, self._taught_wrong = np.zeros(runs), np.zeros(runs)
        self._alike = np.zeros((6, runs))

    @property
    def correlation(self) -> Floats:
        """The correlation of two labels of a session."""
        labels, wrong, squares, before, products, chance = self._alike
        of = labels + sessions.SMOOTHED_LABELS
        mean = (wrong + sessions.SMOOTHED_WRONG) / of
        variance = np.maximum(1e-6, (squares + sessions.SMOOTHED_WRONG) / of - mean * mean)
        together = (products - wrong * before / np.maximum(1.0, labels)) / variance
        beyond = (together - sessions.CHANCE_Z * np.sqrt(chance)) / (sessions.PRIOR_LABELS + labels)
        return np.clip(beyond, 0.0, sessions.ALIKE_MAX)

    def take(self, bad: Bools, at: Floats) -> None:
        """Take a label of each run, at these times."""
        places = (self._rows, self._sessions[self._labels])
        self._whole = self._labels - self._last[places] > repeats.LATEST
        self._weights = np.where(self._whole, 1.0, repeats.SESSION_WEIGHT_MIN)
        of, wrong = self._pasts[places], self._past_wrong[places]
        alike = self.correlation
        certainty = 1.0 / np.maximum(alike, 1e-9) - 1.0
        held = np.where(np.isnan(self.held), 1.0, self.held)
        due = np.where(alike > 0.0, (certainty + wrong / held) / (certainty + of), 1.0)
        self._due = np.maximum(label_evidence.LEAST_TIMES, due)
        has_past, before = of > 0.0, wrong / np.maximum(of, 1.0)
        more = np.array([np.ones_like(of), bad, bad, before, bad * before, 1.0 / np.maximum(of, 1.0)])
        self._last[places] = self._labels
        kept = np.where(of < sessions.LABELS_MAX, 1.0, 1.0 - 1.0 / sessions.LABELS_MAX)
        self._pasts[places], self._past_wrong[places] = kept * of + 1.0, kept * wrong + bad
        super().take(bad, at)
        self._alike += more * has_past

    def _find_gains(self, bad: Bools) -> Floats:
        turn = (2.0 * np.pi / recent_values.DAY_SECONDS) * (self._at % recent_values.DAY_SECONDS)
        wave = self.rhythm[0] + self.rhythm[1] * np.cos(turn) + self.rhythm[2] * np.sin(turn)
        times = np.where(self.has_rhythm, np.clip(wave, 1.0, dependence.TIMES_MAX), 1.0) * self._due
        held = np.minimum(1.0 - rising_errors.BASELINE_MIN, self.held * times)
        ways = (1.0 - held) * np.array(rising_errors.WAYS)[:, None]
        rates = held + np.minimum(np.array(rising_errors.POINTS)[:, None], ways)
        factors = np.where(bad, rates / held, (1.0 - rates) / (1.0 - held))
        return np.asarray(np.log(1.0 + self._weights * (factors - 1.0)))

    @property
    def _independent(self) -> tuple[Floats | int, Floats]:
        return self._whole_clusters.taken, self._whole_wrong

    @property
    def _first(self) -> tuple[Floats | int, Floats]:
        return self._taught, self._taught_wrong

    def _learn(self, bad: Bools, judged: Bools, was_first: Bools) -> None:
        learns = (self._is_own & (~judged | was_first)) * self._weights
        self._taught += learns
        self._taught_wrong += learns * bad
        full = self._is_own & ~judged & (self._taught >= FIRST_FEEDBACK)
        if full.any():
            self._hold_against(full)

    def _depend(self, bad: Bools, cosine: Floats, sine: Floats) -> None:
        self._labels += 1
        self._wrong += bad
        self._whole_wrong += bad & self._whole
        ones = np.ones_like(cosine)
        moments = (ones, cosine, sine, cosine * cosine, cosine * sine, bad, bad * cosine, bad * sine)
        self._moments += np.array(moments) * self._whole
        self._whole_clusters.take_whole(bad, self._whole)
        grown = np.clip((self._whole_clusters.taken - dependence.FEW) / (dependence.MANY - dependence.FEW), 0.0, 1.0)
        caution = dependence.CAUTION + grown * (dependence.CAUTION_OF_MANY - dependence.CAUTION)
        self.exponent = np.asarray(1.0 / (1.0 + caution * (self.dispersion - 1.0)))


def renumber(of_session: Numbers) -> Numbers:
    """The numbers of sessions, where one that is not among the latest any more begins again: runs by labels."""
    found = np.empty_like(of_session)
    for run, row in enumerate(of_session.tolist()):
        known, begun = dict[int, int](), 0
        for place, number in enumerate(row):
            own = known.pop(number, begun)
            begun += own == begun
            known[number] = row[place] = own
            if len(known) > repeats.SESSIONS:
                del known[next(iter(known))]
        found[run] = row
    return found
