"""The figures of an evaluation: shares with their intervals, paired differences, tests. Pure, and seeded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

Z_95 = 1.959963984540054
BOOTSTRAP_DRAWS = 10_000
BISECTIONS = 60


@dataclass(frozen=True, slots=True)
class Share:
    """A share of rows, with its 95% interval (Wilson's). All None where there are no rows."""

    right: int
    of: int
    share: float | None
    low: float | None
    high: float | None


def share_of(right: int, of: int) -> Share:
    """`right` of `of` rows."""
    if of == 0:
        return Share(right, of, None, None, None)
    p = right / of
    middle = (p + Z_95**2 / (2 * of)) / (1 + Z_95**2 / of)
    half = Z_95 * math.sqrt(p * (1 - p) / of + Z_95**2 / (4 * of * of)) / (1 + Z_95**2 / of)
    low = 0.0 if right == 0 else max(0.0, middle - half)
    return Share(right, of, p, low, 1.0 if right == of else min(1.0, middle + half))


@dataclass(frozen=True, slots=True)
class ClassFigures:
    """How well one class was told. None where it can't be: no row of it, or no answer that says it."""

    rows: int
    answered: int
    hits: int
    precision: float | None
    recall: float | None
    f1: float | None


def by_class(pairs: Sequence[tuple[str, str | None]], names: Sequence[str]) -> dict[str, ClassFigures]:
    """Precision, recall and F1 of each class, from pairs of what is expected and what was answered."""
    found = {}
    for name in names:
        rows = sum(expected == name for expected, _ in pairs)
        answered = sum(told == name for _, told in pairs)
        hits = sum(expected == told == name for expected, told in pairs)
        f1 = 2 * hits / (rows + answered) if rows + answered else None
        found[name] = ClassFigures(
            rows, answered, hits, hits / answered if answered else None, hits / rows if rows else None, f1
        )
    return found


def macro_f1(found: dict[str, ClassFigures]) -> float | None:
    """The mean F1 of the classes that have rows."""
    values = [one.f1 or 0.0 for one in found.values() if one.rows]
    return math.fsum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Paired:
    """Two arms on the same rows: which of them alone was right, and how often."""

    rows: int
    both: int
    first_only: int
    second_only: int

    @property
    def difference(self) -> float | None:
        """How much more often the first one was right, from -1 to 1; None without rows."""
        return (self.first_only - self.second_only) / self.rows if self.rows else None


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """The pairs of two arms' rows, in the same order."""
    pairs = list(zip(first, second, strict=True))
    return Paired(
        len(pairs),
        sum(a and b for a, b in pairs),
        sum(a and not b for a, b in pairs),
        sum(b and not a for a, b in pairs),
    )


def lower_bound(found: Paired, seed: int, confidence: float = 0.95) -> float | None:
    """The one-sided lower bound of the difference: the lower one of the bootstrap's and of the score bound.

    The bootstrap alone is too hopeful where the arms rarely differ; where they never do it would be 0.
    """
    by_bootstrap, by_score = bootstrap_bound(found, seed, confidence), score_bound(found, confidence)
    return None if by_bootstrap is None or by_score is None else min(by_bootstrap, by_score)


def score_bound(found: Paired, confidence: float = 0.95) -> float | None:
    """The one-sided lower bound by the score test (Tango 1998): the least difference that it does not reject."""
    if not found.rows:
        return None
    z = NormalDist().inv_cdf(confidence)
    low, high = -1.0, (found.first_only - found.second_only) / found.rows
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(found, middle) > z else (low, middle)
    return low


def _score(found: Paired, difference: float) -> float:
    """How many standard errors the difference is over this one, were this one true."""
    rows, first, second = found.rows, found.first_only, found.second_only
    b = (2 * rows - first + second) * difference - first - second
    c = -second * difference * (1.0 - difference)
    second_share = (math.sqrt(max(0.0, b * b - 8 * rows * c)) - b) / (4 * rows)
    variance = rows * (2 * second_share + difference * (1.0 - difference))
    over = first - second - rows * difference
    return over / math.sqrt(variance) if variance > 0.0 else math.copysign(math.inf, over)


def bootstrap_bound(found: Paired, seed: int, confidence: float = 0.95) -> float | None:
    """The one-sided lower bound of the difference, by the paired bootstrap: its quantile over resampled rows.

    Rows drawn anew, each as often as chance has it, are draws of how many favour either arm.
    """
    if not found.rows:
        return None
    shares = np.array([found.first_only, found.second_only, found.rows - found.first_only - found.second_only])
    drawn = np.random.default_rng(seed).multinomial(found.rows, shares / found.rows, size=BOOTSTRAP_DRAWS)
    return float(np.quantile((drawn[:, 0] - drawn[:, 1]) / found.rows, 1.0 - confidence, method="lower"))


def mcnemar(first_only: int, second_only: int) -> float:
    """The exact two-sided p-value that both arms err equally often: only rows that tell them apart count."""
    total, least = first_only + second_only, min(first_only, second_only)
    if total == 0:
        return 1.0
    logs = [math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) for k in range(least + 1)]
    tail = math.fsum(math.exp(one - total * math.log(2.0)) for one in logs)
    return min(1.0, 2.0 * tail)


def holm(p_values: Sequence[float]) -> list[float]:
    """The same p-values, adjusted so that any false finding among all of them is as rare as each said alone (Holm)."""
    order = sorted(range(len(p_values)), key=lambda at: p_values[at])
    adjusted, least = [0.0] * len(p_values), 0.0
    for rank, at in enumerate(order):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = least
    return adjusted


def quantile(values: Sequence[float], part: float) -> float | None:
    """The value below which `part` of them lie, between neighbours in proportion; None of nothing."""
    if not values:
        return None
    ordered, place = sorted(values), part * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])
