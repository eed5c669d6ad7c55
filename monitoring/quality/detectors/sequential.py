"""A test of a bounded mean, valid at any time, that bets against the null hypothesis.

Each test has a capital of 1 and stakes fixed shares of it on every difference in [-1, 1]. While the null hypothesis is
true, no way of betting makes money on average. By Ville's inequality the capital then ever reaches 1/alpha with
probability at most alpha, however often one looks and whenever one stops. The capital is called the e-value.

I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", 2021, arXiv 2010.09686.

Pure functions over frozen data; a test's size does not grow. The claim holds if the mean of each difference, given the
earlier ones, satisfies the null hypothesis. The differences need not be independent.
"""

from __future__ import annotations

import math
from math import log1p

import msgspec

from monitoring.quality.detectors.rising_errors import Side

# Shares of the largest stake, which could lose all, and the part of the capital behind each. Small stakes find small
# shifts in noisy differences, large stakes find large shifts in quiet ones (docs/measurements.md).
STAKES = (0.08, 0.3, 0.6, 0.9)
WEIGHTS = (0.1, 0.3, 0.3, 0.3)
LOG_OF_STAKES = math.log(len(STAKES))
MARGIN_MAX = 0.9
E_VALUE_MAX = 1e12
START = (math.log(WEIGHTS[0]), math.log(WEIGHTS[1]), math.log(WEIGHTS[2]), math.log(WEIGHTS[3]))


class Bets(msgspec.Struct, frozen=True, kw_only=True):
    """A test and its state. A round trip through JSON changes no bit.

    `side` is what a rejection shows: the mean lies above the margin, or below it. `observed` counts differences,
    `total` is their sum. `log_capitals` are the natural logarithms of the parts of the capital, one for each stake.
    `log_e_max` is the largest logarithm of the e-value so far.
    """

    side: Side
    margin: float
    observed: int = 0
    total: float = 0.0
    log_capitals: tuple[float, float, float, float] = START
    log_e_max: float = 0.0


def start(side: Side, margin: float) -> Bets:
    """A test of the null hypothesis "the mean is at most the margin" (`above`) or "at least the margin" (`below`).

    Raises ValueError if the margin is not between -0.9 and 0.9.
    """
    if not -MARGIN_MAX <= margin <= MARGIN_MAX:
        raise ValueError(f"The margin is {margin}: it must lie within -{MARGIN_MAX} and {MARGIN_MAX}.")
    return Bets(side=side, margin=float(margin))


def observe(bets: Bets, difference: float, times: int = 1) -> Bets:
    """The test after a difference in [-1, 1] that came `times` times in a row. Raises ValueError for other values."""
    if not -1.0 <= difference <= 1.0 or times < 1:
        raise ValueError(f"A difference of {difference}, {times} times: it must lie within -1 and 1, at least once.")
    margin = bets.margin
    won = (difference - margin) / (1 + margin) if bets.side == "above" else (margin - difference) / (1 - margin)
    first, second, third, fourth = bets.log_capitals
    # Written out, because a gateway does it a dozen times a request.
    capitals = (
        first + times * log1p(STAKES[0] * won),
        second + times * log1p(STAKES[1] * won),
        third + times * log1p(STAKES[2] * won),
        fourth + times * log1p(STAKES[3] * won),
    )
    # All stakes win or all lose. So in a row of equal differences the largest e-value is at its end or before it.
    log_e_max = bets.log_e_max
    if won > 0 and max(capitals) + LOG_OF_STAKES > log_e_max:
        log_e_max = max(log_e_max, _log_of_sum(capitals))
    return Bets(
        side=bets.side,
        margin=margin,
        observed=bets.observed + times,
        total=bets.total + times * difference,
        log_capitals=capitals,
        log_e_max=log_e_max,
    )


def log_e(bets: Bets) -> float:
    """The natural logarithm of the present e-value: 0 at the start, never infinite."""
    return _log_of_sum(bets.log_capitals)


def round_e_value(log_of_e: float) -> float:
    """An e-value for people and JSON, from its natural logarithm: four digits, at most 1e12."""
    return float(f"{min(math.exp(min(log_of_e, 700.0)), E_VALUE_MAX):.4g}")


def find_mean(bets: Bets) -> float | None:
    """The mean of the differences so far; None before the first."""
    return bets.total / bets.observed if bets.observed else None


def _log_of_sum(logs: tuple[float, ...]) -> float:
    largest = max(logs)
    return largest + math.log(sum([math.exp(value - largest) for value in logs]))
