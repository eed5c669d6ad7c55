"""Bets that begin again at every observation, so that a change is found whenever it comes (Shiryaev-Roberts).

Before each observation 1 is added to a bet's sum S, and what comes multiplies it by a factor L: S becomes (S + 1)·L.
While no factor is above 1 on average, given all that was seen before, S is at most the number of observations on
average, whenever one stops. By Markov's inequality the mean of several such sums reaches N/alpha within N
observations with probability at most alpha. The observations may depend on each other.

J. Shin, A. Ramdas, A. Rinaldo, "E-detectors: a nonparametric framework for sequential change detection", 2022, arXiv
2203.03532.

Sums are kept as log(S + 1): 0 at the start, and finite whatever comes.
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
    """Since when each bet has been winning: its gain since it was last at its lowest, and after which observation.

    `observed` counts observations, with the one that brought these gains. The place is the likeliest one at which the
    bet's alternative began (E. S. Page, "Continuous inspection schemes", 1954).
    """
    risen = [rise + gain for rise, gain in zip(rises, gains, strict=True)]
    return (
        tuple([max(0.0, rise) for rise in risen]),
        tuple([at if rise > 0.0 else observed for at, rise in zip(begun, risen, strict=True)]),
    )


def find_change(logs: tuple[float, ...], begun: tuple[int, ...], weights: tuple[float, ...]) -> int:
    """The observation after which the change likeliest began, by the bet that leads."""
    return begun[find_leader(logs, weights)]


def find_leader(logs: tuple[float, ...], weights: tuple[float, ...]) -> int:
    """The place of the bet that leads."""
    return max(range(len(logs)), key=lambda at: logs[at] + log(weights[at]))


def find_threshold(labels: float, alpha: float) -> float:
    """The logarithm that is reached within `labels` observations with probability at most alpha: log(N/alpha).

    Raises ValueError if there are none, or if alpha is not a probability between 0 and 1.
    """
    if not (labels >= 1.0 and math.isfinite(labels) and 0.0 < alpha < 1.0):
        raise ValueError(f"{labels} labels at alpha {alpha}: at least 1 label, and an alpha between 0 and 1.")
    return log(labels / alpha)
