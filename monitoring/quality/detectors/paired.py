"""A detector of a version that gets worse than another on the same inputs: `rising_errors.py` for paired differences.

A difference D in [-1, 1] is the version's badness less the other's on one input. Shares of the largest stake that could
lose all are bet on D above the margin d0, each with the factor 1 + stake·(D - d0)/(1 + d0), which is at most 1 on
average while the expected difference, given all that came before, is at most d0. The bets begin again at every pair,
so that P(any alarm within N pairs) is at most alpha at a threshold of log(N/alpha).

I. Waudby-Smith, A. Ramdas, "Estimating means of bounded random variables by betting", 2021, arXiv 2010.09686, for the
bets; J. Shin, A. Ramdas, A. Rinaldo, "E-detectors", 2022, arXiv 2203.03532, for beginning them again.
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
    """A detector over pairs and its state. JSON gives back the same, to the last bit.

    `side` is what its evidence is for: the mean difference lies above the margin, or below it. `observed` counts pairs,
    `logs` are log(S + 1) of each stake. `rises` and `begun` tell since when each stake has been winning.
    """

    margin: float
    side: Side
    observed: int = 0
    logs: tuple[float, ...] = NOTHING
    rises: tuple[float, ...] = NOTHING
    begun: tuple[int, ...] = (0, 0, 0, 0)


def start(margin: float, side: Side = "above") -> PairedDetector:
    """A detector of a mean difference that rises over the margin (`above`), or that has come down under it (`below`).

    Raises ValueError if the margin is not within -0.9 and 0.9.
    """
    if not -MARGIN_MAX <= margin <= MARGIN_MAX:
        raise ValueError(f"The margin is {margin}: it must lie within -{MARGIN_MAX} and {MARGIN_MAX}.")
    return PairedDetector(margin=float(margin), side=side)


def observe(detector: PairedDetector, difference: float, exponent: float = 1.0) -> PairedDetector:
    """The detector after a pair, whose factors have this exponent (`dependence.py`).

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
    """The logarithm of the sum of all bets: -700 before the first pair, never infinite.

    What is told as an e-value is no such thing: its mean while nothing is wrong is up to the number of pairs.
    """
    return shiryaev_roberts.log_of_mean(detector.logs, WEIGHTS)


def find_change(detector: PairedDetector) -> int:
    """The number of pairs after which the change likeliest began, by the stake that leads."""
    return shiryaev_roberts.find_change(detector.logs, detector.begun, WEIGHTS)
