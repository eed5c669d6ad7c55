"""The reverse test of `complaints.py`: it finds that complaints have decreased. Its bets begin again all the time
(`shiryaev_roberts.py`).

It refutes that there are still 1.5 times as many complaints as mu, the number expected on average. Its bet on a day is
that of `complaints.py` in the other direction: (1/1.5)^c·((k + 1.5·mu)/(k + mu))^(c + k). The mean of this bet is at
most 1 while there are so many. Each expected complaint adds a stake of 1, which wins what the bet wins from then on. So
the mean of the sum S is at most the number of complaints expected. S reaches N at most once in N of them. The length of
the bad time before does not matter.

Only requests from tick `begins` on count: complaints about earlier ones say nothing about a recovery.

Sums are kept as log(S + 1). Pure functions over frozen data.
"""

from __future__ import annotations

from math import exp, expm1, log, log1p

import msgspec

from monitoring.quality.detectors.complaint_delays import Delays
from monitoring.quality.detectors.shiryaev_roberts import EXPONENT_MAX, LOG_FLOOR

RATIO = 1.5
LOG_RATIO = log(RATIO)


class Fewer(msgspec.Struct, frozen=True, array_like=True):
    """The test of requests from tick `begins` on, and its state.

    `log` is log(S + 1). `seen` and `expected` are today's complaints: those that came, and those expected.
    """

    begins: int
    log: float = 0.0
    seen: int = 0
    expected: float = 0.0


def take_expected(fewer: Fewer, mu: float, learned: Delays) -> Fewer:
    """The test after `mu` more complaints were expected: half of their stake is added before, half after."""
    won = _today(fewer.seen, fewer.expected + mu, learned) - _today(fewer.seen, fewer.expected, learned)
    grown = fewer.log + won + log1p((mu / 2 - 1.0) * exp(-fewer.log))
    larger, smaller = max(grown, 0.0), min(grown, 0.0)
    whole = larger + log1p(exp(smaller - larger) + mu / 2 * exp(-larger))
    return Fewer(fewer.begins, whole, fewer.seen, fewer.expected + mu)


def take_complaint(fewer: Fewer, learned: Delays) -> Fewer:
    """The test after a complaint."""
    won = _today(fewer.seen + 1, fewer.expected, learned) - _today(fewer.seen, fewer.expected, learned)
    left = max(0.0, fewer.log + won + log1p(expm1(-won) * exp(-fewer.log)))
    return Fewer(fewer.begins, left, fewer.seen + 1, fewer.expected)


def end_day(fewer: Fewer) -> Fewer:
    """The test at the end of a day."""
    return Fewer(fewer.begins, fewer.log)


def log_e(fewer: Fewer) -> float:
    """The natural logarithm of the sum of all bets: -700 before anything was expected, never infinite."""
    if fewer.log >= EXPONENT_MAX:
        return fewer.log
    total = expm1(fewer.log)
    return log(total) if total > 0.0 else LOG_FLOOR


def _today(complaints: int, expected: float, learned: Delays) -> float:
    """The logarithm of the gain of today's bet."""
    count, mu, shape = complaints / learned.dispersion, expected / learned.dispersion, learned.day_shape
    return (count + shape) * log1p((RATIO - 1.0) * mu / (shape + mu)) - count * LOG_RATIO
