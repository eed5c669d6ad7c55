"""The figures of an evaluation: shares with their intervals, paired differences, tests. Pure, and seeded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from monitoring.intervals import find_share_interval, find_student_quantile

BOOTSTRAP_DRAWS = 10_000
BISECTIONS = 60
CONFIDENCE = 0.95
SURE = NormalDist().inv_cdf(CONFIDENCE)


@dataclass(frozen=True, slots=True)
class Share:
    """A share of rows, with its 95% interval (Wilson's). These are None without rows."""

    right: int
    of: int
    share: float | None
    low: float | None
    high: float | None


def share_of(right: int, of: int) -> Share:
    """The share of `right` rows among `of` rows."""
    if of == 0:
        return Share(right, of, None, None, None)
    return Share(right, of, right / of, *find_share_interval(right / of, of))


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """The recognition of one class. A figure is None if it is unknown: no row has the class, or no answer."""

    rows: int
    answered: int
    hits: int
    precision: float | None
    recall: float | None
    f1: float | None


def compute_class_figures(pairs: Sequence[tuple[str, str | None]], names: Sequence[str]) -> dict[str, ClassFigures]:
    """Precision, recall and F1 of each class, from pairs of the expected and the answered class."""
    figures = {}
    for name in names:
        rows = sum(expected == name for expected, _ in pairs)
        answered = sum(answer == name for _, answer in pairs)
        hits = sum(expected == answer == name for expected, answer in pairs)
        precision = hits / answered if answered else None
        recall = hits / rows if rows else None
        f1 = 2 * hits / (rows + answered) if rows + answered else None
        figures[name] = ClassFigures(rows, answered, hits, precision, recall, f1)
    return figures


def compute_macro_f1(figures: dict[str, ClassFigures]) -> float | None:
    """The mean F1 of the classes that have rows."""
    values = [of_class.f1 or 0.0 for of_class in figures.values() if of_class.rows]
    return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Paired:
    """Two arms on the same rows: the numbers of rows that both, or only one of them, got right.

    `groups` counts the groups of rows by size and net: the rows that only the first got right, minus those that only
    the second did. How much rows of a group agree decides how much they count. Without groups, each row is its own.
    """

    rows: int
    both: int
    first_only: int
    second_only: int
    groups: Counter[tuple[int, int]]

    @property
    def difference(self) -> float | None:
        """The first arm's share of right rows minus the second's, from -1 to 1; None without rows."""
        return (self.first_only - self.second_only) / self.rows if self.rows else None

    @property
    def spread(self) -> float:
        """The number of rows that count as one independent row: 1 or more.

        It corrects for a group's own part in the mean (Bell, McCaffrey 2002: CR2). Few or unequal groups estimate their
        variance badly, so Student's t of Kish's effective number replaces the normal quantile.
        """
        if not self.rows or self.groups.total() == self.rows:
            return 1.0
        mean = (self.first_only - self.second_only) / self.rows
        alone = self.first_only + self.second_only - self.rows * mean**2
        if alone <= 0 or self.groups.total() == 1:  # no evidence that rows of a group count as more than one
            return self.rows / self.groups.total()
        parts = [(count, net - mean * size, size / self.rows) for (size, net), count in self.groups.items()]
        grouped = math.fsum(count * over**2 / (1.0 - part) for count, over, part in parts)
        effective = 1.0 / math.fsum(count * part**2 for count, _, part in parts)
        wider = find_student_quantile(max(0.1, effective - 1.0), CONFIDENCE) / SURE
        return min(float(self.rows), max(1.0, grouped / alone * wider**2))


def pair_rows(first: Sequence[bool], second: Sequence[bool], groups: Sequence[int] | None = None) -> Paired:
    """Pair two arms' rows, in the same order, with the group of each; None: each row is its own group."""
    pairs = list(zip(first, second, strict=True))
    sizes: Counter[int] = Counter()
    nets: Counter[int] = Counter()
    for (a, b), group in zip(pairs, range(len(pairs)) if groups is None else groups, strict=True):
        sizes[group] += 1
        nets[group] += a - b
    return Paired(
        len(pairs),
        sum(a and b for a, b in pairs),
        sum(a and not b for a, b in pairs),
        sum(b and not a for a, b in pairs),
        Counter((size, nets[group]) for group, size in sizes.items()),
    )


class LowerBounds(NamedTuple):
    """One-sided lower bounds of a difference; None without rows.

    The bootstrap alone is too optimistic if the arms rarely differ; if they never do, it would be 0.
    """

    bootstrap: float | None
    score: float | None

    @property
    def lower(self) -> float | None:
        """The lower of both bounds."""
        return None if self.bootstrap is None or self.score is None else min(self.bootstrap, self.score)


def lower_bounds(pairs: Paired, seed: int) -> LowerBounds:
    """The lower bounds of the difference, by the bootstrap and by the score test."""
    return LowerBounds(bound_by_bootstrap(pairs, seed), score_bound(pairs))


def score_bound(pairs: Paired) -> float | None:
    """The one-sided lower bound by the score test (Tango 1998): the least difference that it does not reject."""
    if pairs.difference is None:
        return None
    rows, first, second = (count / pairs.spread for count in (pairs.rows, pairs.first_only, pairs.second_only))
    low, high = -1.0, pairs.difference
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(rows, first, second, middle) > SURE else (low, middle)
    return low


def _score(rows: float, first: float, second: float, difference: float) -> float:
    """The number of standard errors by which the observed difference exceeds `difference`, if that is the true one."""
    b = (2 * rows - first + second) * difference - first - second
    c = -second * difference * (1.0 - difference)
    second_share = (math.sqrt(max(0.0, b * b - 8 * rows * c)) - b) / (4 * rows)
    variance = rows * (2 * second_share + difference * (1.0 - difference))
    over = first - second - rows * difference
    return over / math.sqrt(variance) if variance > 0.0 else math.copysign(math.inf, over)


def bound_by_bootstrap(pairs: Paired, seed: int) -> float | None:
    """The one-sided lower bound of the difference, by the paired bootstrap: its quantile over resampled groups.

    Only the counts matter, so one multinomial draw is a resample; scipy's bootstrap would draw each group.
    """
    if not pairs.rows:
        return None
    kinds = sorted(pairs.groups)
    counts = np.array([pairs.groups[kind] for kind in kinds])
    sample = np.random.default_rng(seed).multinomial(counts.sum(), counts / counts.sum(), size=BOOTSTRAP_DRAWS)
    sizes, nets = (np.array(column) for column in zip(*kinds, strict=True))
    return float(np.quantile(sample @ nets / (sample @ sizes), 1.0 - CONFIDENCE, method="lower"))


def compute_mcnemar(pairs: Paired) -> float:
    """The exact two-sided p-value for equally frequent errors of both arms. Only groups in which the arms differ count.

    If each row is a group, it is McNemar's test, else the sign test of the groups' nets.
    """
    counts: Counter[int] = Counter()
    for (_, net), count in pairs.groups.items():
        counts[abs(net)] += count if net else 0
    shares = np.ones(1)
    for size, count in counts.items():
        if size:
            of_size = np.zeros(2 * size * count + 1)
            logs = np.array([math.lgamma(heads + 1) for heads in range(count + 1)])
            ways = logs[-1] - logs - logs[::-1]
            of_size[:: 2 * size] = np.exp(ways - count * math.log(2))
            shares = np.convolve(shares, of_size)
    beyond = abs(pairs.first_only - pairs.second_only)
    middle = (len(shares) - 1) // 2
    return min(1.0, 2.0 * float(shares[middle + beyond :].sum())) if beyond else 1.0


def adjust_by_holm(p_values: Sequence[float]) -> list[float]:
    """The p-values, adjusted by Holm: a false finding anywhere among them is as rare as for a single test."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(value) for value in adjusted]


def find_quantile(values: Sequence[float], part: float) -> float | None:
    """The value below which `part` of the values lie, interpolated between neighbours; None without values."""
    return float(np.quantile(values, part)) if values else None
