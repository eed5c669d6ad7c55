"""The monitor's signals of labels that name their session, over many runs at once: `degradation_signals.py` with the
weights of repeats, and with `monitoring/quality/detectors/sessions.py`. A test holds it to the monitor.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from benchmarks.degradation_signals import DOUBTED, WEIGHTS, Clusters, Held, Signals
from benchmarks.degradation_worlds import Bools, Floats
from monitoring.quality.detectors import dependence, rising_errors, sessions
from monitoring.quality.signals import label_evidence, repeats
from monitoring.quality.signals.version_watch import FIRST_FEEDBACK
from monitoring.time_units import DAY_SECONDS

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
        """Take a label of those runs where it is not a repeat."""
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
        self._worst, self._worst_wrong, self._worst_seen = np.zeros(runs), np.zeros(runs), np.zeros(runs)
        self._rests_on_one = np.zeros(runs, dtype=np.bool_)
        self._alike_marks = np.ones((self._sessions.shape[0] // sessions.MARKED_EACH + 1, runs))

    @property
    def correlation(self) -> Floats:
        """The correlation of two labels of a session."""
        beyond = self._together - sessions.CHANCE_Z * np.sqrt(self._alike[5])
        return np.clip(beyond / (sessions.PRIOR_LABELS + self._alike[0]), 0.0, sessions.ALIKE_MAX)

    @property
    def _together(self) -> Floats:
        labels, wrong, squares, before, products, _ = self._alike
        of = labels + sessions.SMOOTHED_LABELS
        mean = (wrong + sessions.SMOOTHED_WRONG) / of
        variance = np.maximum(1e-6, (squares + sessions.SMOOTHED_WRONG) / of - mean * mean)
        return np.asarray((products - wrong * before / np.maximum(1.0, labels)) / variance)

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
        before_most, judged = self.most.copy(), ~np.isnan(self.held)
        super().take(bad, at)
        self._alike += more * has_past
        mark, rest = divmod(self._labels, sessions.MARKED_EACH)
        if not rest:
            most = (self._together + sessions.UNLIKE_Z * np.sqrt(self._alike[5])) / np.maximum(1.0, self._alike[0])
            self._alike_marks[mark] = np.where(self._alike[0] > 0.0, most, 1.0)
        self._follow_worst(of, wrong, bad, judged)
        now = WEIGHTS @ self.sums
        largest = ~np.isnan(self.held) & (now >= np.maximum(before_most, DOUBTED))
        self._rests_on_one[largest] = self._find_rests(largest)

    def find_doubtful(self, these: Bools, bar: float) -> Bools:
        """Which of these, whose evidence reaches the threshold, are doubted."""
        return np.asarray(super().find_doubtful(these, bar) | (these & self._rests_on_one))

    def _follow_worst(self, of: Floats, wrong: Floats, bad: Bools, judged: Bools) -> None:
        """`sessions.follow_worst`, after a label of sessions with so many labels and errors before it."""
        labels, errors = of + 1.0, wrong + bad
        began = self._begun_after[self._leads, self._rows]
        goes_on = (of > 0.0) & (of == self._worst) & (wrong == self._worst_wrong)
        is_over = (self._worst_seen <= began) | (self._worst_seen > self._seen)
        is_worse = errors - labels * self.held > self._worst_wrong - self._worst * self.held
        moved = judged & (goes_on | is_over | is_worse)
        self._worst = np.where(moved, labels, self._worst)
        self._worst_wrong = np.where(moved, errors, self._worst_wrong)
        self._worst_seen = np.where(moved, self._seen, self._worst_seen)

    def _find_rests(self, these: Bools) -> Bools:
        """In which of these runs the evidence rests on one session."""
        places = np.flatnonzero(these)
        if not len(places):
            return np.zeros(0, dtype=np.bool_)
        leads, held = self._leads[places], self.held[places]
        seen = self._seen[places] - self._begun_after[leads, places]
        weights = (self._observed[places] - self._begun[leads, places]) / np.maximum(seen, 1.0)
        weights = np.where(seen > 0.0, weights, 1.0)
        labels = np.maximum(0.0, seen - self._worst[places])
        bad = self._observed_wrong[places] - self._begun_wrong[leads, places]
        wrong = np.minimum(labels, np.maximum(0.0, bad / weights - self._worst_wrong[places]))
        rates = held + np.minimum(
            np.array(rising_errors.POINTS)[leads], (1.0 - held) * np.array(rising_errors.WAYS)[leads]
        )
        rest = wrong * np.log(rates / held) + (labels - wrong) * np.log((1.0 - rates) / (1.0 - held))
        after = self._started[places] + self._begun_after[leads, places]
        marks = (after // sessions.MARKED_EACH).astype(np.intp)
        is_kept = marks > self._labels // sessions.MARKED_EACH - sessions.MARKS_MAX
        alike = np.where(is_kept, self._alike_marks[marks, places], 1.0) >= sessions.UNLIKE
        return np.asarray((self._worst[places] > 0.0) & alike & (weights * rest < sessions.REST_MIN))

    @property
    def _leads(self) -> Numbers:
        """The alternative that leads in each run."""
        return np.asarray((np.log1p(self.sums) + np.log(WEIGHTS)[:, None]).argmax(axis=0))

    def _find_gains(self, bad: Bools) -> Floats:
        turn = (2.0 * np.pi / DAY_SECONDS) * (self._at % DAY_SECONDS)
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
