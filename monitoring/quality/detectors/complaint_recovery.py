"""The reverse test of `complaints.py`: it finds that complaints come down. It begins again all the time
(`restarts.py`).

It refutes that there are still 1.5 times as many complaints as mu, those that are expected at most. While there are, a
bet that c complaints come where mu were expected is (1/1.5)^c·exp(0.5·mu), which is at most 1 on average. Bets begin as
complaints are expected, one for each: with mu more expected the sum S becomes (S + 2)·exp(0.5·mu) - 2, and S/1.5 with
each complaint. So S is on average at most the number of complaints expected, and reaches N at most once in N of them:
how long there were too many before does not count.

Only requests from `begins` on, a tick, are looked at: what is heard of those before says nothing of a recovery.

Sums are kept as log(S + 1). Pure functions over frozen data.
"""

from __future__ import annotations

from math import exp, expm1, log, log1p

import msgspec

from monitoring.quality.detectors.restarts import EXPONENT_MAX, LOG_FLOOR

RATIO = 1.5
LOG_RATIO = log(RATIO)


class Fewer(msgspec.Struct, frozen=True, array_like=True):
    """The test of requests from a tick on, and how it stands: `log` is log(S + 1)."""

    begins: int
    log: float = 0.0


def take_expected(fewer: Fewer, mu: float) -> Fewer:
    """The test after so many complaints were expected at most."""
    grown = fewer.log + log1p(exp(-fewer.log)) + (RATIO - 1.0) * mu
    return Fewer(fewer.begins, grown + log1p(-exp(-grown)))


def take_complaint(fewer: Fewer) -> Fewer:
    """The test after a complaint."""
    return Fewer(fewer.begins, max(0.0, fewer.log + log1p((RATIO - 1.0) * exp(-fewer.log)) - LOG_RATIO))


def log_e(fewer: Fewer) -> float:
    """The natural logarithm of the sum of all bets: -700 before anything was expected, never infinite."""
    if fewer.log >= EXPONENT_MAX:
        return fewer.log
    found = expm1(fewer.log)
    return log(found) if found > 0.0 else LOG_FLOOR
