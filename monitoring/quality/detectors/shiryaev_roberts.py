"""Bets that begin again at every observation, to find a change at any time (Shiryaev-Roberts).

Before each observation the bet adds 1 to its sum S. The observation then multiplies the sum by a factor L: S becomes (S
+ 1)·L. While the mean of each factor, given all earlier observations, is at most 1, the mean of S is at most the number
of observations. That holds for every stopping time. By Markov's inequality the mean of several such sums reaches
N/alpha within N observations with probability at most alpha. The observations may depend on each other.

J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2022, arXiv
2203.03532.

Sums are kept as log(S + 1): 0 at the start, and always finite.
"""

from __future__ import annotations

import math
from math import exp, expm1, log, log1p

LOG_FLOOR = -700.0
"""The value in place of the logarithm of 0."""
EXPONENT_MAX = 700.0


def grow(logs: tuple[float, ...], gains: tuple[float, ...]) -> tuple[float, ...]:
    """The sums after an observation, one for each bet, as log(S + 1). `gains` are the logarithms of the factors."""
    return tuple(
        [
            a + log1p(exp(-a)) if (a := log_sum + gain) > 0.0 else log1p(exp(a))
            for log_sum, gain in zip(logs, gains, strict=True)
        ]
    )


def log_of_mean(logs: tuple[float, ...], weights: tuple[float, ...]) -> float:
    """The natural logarithm of the weighted mean of the sums: at least -700, never infinite."""
    largest = max(logs)
    if largest < EXPONENT_MAX:
        mean = sum([weight * expm1(value) for value, weight in zip(logs, weights, strict=True)])
        return log(mean) if mean > 0.0 else LOG_FLOOR
    return largest + log(sum([w * exp(value - largest) for value, w in zip(logs, weights, strict=True)]))


def find_runs(
    rises: tuple[float, ...], begun: tuple[int, ...], gains: tuple[float, ...], observed: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """The gain of each bet since it was last at its lowest, and the number of observations by then.

    `observed` includes the observation that brought these gains. The lowest point is the most likely beginning of the
    bet's alternative (E. S. Page, "Continuous inspection schemes", 1954).
    """
    risen = [rise + gain for rise, gain in zip(rises, gains, strict=True)]
    return (
        tuple([max(0.0, rise) for rise in risen]),
        tuple([at if rise > 0.0 else observed for at, rise in zip(begun, risen, strict=True)]),
    )


def find_change(logs: tuple[float, ...], begun: tuple[int, ...], weights: tuple[float, ...]) -> int:
    """The number of observations after which the change most likely began, by the leading bet."""
    return begun[find_leader(logs, weights)]


def find_leader(logs: tuple[float, ...], weights: tuple[float, ...]) -> int:
    """The index of the leading bet."""
    return max(range(len(logs)), key=lambda at: logs[at] + log(weights[at]))


def find_threshold(labels: float, alpha: float) -> float:
    """The log threshold that `labels` observations reach with probability at most alpha: log(N/alpha).

    Raises ValueError if `labels` is below 1 or infinite, or alpha is not between 0 and 1.
    """
    if not (labels >= 1.0 and math.isfinite(labels) and 0.0 < alpha < 1.0):
        raise ValueError(f"{labels} labels at alpha {alpha}: at least 1 label, and an alpha between 0 and 1.")
    return log(labels / alpha)
