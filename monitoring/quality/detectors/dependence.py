"""Dependence between the labels of one signal: clusters of errors, and the rhythm of the day.

The claim of `rising_errors.py` needs an expected badness of at most the baseline, given all earlier labels. Popular
inputs, retries and hard hours break that, though nothing has changed on the whole. So earlier labels decide how much
each label counts:

- **Dispersion.** A label's deviation from the mean of about the last 200 is multiplied by the deviations of the last
  12. For independent labels the mean of these products is 0. Twice their mean is the dispersion beyond 1. It is doubled
  for labels farther apart, and shrunk by the weight of a prior. No lot of 32 products counts for more than `LOT_MAX`.
  After such a lot the mean moves to its labels: a degradation that lasts is not a cluster. The dispersion is also
  measured without each caller, and the least counts, so no caller's bursts hide a degradation that others see. The
  evidence is the least, whoever is left out (`leave_one_out.py`): if one of its detectors keeps the claim, the evidence
  does.
- **Crowding.** The more errors among about the last ten labels, the less the next label counts.
- **Days.** Each day's sum is compared with the one that earlier days let expect, in multiples of chance. If the mean of
  the squares is over 1 beyond chance, the evidence must be stronger accordingly (`label_signal.py`).
- **The rhythm of the day.** At the end of each day one wave of 24 hours is fitted. If it is more than chance, the
  baseline follows it in the worse half of the day, to twice its height at most.

Dispersion and crowding are an exponent of at most 1 on the bets' factors. As E[L] is at most 1, so is E[L^exponent].
Pure functions over frozen data of fixed size. Times are Unix seconds.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from monitoring.quality.detectors import leave_one_out
from monitoring.time_units import DAY_SECONDS

KEEPS = 1.0 - 1.0 / 12.0
"""The part of the earlier deviations that remains with each new label."""
MEAN_OF = 200
"""The number of labels in the average that the next label is compared with."""
FIRST = 12
"""The number of first labels, which only set the mean."""
LOT = 32
LOT_MAX = 2.0
"""The most that a lot's mean product counts for, in multiples of a label's variance."""
FARTHER = 2.0
"""Labels too far apart for `KEEPS` add as much again, if clusters last for 20 labels or more."""
PRIOR = 1.02
"""The least dispersion: no labels are certain to be independent."""
PRIOR_LABELS, PRIOR_PAIRS = 800.0, 80.0
"""The weight of the prior, which is independence: in labels, and in pairs, which are few."""
CAUTION, CAUTION_OF_MANY, CAUTION_OF_PAIRS = 2.2, 4.0, 1.1
"""The exponent is 1 / (1 + caution * (dispersion - 1)). Clusters have heavier tails than their variance shows, and with
more labels they are met more often. Pairs are few, and a degradation among them soon looks like a cluster."""
FEW, MANY = 1_000, 5_000
"""Labels up to which `CAUTION` holds, and labels from which `CAUTION_OF_MANY` does."""
COUNTED_MAX = 32_000
"""The number of labels at which the sum of products is halved, so that the newest count most."""
NEAR = 10.0
CROWDED_POINTS = 0.14
FADING = 1.0 - 1.0 / 14.0
"""The rhythm, and the mean that a day is compared with, cover about 14 days."""
RHYTHM_BEGINS, RHYTHM_ENDS = 12.0, 6.0
"""Test statistics of a rhythm. By chance they are chi-squared with 2 degrees of freedom: over 12 once in 400 days."""
RHYTHM_WRONG_MIN = 8.0
"""A few errors of the same hour are not a rhythm."""
SMOOTHED_WRONG, SMOOTHED_LABELS = 1.0, 20.0
DAY_LABELS_MIN, DAYS_BEFORE_LABELS_MIN = 5, 20.0
"""A day with fewer labels, or with fewer before it, says nothing about days."""
DAY_MAX = 16.0
"""The most that one day's square counts for: a degradation that lasts is not a bad day."""
DAYS_MAX = 28.0
"""With more days, the newest count most."""
DAYS_Z = 1.036
"""Days differ if chance alone makes as much difference in only 15% of cases."""
DAYS_CAUTION = 2.2
"""The extra strength that evidence needs for each 1 of the days' dispersion above 1."""
FLAT = (1.0, 0.0, 0.0)
"""No rhythm."""
TIMES_MIN, TIMES_MAX = 0.2, 2.0


class Days(msgspec.Struct, frozen=True, array_like=True):
    """The days of some labels. `labels` and `wrong` count them up to the beginning of this day. `before` and
    `before_wrong` are the same counts, faded as the rhythm is. `squares` is a sum over `counted` days: the squared
    deviations of a day's labels from the expected ones, in multiples of chance.
    """

    labels: int = 0
    wrong: float = 0.0
    before: float = 0.0
    before_wrong: float = 0.0
    counted: float = 0.0
    squares: float = 0.0

    def find_dispersion(self) -> float:
        """The variance of a day's sum as a multiple of chance's; 1 if chance may explain all of it.

        The quantile of chi-squared is that of E. B. Wilson and M. M. Hilferty, 1931.
        """
        if not self.counted:
            return 1.0
        part = 2.0 / (9.0 * self.counted)
        by_chance = self.counted * (1.0 - part + DAYS_Z * math.sqrt(part)) ** 3
        return max(1.0, self.squares / self.counted) if self.squares > by_chance else 1.0


class Clusters(msgspec.Struct, frozen=True, array_like=True):
    """Labels in clusters: their number, their sum, and the sum of their squares. `mean` is that of the last labels,
    `near` the faded sum of their deviations from it. `open` is the sum of the products of the lot that is not full.
    `products`, in multiples of a label's variance, is that of the `counted` labels in full ones. `blocks` are those of
    an earlier release, until the next label: for each size the open sum, the one before, the sum of ratios, and their
    number. `days` are the labels' days up to the last completed one.
    """

    labels: int = 0
    wrong: float = 0.0
    squares: float = 0.0
    blocks: tuple[tuple[float, float | None, float, int], ...] = ()
    near: float = 0.0
    open: float = 0.0
    products: float = 0.0
    counted: int = 0
    mean: float = 0.0
    days: Days = Days()

    def find_dispersion(self, prior: float = PRIOR_LABELS) -> float:
        """The variance of many labels together, as a multiple of that of independent ones: at least `PRIOR`."""
        state = _read_blocks(self) if self.blocks else self
        return max(PRIOR, 1.0 + 2.0 * FARTHER * state.products / (prior + state.counted))

    def find_exponent(self) -> float:
        """The exponent of the bets' factors after these labels."""
        return find_exponent_of(self.find_dispersion(), find_caution(self.labels))

    def end_day(self) -> Clusters:
        """The clusters at the end of a day."""
        days = self.days
        labels, wrong = self.labels - days.labels, self.wrong - days.wrong
        counted, squares = days.counted, days.squares
        if labels >= DAY_LABELS_MIN and days.before >= DAYS_BEFORE_LABELS_MIN:
            mean = (days.before_wrong + SMOOTHED_WRONG) / (days.before + SMOOTHED_LABELS)
            by_chance = labels * max(1e-6, mean * (1.0 - mean)) * (1.0 + labels / days.before)
            kept = 1.0 if counted < DAYS_MAX else 1.0 - 1.0 / DAYS_MAX
            counted, squares = (
                kept * counted + 1.0,
                kept * squares + min(DAY_MAX, (wrong - labels * mean) ** 2 / by_chance),
            )
        before, before_wrong = FADING * (days.before + labels), FADING * (days.before_wrong + wrong)
        return replace(self, days=Days(self.labels, self.wrong, before, before_wrong, counted, squares))

    def move_mean(self) -> Clusters:
        """Move the mean of the last labels to that of all."""
        return replace(self, mean=self.wrong / max(1, self.labels), near=0.0)

    @property
    def variance(self) -> float:
        """The variance of a label, with 20 labels and one error added."""
        mean = (self.wrong + SMOOTHED_WRONG) / (self.labels + SMOOTHED_LABELS)
        return max(1e-6, (self.squares + SMOOTHED_WRONG) / (self.labels + SMOOTHED_LABELS) - mean * mean)


class Dependence(msgspec.Struct, frozen=True, kw_only=True):
    """The dependence of a signal's labels, as far as they show it. A round trip through JSON changes no bit.

    `whole` covers all its labels, `without` those without each group of callers (None: the group has given none).
    `passed` counts labels that were passed over. `began_at` is the time of the first label, `fitted_at` that of the
    last fit of the rhythm. `moments` are its sums of 1, cos, sin, cos², cos·sin, badness, badness·cos and badness·sin
    of the time of day. `rhythm` has the level, cosine and sine of the wave, in multiples of the mean label.
    `had_rhythm`: there is one, or was one before. `settled` is the last dependence without a hint at a degradation;
    None in states of earlier releases."""

    whole: Clusters = Clusters()
    without: tuple[Clusters | None, ...] = ()
    passed: int = 0
    began_at: float | None = None
    fitted_at: float = 0.0
    moments: tuple[float, float, float, float, float, float, float, float] = (0.0,) * 8
    rhythm: tuple[float, float, float] = FLAT
    had_rhythm: bool = False
    settled: Dependence | None = None

    @property
    def is_first_day(self) -> bool:
        """Return whether labels span less than a whole day so far."""
        return self.began_at is None or self.fitted_at <= self.began_at

    @property
    def has_rhythm(self) -> bool:
        """Return whether errors follow the time of day beyond chance."""
        return self.rhythm != FLAT


class LabelTerms(NamedTuple):
    """The terms on which a detector takes a label: the exponent of its factors, and the multiple of the baseline that
    may be wrong at this hour. Both depend on earlier labels alone."""

    exponent: float = 1.0
    times: float = 1.0


PLAIN = LabelTerms()
"""The terms of independent labels."""


def find_dispersion(state: Dependence, prior: float = PRIOR_LABELS) -> float:
    """The dispersion of the labels: the least, whoever may be left out (`leave_one_out.list_parts`)."""
    return min([part.find_dispersion(prior) for part in leave_one_out.list_parts(state.whole, state.without)])


def find_times_stronger(state: Dependence) -> float:
    """The factor by which evidence must be stronger because days differ: the least, whoever is left out. It uses the
    days before the first hint at a degradation."""
    settled = state.settled or state
    parts = leave_one_out.list_parts(settled.whole, settled.without)
    return 1.0 + DAYS_CAUTION * (min([part.days.find_dispersion() for part in parts]) - 1.0)


def find_relief(state: Dependence) -> float:
    """The exponent by all labels' dispersion, divided by the exponent that counts. It is under 1 if the errors of one
    caller alone come in bursts."""
    return state.whole.find_exponent() / find_exponent(state)


def find_exponent(state: Dependence) -> float:
    """The exponent of the bets' factors by the dispersion alone: the largest, whoever is left out."""
    return max([part.find_exponent() for part in leave_one_out.list_parts(state.whole, state.without)])


def find_exponent_of(dispersion: float, caution: float = CAUTION) -> float:
    """The exponent of the bets' factors at this dispersion."""
    return 1.0 / (1.0 + caution * (dispersion - 1.0))


def find_caution(labels: int) -> float:
    """The caution after this number of labels."""
    grown = min(1.0, max(0.0, (labels - FEW) / (MANY - FEW)))
    return CAUTION + grown * (CAUTION_OF_MANY - CAUTION)


def find_times(state: Dependence, at: float) -> float:
    """The errors at this time of day, as a multiple of their mean."""
    level, cosine, sine = state.rhythm
    cosine_now, sine_now = find_wave(at)
    return min(TIMES_MAX, max(TIMES_MIN, level + cosine * cosine_now + sine * sine_now))


def find_terms(state: Dependence, at: float) -> LabelTerms:
    """The terms of the next label, at this time."""
    return LabelTerms(find_exponent(state), max(1.0, find_times(state, at)))


def find_reverse_terms(state: Dependence, at: float) -> LabelTerms:
    """The terms of the next label in a reverse test: fewer errors in the better hours show no recovery."""
    return LabelTerms(find_exponent(state), min(1.0, find_times(state, at)))


def find_crowding(near: float, baseline: float) -> float:
    """The exponent of the next label's factors, with `near` errors among about the last ten labels."""
    room = NEAR * (baseline + CROWDED_POINTS)
    return 1.0 if near <= room else room / near


def add_near(near: float, badness: float) -> float:
    """The errors among about the last ten labels, after one more."""
    return (1.0 - 1.0 / NEAR) * near + badness


def observe(state: Dependence, badness: float, at: float, own: Collection[int] = (), groups: int = 0) -> Dependence:
    """The dependence after a label, from 0 (right) to 1 (wrong), from these groups of callers."""
    state = _move_clock(state, at)
    cosine, sine = find_wave(at)
    added = (1.0, cosine, sine, cosine * cosine, cosine * sine, badness, badness * cosine, badness * sine)
    without = state.without or (None,) * groups
    whole, without = leave_one_out.move_each(state.whole, without, lambda clusters: _take(clusters, badness), own)
    moments = tuple([moment + more for moment, more in zip(state.moments, added, strict=True)])
    return replace(state, whole=whole, without=without, moments=moments)


def pass_over(state: Dependence, at: float) -> Dependence:
    """The dependence after a label that says nothing about clusters: a repeat, or one of a degraded version."""
    return replace(_move_clock(state, at), passed=state.passed + 1)


def settle(state: Dependence) -> Dependence:
    """The dependence, noted as one without a hint at a degradation."""
    return replace(state, settled=replace(state, settled=None))


def forget_slip(state: Dependence) -> Dependence:
    """The dependence as it was before the degradation: a degradation is not a cluster."""
    if state.settled is None:
        whole, without = leave_one_out.move_each(state.whole, state.without, Clusters.move_mean, ())
        return replace(state, whole=whole, without=without)
    passed = state.passed + state.whole.labels - state.settled.whole.labels
    return replace(state.settled, passed=passed, fitted_at=state.fitted_at, had_rhythm=state.had_rhythm)


def forget_rhythm(state: Dependence) -> Dependence:
    """The dependence without a rhythm: on its first day a degradation that lasts looks like one."""
    return replace(state, rhythm=FLAT, had_rhythm=False, moments=(0.0,) * 8, settled=None)


def find_wave(at: float) -> tuple[float, float]:
    """The cosine and sine of the time of day."""
    turn = 2.0 * math.pi * (at % DAY_SECONDS) / DAY_SECONDS
    return math.cos(turn), math.sin(turn)


def _move_clock(state: Dependence, at: float) -> Dependence:
    if state.began_at is None:
        return replace(state, began_at=at, fitted_at=at)
    if at - state.fitted_at < DAY_SECONDS:
        return state
    whole, without = leave_one_out.move_each(state.whole, state.without, Clusters.end_day, ())
    return _fit(replace(state, whole=whole, without=without), at)


def _take(state: Clusters, badness: float) -> Clusters:
    """The clusters after a label."""
    state = _read_blocks(state) if state.blocks else state
    labels, apart = state.labels + 1, badness - state.mean
    over = apart if labels > FIRST else 0.0
    now, near = state.open + over * state.near, KEEPS * (state.near + over)
    mean = state.mean + apart / min(labels, MEAN_OF)
    sums = (labels, state.wrong + badness, state.squares + badness * badness)
    products, counted = state.products, state.counted
    if labels % LOT:
        return Clusters(*sums, (), near, now, products, counted, mean, state.days)
    now, most = now / Clusters(*sums).variance, LOT_MAX * LOT
    if now >= most:
        mean, near, now = mean + near * (1.0 - KEEPS) / KEEPS, 0.0, most
    products, counted = products + now, counted + LOT
    if counted >= COUNTED_MAX:
        products, counted = products / 2.0, counted // 2
    return Clusters(*sums, (), near, 0.0, products, counted, mean, state.days)


def _read_blocks(state: Clusters) -> Clusters:
    """The clusters from an earlier release's blocks of 32 labels; each block counts as 32 labels now."""
    _, _, ratios, count = state.blocks[1]
    products = LOT * (ratios - count) / (2.0 * FARTHER)
    return replace(state.move_mean(), blocks=(), products=products, counted=LOT * count)


def _fit(state: Dependence, at: float) -> Dependence:
    """Fit the rhythm by least squares, shrunk by the part of chance; flat if chance alone may explain it."""
    count, c, s, cc, cs, x, xc, xs = state.moments
    if not count:
        return replace(state, fitted_at=at)
    import numpy as np  # noqa: PLC0415 - 12 MB, where a day has ended

    matrix = np.array([[count, c, s], [c, cc, cs], [s, cs, count - cc]]) + 1e-6 * np.eye(3)
    level, cosine, sine = (float(value) for value in np.linalg.solve(matrix, np.array([x, xc, xs])))
    mean = x / count
    statistic = (level * x + cosine * xc + sine * xs - mean * x) / state.whole.variance
    rhythm = FLAT
    if x >= RHYTHM_WRONG_MIN and statistic > (RHYTHM_ENDS if state.has_rhythm else RHYTHM_BEGINS):
        kept = (statistic - 2.0) / statistic
        rhythm = (1.0 + kept * (level / mean - 1.0), kept * cosine / mean, kept * sine / mean)
    return replace(
        state,
        fitted_at=at,
        rhythm=rhythm,
        had_rhythm=state.had_rhythm or rhythm != FLAT,
        moments=tuple([FADING * moment for moment in state.moments]),
    )
