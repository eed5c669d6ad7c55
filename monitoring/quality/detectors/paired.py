"""A detector of a version that becomes worse than another on the same inputs, as `rising_errors.py` for pairs.

A difference D in [-1, 1] is the version's badness less the other's on one input. The detector bets that D is above the
margin d0. Each stake is a share of the largest one, which could lose all. The factor is 1 + stake·(D - d0)/(1 + d0).
Its mean is at most 1 while the expected difference, given all earlier pairs, is at most d0. New bets begin at every
pair, so P(any alarm within N pairs) is at most alpha at a threshold of log(N/alpha).

I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", 2021, arXiv 2010.09686, for the
bets; J. Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2022, arXiv 2203.03532, for restarting them.
"""

from __future__ import annotations

from math import log1p

import msgspec

from monitoring.quality.detectors import shiryaev_roberts
from monitoring.quality.detectors.rising_errors import Side

STAKES = (0.08, 0.3, 0.6, 0.9)
WEIGHTS = (0.25, 0.25, 0.25, 0.25)
MARGIN_MAX = 0.9
NOTHING = (0.0, 0.0, 0.0, 0.0)


class PairedDetector(msgspec.Struct, frozen=True, kw_only=True):
    """A detector over pairs and its state. A round trip through JSON changes no bit.

    `side` is the claim: the mean difference lies above the margin, or below it. `observed` counts pairs, `logs` are
    log(S + 1) of each stake. `rises` are each stake's gains since its lowest point, `begun` the pairs by then.
    """

    margin: float
    side: Side
    observed: int = 0
    logs: tuple[float, ...] = NOTHING
    rises: tuple[float, ...] = NOTHING
    begun: tuple[int, ...] = (0, 0, 0, 0)


def start(margin: float, side: Side = "above") -> PairedDetector:
    """A detector of a mean difference that rises above the margin (`above`), or has fallen below it (`below`).

    Raises ValueError if the margin is not between -0.9 and 0.9.
    """
    if not -MARGIN_MAX <= margin <= MARGIN_MAX:
        raise ValueError(f"The margin is {margin}: it must lie within -{MARGIN_MAX} and {MARGIN_MAX}.")
    return PairedDetector(margin=float(margin), side=side)


def observe(detector: PairedDetector, difference: float, exponent: float = 1.0) -> PairedDetector:
    """The detector after a pair. `exponent` applies to its factors (`dependence.py`).

    Raises ValueError if the difference is not within -1 and 1.
    """
    if not -1.0 <= difference <= 1.0:
        raise ValueError(f"A difference of {difference}: it must lie within -1 and 1.")
    margin = detector.margin
    won = (difference - margin) / (1 + margin) if detector.side == "above" else (margin - difference) / (1 - margin)
    gained = tuple([exponent * log1p(stake * won) for stake in STAKES])
    logs = shiryaev_roberts.grow(detector.logs, gained)
    observed = detector.observed + 1
    rises, begun = shiryaev_roberts.find_runs(detector.rises, detector.begun, gained, observed)
    return PairedDetector(margin=margin, side=detector.side, observed=observed, logs=logs, rises=rises, begun=begun)


def log_e(detector: PairedDetector) -> float:
    """The logarithm of the mean of all bets: -700 before the first pair, never infinite.

    Reports call it an e-value, but strictly it is none: while nothing is wrong, its mean is up to the number of pairs.
    """
    return shiryaev_roberts.log_of_mean(detector.logs, WEIGHTS)


def find_change(detector: PairedDetector) -> int:
    """The number of pairs after which the change most likely began, by the leading stake."""
    return shiryaev_roberts.find_change(detector.logs, detector.begun, WEIGHTS)
