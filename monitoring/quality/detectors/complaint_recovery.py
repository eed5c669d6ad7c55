"""The reverse test of `complaints.py`: it finds that complaints come down. It begins again all the time
(`shiryaev_roberts.py`).

It refutes that there are still 1.5 times as many complaints as mu, the number expected on average. Its bet on a day is
that of `complaints.py` the other way round: (1/1.5)^c·((k + 1.5·mu)/(k + mu))^(c + k), which is at most 1 on average
while there are. As complaints are expected, one is put on it for each, and wins what the bet wins from then on. So the
sum S is on average at most the number of complaints expected, and reaches N at most once in N of them: how long there
were too many before does not count.

Only requests from `begins` on, a tick, are looked at: what is heard of those before says nothing of a recovery.

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
    """The test of requests from a tick on, and its state.

    `log` is log(S + 1). Today `seen` complaints came, where `expected` were expected.
    """

    begins: int
    log: float = 0.0
    seen: int = 0
    expected: float = 0.0


def take_expected(fewer: Fewer, mu: float, learned: Delays) -> Fewer:
    """The test after `mu` more complaints were expected: half of them are bet on before, half after."""
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
    """The logarithm of what the bet of today has won."""
    count, mu, shape = complaints / learned.dispersion, expected / learned.dispersion, learned.day_shape
    return (count + shape) * log1p((RATIO - 1.0) * mu / (shape + mu)) - count * LOG_RATIO
