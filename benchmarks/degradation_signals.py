"""The monitor's signals of labels over many runs at once: `LabelSignal` of one caller, in numpy.

A test holds it to `monitoring/quality/signals/label_signal.py`, label by label: dispersion, crowding, the rhythm of the
day, the baseline of first labels, and the doubts that make a version suspect instead of degraded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import betaincinv  # `beta.ppf` takes ten times as long for a few runs

from benchmarks.degradation_worlds import Bools, Floats
from monitoring.intervals import Z_95
from monitoring.quality.detectors import dependence, recent_values, rising_errors
from monitoring.quality.signals import label_signal, own_baseline
from monitoring.quality.signals.version_watch import FIRST_FEEDBACK
from monitoring.time_units import DAY_SECONDS

Kind = Literal["known", "gate", "own"]
WEIGHTS = np.array(rising_errors.WEIGHTS)
ALTERNATIVES = len(rising_errors.WEIGHTS)
SUM_MAX = 1e200
SETTLED = np.exp(label_signal.SETTLED_LOG)
DOUBTED = 200.0
"""Evidence that is strong, as in `LabelSignal.has_strong_evidence`."""


@dataclass(frozen=True, slots=True)
class Held:
    """The baselines of all runs: their rates, not known (NaN) where a run learns its own, and which are of a gate."""

    rates: Floats
    is_gate: Bools

    @property
    def is_own(self) -> Bools:
        """Which runs learn their own."""
        return np.isnan(self.rates)


def hold(kind: Kind, rates: Floats) -> Held:
    """The baselines of runs of one kind."""
    return Held(np.full(len(rates), np.nan) if kind == "own" else rates, np.full(len(rates), kind == "gate"))


def join(helds: Sequence[Held]) -> Held:
    """The baselines of several kinds of runs behind each other."""
    return Held(np.concatenate([held.rates for held in helds]), np.concatenate([held.is_gate for held in helds]))


@dataclass(frozen=True, slots=True)
class Alarms:
    """The labels (from 1) at which each run would first be degraded, and suspect or degraded: infinite, never. And what
    its labels showed in the end."""

    degraded: Floats
    suspect: Floats
    dispersion: Floats
    has_rhythm: Bools


class Clusters:
    """`dependence.Clusters` of all runs: what their labels, or differences of pairs, show of clusters."""

    def __init__(self, runs: int, prior: float = dependence.PRIOR_LABELS) -> None:
        self._prior = prior
        self._taken, self._total, self._squares = 0, np.zeros(runs), np.zeros(runs)
        self._near, self._open, self._mean = np.zeros(runs), np.zeros(runs), np.zeros(runs)
        self._products, self._counted = np.zeros(runs), 0
        self.dispersion = np.full(runs, dependence.PRIOR)

    def find_exponent(self, caution: float) -> Floats:
        """The exponent of the bets' factors."""
        return np.asarray(1.0 / (1.0 + caution * (self.dispersion - 1.0)))

    @property
    def variance(self) -> Floats:
        """The variance of a label."""
        of = self._taken + dependence.SMOOTHED_LABELS
        mean = (self._total + dependence.SMOOTHED_WRONG) / of
        return np.maximum(1e-6, (self._squares + dependence.SMOOTHED_WRONG) / of - mean * mean)

    def take(self, values: Floats | Bools) -> None:
        """Take a label of each run."""
        self._taken += 1
        over = values - self._mean
        if self._taken > dependence.FIRST:
            self._open += over * self._near
            self._near = dependence.KEEPS * (self._near + over)
        self._mean += over / min(self._taken, dependence.MEAN_OF)
        self._total += values
        self._squares += np.square(values, dtype=float)
        if self._taken % dependence.LOT:
            return
        most = dependence.LOT_MAX * dependence.LOT
        now = self._open / self.variance
        full = now >= most
        self._mean[full] += self._near[full] * (1.0 - dependence.KEEPS) / dependence.KEEPS
        self._near[full] = 0.0
        self._products += np.minimum(most, now)
        self._open[:] = 0.0
        self._counted += dependence.LOT
        if self._counted >= dependence.COUNTED_MAX:
            self._products /= 2.0
            self._counted //= 2
        seen = self._products / (self._prior + self._counted)
        self.dispersion = np.maximum(dependence.PRIOR, 1.0 + 2.0 * dependence.FARTHER * seen)


class Days:
    """`dependence.Days` of all runs: how far the sums of days lie apart."""

    def __init__(self, runs: int) -> None:
        self._labels, self._wrong = np.zeros(runs), np.zeros(runs)
        self._before, self._before_wrong = np.zeros(runs), np.zeros(runs)
        self._counted, self._squares = np.zeros(runs), np.zeros(runs)
        self.dispersion = np.ones(runs)
        self.settled = np.ones(runs)

    def end(self, ends: Bools, counted: Floats | int, wrong: Floats) -> None:
        """End the day of these runs, which have so many labels."""
        labels = np.broadcast_to(counted, ends.shape)[ends]
        came, bad = labels - self._labels[ends], wrong[ends] - self._wrong[ends]
        before, before_wrong = self._before[ends], self._before_wrong[ends]
        counts = (came >= dependence.DAY_LABELS_MIN) & (before >= dependence.DAYS_BEFORE_LABELS_MIN)
        mean = (before_wrong + dependence.SMOOTHED_WRONG) / (before + dependence.SMOOTHED_LABELS)
        by_chance = came * np.maximum(1e-6, mean * (1.0 - mean)) * (1.0 + came / np.maximum(before, 1.0))
        square = np.minimum(dependence.DAY_MAX, np.square(bad - came * mean) / np.maximum(by_chance, 1e-12))
        counted, squares = self._counted[ends], self._squares[ends]
        kept = np.where(counts & (counted >= dependence.DAYS_MAX), 1.0 - 1.0 / dependence.DAYS_MAX, 1.0)
        self._counted[ends] = counted = kept * counted + counts
        self._squares[ends] = squares = kept * squares + np.where(counts, square, 0.0)
        self._before[ends] = dependence.FADING * (before + came)
        self._before_wrong[ends] = dependence.FADING * (before_wrong + bad)
        self._labels[ends], self._wrong[ends] = labels, wrong[ends]
        days = np.maximum(counted, 1e-9)
        part = 2.0 / (9.0 * days)
        due = days * (1.0 - part + dependence.DAYS_Z * np.sqrt(part)) ** 3
        self.dispersion[ends] = np.where((counted > 0.0) & (squares > due), np.maximum(1.0, squares / days), 1.0)

    def settle(self, these: Bools) -> None:
        """Nothing hints at a degradation in these runs."""
        self.settled[these] = self.dispersion[these]


class Signals:
    """The signals of all runs, moved label by label. Arrays have alternatives before runs."""

    def __init__(self, held: Held, runs: int) -> None:
        self._is_own, self._is_gate = held.is_own, held.is_gate
        self._runs = runs
        self.held = self._bounded(held.rates)
        self._logs = np.zeros((2, ALTERNATIVES, runs))  # of a right label, and of a wrong one
        self._set_logs(np.ones(runs, dtype=bool), np.ones(runs))
        self.sums = np.zeros((ALTERNATIVES, runs))
        self.most = np.zeros(runs)
        self._rises = np.zeros((ALTERNATIVES, runs))
        self._begun = np.zeros((ALTERNATIVES, runs))
        self._begun_wrong = np.zeros((ALTERNATIVES, runs))
        self._seen, self._begun_after = np.zeros(runs), np.zeros((ALTERNATIVES, runs))  # labels, whatever they weigh
        self._observed, self._observed_wrong = np.zeros(runs), np.zeros(runs)
        self._started = np.zeros(runs)  # labels before the detector last began
        self._recent, self._recent_squares, self._recent_wrong = 0.0, 0.0, np.zeros(runs)
        self._labels, self._wrong = 0, np.zeros(runs)
        self._weights: Floats | float = 1.0
        self.shows_rise = np.zeros(runs, dtype=bool)
        self._near = np.zeros(runs)
        self._clusters = Clusters(runs)
        self._days = Days(runs)
        self._times_stronger = np.ones(runs)
        self.exponent = self._clusters.find_exponent(dependence.find_caution(self._labels))
        self._moments = np.zeros((8, runs))
        self.rhythm = np.tile(np.array(dependence.FLAT)[:, None], (1, runs))
        self._had_rhythm = np.zeros(runs, dtype=bool)
        self._began: Floats | None = None
        self._fitted, self._at = np.zeros(runs), np.zeros(runs)

    @property
    def dispersion(self) -> Floats:
        """The dispersion that labels show so far."""
        return self._clusters.dispersion

    @property
    def has_rhythm(self) -> Bools:
        """In which runs errors follow the day."""
        return np.asarray(self.rhythm[1:].any(axis=0))

    @property
    def is_first_day(self) -> Bools:
        """Whether less than a day was seen."""
        return np.asarray(self._fitted <= (0.0 if self._began is None else self._began))

    def take(self, bad: Bools, at: Floats) -> None:
        """Take a label of each run, at these times."""
        if self._began is None:
            self._began, self._fitted = at.copy(), at.copy()
        self._at = at
        turn = (2.0 * np.pi / DAY_SECONDS) * (at % DAY_SECONDS)
        cosine, sine = np.cos(turn), np.sin(turn)
        judged = ~np.isnan(self.held)
        settled, most = ~judged | (WEIGHTS @ self.sums < SETTLED), self.most.copy()
        if judged.any():
            self._observe(bad, cosine, sine, judged)
        ends = at - self._fitted >= DAY_SECONDS
        was_first, had_rhythm = self.is_first_day, self._had_rhythm.copy()
        if ends.any():
            self._days.end(ends, *self._independent)
            self._fit(ends, at)
        self._depend(bad, cosine, sine)
        self._days.settle(settled)
        strongest = judged & (WEIGHTS @ self.sums >= np.maximum(most, DOUBTED))
        self._times_stronger[strongest] = 1.0 + dependence.DAYS_CAUTION * (self._days.settled[strongest] - 1.0)
        self._recent = recent_values.FADING * self._recent + 1.0
        self._recent_squares = recent_values.FADING**2 * self._recent_squares + 1.0
        self._recent_wrong = recent_values.FADING * self._recent_wrong + bad
        self._learn(bad, judged, was_first)
        if ends.any():
            ended = was_first & ends & judged
            now = WEIGHTS @ self.sums
            self.most[ended] = now[ended]
            share = self._recent_wrong / self._recent
            of, z2 = self._recent**2 / self._recent_squares, Z_95**2
            low = (share + z2 / (2 * of)) / (1 + z2 / of)
            low -= Z_95 / (1 + z2 / of) * np.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
            lasts = ended & self._is_own & (low > self.held)
            self.rhythm[:, lasts] = np.array(dependence.FLAT)[:, None]
            self._moments[:, lasts] = 0.0
            self._had_rhythm[lasts] = False
            again = ended & self._is_own & ~lasts
            if again.any():
                self._hold_against(again)
            new = self.has_rhythm & ~had_rhythm & ~again & ~lasts & judged
            self._restart(new & (ended | (now < DOUBTED)))

    def find_doubtful(self, these: Bools, bar: float) -> Bools:
        """Which of these, whose evidence reaches the threshold, are doubted."""
        doubtful = np.zeros(self._runs, dtype=bool)
        places = np.flatnonzero(these)
        if not len(places):
            return doubtful
        held, leads = self.held[places], (np.log1p(self.sums[:, places]) + np.log(WEIGHTS)[:, None]).argmax(axis=0)
        begun = self._begun[leads, places]
        since = self._observed[places] - begun
        wrong = self._observed_wrong[places] - self._begun_wrong[leads, places]
        least = np.maximum(_lower(wrong, since), _lower(self._recent_wrong[places], np.full(len(places), self._recent)))
        after = self._started[places] + self._begun_after[leads, places]
        is_own, is_first = self._is_own[places], after <= label_signal.FIRST_LABELS
        points = np.where(is_own, label_signal.OWN_BAD_HOUR_POINTS, np.minimum(held, label_signal.BAD_HOUR_POINTS))
        assert self._began is not None, "a label was taken"
        passed = np.minimum(1.0, (self._at - self._began)[places] / label_signal.BAD_HOUR_COMES_SECONDS)
        hour = held + points * np.where(~is_own & is_first, 1.0, passed)
        found = self.is_first_day[places] & (least <= hour)
        found |= self._is_gate[places] & ~self.shows_rise[places] & (least <= held + label_signal.LABELLERS_POINTS)
        found |= np.log(self.most[places]) < np.log(bar) * self._times_stronger[places]
        doubtful[places] = found
        return doubtful

    def _find_rise(self, these: Bools) -> None:
        """Note whether a rise is shown by the labels of these runs, whose evidence is the largest so far."""
        places = np.flatnonzero(these & self._is_gate)
        if not len(places):
            return
        leads = (np.log1p(self.sums[:, places]) + np.log(WEIGHTS)[:, None]).argmax(axis=0)
        begun, begun_wrong = self._begun[leads, places], self._begun_wrong[leads, places]
        since, wrong = self._observed[places] - begun, self._observed_wrong[places] - begun_wrong
        before = np.maximum(1.0, begun)
        most = betaincinv(begun_wrong + 1.0, before - begun_wrong + 1e-9, label_signal.RISE_CONFIDENCE)
        rises = _lower(wrong, since, label_signal.RISE_CONFIDENCE) > most
        rises |= (self._started[places] > label_signal.FIRST_LABELS) | (begun < 0.5)
        after = self._started[places] + self._begun_after[leads, places]
        self.shows_rise[places] = rises & (after > label_signal.FIRST_LABELS)

    def _observe(self, bad: Bools, cosine: Floats, sine: Floats, judged: Bools) -> None:
        wave: Bools = self.has_rhythm
        if wave.any():
            self._set_logs(
                wave,
                np.clip(self.rhythm[0] + self.rhythm[1] * cosine + self.rhythm[2] * sine, 1.0, dependence.TIMES_MAX),
            )
        room = dependence.NEAR * (self.held + dependence.CROWDED_POINTS)
        crowding = np.minimum(1.0, room / np.maximum(self._near, 1e-12))
        gains = self._find_gains(bad) * (self.exponent * crowding)
        gains[:, ~judged] = 0.0
        self.sums += judged
        self.sums *= np.exp(gains)
        np.minimum(self.sums, SUM_MAX, out=self.sums)
        now = WEIGHTS @ self.sums
        largest = (now >= self.most) & (now >= DOUBTED)
        self.most = np.maximum(self.most, now)
        self._near = (1.0 - 1.0 / dependence.NEAR) * self._near + self._weights * (bad & judged)
        self._observed += self._weights * judged
        self._observed_wrong += self._weights * (bad & judged)
        self._seen += judged
        self._rises += gains
        lowest = self._rises <= 0.0
        np.maximum(self._rises, 0.0, out=self._rises)
        self._begun = np.where(lowest, self._observed, self._begun)
        self._begun_after = np.where(lowest, self._seen, self._begun_after)
        self._begun_wrong = np.where(lowest, self._observed_wrong, self._begun_wrong)
        self._find_rise(largest)

    def _find_gains(self, bad: Bools) -> Floats:
        """The logarithms of the bets' factors."""
        return np.where(bad, self._logs[1], self._logs[0])

    @property
    def _independent(self) -> tuple[Floats | int, Floats]:
        """The number of labels that count whole, and their sum."""
        return self._labels, self._wrong

    @property
    def _first(self) -> tuple[Floats | int, Floats]:
        """The weight of the labels that become a baseline, and their sum."""
        return self._labels, self._wrong

    def _learn(self, bad: Bools, judged: Bools, was_first: Bools) -> None:
        if self._labels == FIRST_FEEDBACK and self._is_own.any():
            self._hold_against(self._is_own)

    def _depend(self, bad: Bools, cosine: Floats, sine: Floats) -> None:
        self._labels += 1
        self._wrong += bad
        ones = np.ones_like(cosine)
        self._moments += (ones, cosine, sine, cosine * cosine, cosine * sine, bad, bad * cosine, bad * sine)
        self._clusters.take(bad)
        self.exponent = self._clusters.find_exponent(dependence.find_caution(self._labels))

    def _fit(self, ends: Bools, at: Floats) -> None:
        places = np.flatnonzero(ends)
        count, c, s, cc, cs, x, xc, xs = self._moments[:, places]
        matrix = np.array([[count, c, s], [c, cc, cs], [s, cs, count - cc]]).transpose(2, 0, 1) + 1e-6 * np.eye(3)
        level, cosine, sine = np.linalg.solve(matrix, np.array([x, xc, xs]).T[:, :, None])[:, :, 0].T
        explained = level * x + cosine * xc + sine * xs - x * x / count
        statistic = explained / self._clusters.variance[places]
        had = self.rhythm[1:, places].any(axis=0)
        mean = x / count
        least = np.where(had, dependence.RHYTHM_ENDS, dependence.RHYTHM_BEGINS)
        there = (statistic > least) & (x >= dependence.RHYTHM_WRONG_MIN)
        kept = np.where(there, (statistic - 2.0) / np.where(there, statistic, 1.0), 0.0)
        share = kept / np.where(mean > 0.0, mean, 1.0)
        self.rhythm[:, places] = 1.0 - kept + share * level, share * cosine, share * sine
        self._moments[:, places] *= dependence.FADING
        self._fitted[places] = at[places]
        self._had_rhythm[places] |= there
        gone = np.zeros(self._runs, dtype=bool)
        gone[places[had & ~there]] = True
        self._set_logs(gone, np.ones(self._runs))

    def _hold_against(self, these: Bools) -> None:
        """Hold them against the bound of all their labels so far."""
        labels, bad = self._first
        of, wrong = (
            np.broadcast_to(labels, these.shape)[these] / self.dispersion[these],
            bad[these] / self.dispersion[these],
        )
        upper = betaincinv(wrong + 1.0, of - wrong, own_baseline.CONFIDENCE)
        self.held[these] = self._bounded(upper)
        self._set_logs(these, np.ones(self._runs))
        self._restart(these)

    def _restart(self, these: Bools) -> None:
        self.sums[:, these] = self._rises[:, these] = self._begun[:, these] = self._begun_wrong[:, these] = 0.0
        self._started[these] = self._labels
        self._near[these] = 0.0
        self._begun_after[:, these] = self._seen[these] = 0.0
        self.most[these] = self._observed[these] = self._observed_wrong[these] = 0.0

    def _set_logs(self, these: Bools, times: Floats) -> None:
        if not these.any():
            return
        held = np.minimum(1.0 - rising_errors.BASELINE_MIN, self.held[these] * times[these])
        rates = held + np.minimum(
            np.array(rising_errors.POINTS)[:, None], (1.0 - held) * np.array(rising_errors.WAYS)[:, None]
        )
        self._logs[0][:, these] = np.log((1.0 - rates) / (1.0 - held))
        self._logs[1][:, these] = np.log(rates / held)

    def _bounded(self, rates: Floats) -> Floats:
        return np.clip(rates, rising_errors.BASELINE_MIN, 1.0 - rising_errors.BASELINE_MIN)


def find_alarms(bad: Bools, times: Floats, held: Held, bar: float, signals: Signals | None = None) -> Alarms:
    """The first alarms of each run at a threshold. `times` are Unix seconds, of each run or of all.

    With more baselines than runs, all runs are compared with each part of them. `signals` are others than usual.
    """
    copies = len(held.rates) // len(bad)
    bad, times = np.tile(bad, (copies, 1)), np.tile(times, (copies, 1)) if times.ndim == 2 else times
    runs, count = bad.shape
    signals = signals or Signals(held, runs)
    degraded, suspect = np.full(runs, np.inf), np.full(runs, np.inf)
    columns = np.ascontiguousarray(bad.T)
    each = np.ascontiguousarray(times.T) if times.ndim == 2 else np.broadcast_to(times[:, None], (count, runs))
    for number in range(count):
        signals.take(columns[number], np.asarray(each[number], dtype=np.float64))
        enough = (signals.most >= bar) & np.isinf(degraded)
        if not enough.any():
            continue
        suspect[enough] = np.minimum(suspect[enough], number + 1)
        degraded[enough & ~signals.find_doubtful(enough, bar)] = number + 1
    return Alarms(degraded, suspect, signals.dispersion, signals.has_rhythm)


def _lower(wrong: Floats, of: Floats, confidence: float = label_signal.DOUBT_CONFIDENCE) -> Floats:
    """The lower bound of a share, as `intervals.find_lower_bound` has it."""
    wrong = np.clip(np.minimum(wrong, of), 0.0, None)
    bound = betaincinv(np.maximum(wrong, 1e-12), of - wrong + 1.0, 1.0 - confidence)
    return np.asarray(np.where(wrong <= 1e-9, 0.0, bound))
