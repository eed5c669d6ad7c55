"""The extrapolation of a learning curve: the share of wrong answers at more examples, with an honest interval. Pure.

The curve is a shifted inverse power law, `wrong(n) = c + a (n + k)^-b`. Few points can't determine its parameters, so
there is no single fit. Each shape of a grid (b, c, k) is weighed by its likelihood, with `a` integrated out. Points are
measured on the same rows, so their errors are correlated: the weights use the whole covariance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
POWERS = np.linspace(0.05, 1.5, 30)
"""The speeds of learning, b."""
SHIFTS = np.r_[0.0, np.geomspace(0.05, 2.0, 8)]
"""The shifts, k, as parts of the greatest size: the first examples of a class teach less than the next ones."""
FLOORS = np.linspace(0.0, 0.95, 20)
"""The floors (shares that stay wrong), c, as parts of the last point."""
FLOOR_DECAY = 2.0
"""The prior weight against a high floor: flat beginnings look like floors, but seldom are."""
MISFIT = 0.02
"""The relative error of the law itself for each doubling, added to the errors of measuring."""
DRAWS = 4000
LEVEL = 0.95
FACTOR_MAX = 16.0
"""The greatest size of an extrapolation, as a multiple of the greatest measured one."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A measured curve: `sizes` of the training part, ascending, and the held-out rows that were wrong at each size.

    `wrong` has a line for each size and a column for each group of held-out rows: the group's wrong part.
    """

    sizes: tuple[int, ...]
    wrong: Numbers

    @property
    def shares(self) -> Numbers:
        """The share of wrong answers at each size."""
        shares: Numbers = self.wrong.mean(axis=1)
        return shares


@dataclass(frozen=True, slots=True)
class Extrapolated:
    """The share of right answers at this number of examples, with its 95% interval."""

    rows: int
    right: float
    low: float
    high: float


def extrapolate(curve: Curve, sizes: Sequence[int], seed: int = 0) -> list[Extrapolated]:
    """The share of right answers at each of these sizes, which are at most FACTOR_MAX times the last point."""
    measured, shares = np.array(curve.sizes, np.float64), curve.shares
    last = float(measured[-1])
    assert max(sizes) <= FACTOR_MAX * last * 1.001, "the curve says nothing of sizes so far away"
    power, shift, floor = (
        part.ravel() for part in np.meshgrid(POWERS, SHIFTS * last, FLOORS * shares[-1], indexing="ij")
    )
    whiten = np.linalg.inv(np.linalg.cholesky(_covariance(curve, measured, shares)))
    shape = whiten @ _fall(measured[:, None], last, power, shift)
    target = whiten @ (shares[:, None] - floor)
    square = (shape**2).sum(axis=0)
    height = (shape * target).sum(axis=0) / square
    residual = ((target - height * shape) ** 2).sum(axis=0)
    fit = -0.5 * residual - 0.5 * np.log(square) - FLOOR_DECAY * floor / max(shares[-1], 1e-9)
    fit[height < 0] = -np.inf
    weights = np.exp(fit - fit.max())
    generator = np.random.default_rng(seed)
    draws = generator.choice(len(weights), DRAWS, p=weights / weights.sum())
    noise = generator.standard_normal(DRAWS)
    results = []
    for size in sizes:
        fall = _fall(float(size), last, power, shift)[draws]
        mean = floor[draws] + height[draws] * fall
        misfit = MISFIT * mean * max(0.0, np.log2(size / last))
        wrong = np.clip(mean + noise * np.sqrt(fall**2 / square[draws] + misfit**2), 0.0, 1.0)
        low, middle, high = np.quantile(wrong, [(1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2])
        results.append(Extrapolated(int(size), 1 - float(middle), 1 - float(high), 1 - float(low)))
    return results


def _fall(size: Numbers | float, last: float, power: Numbers, shift: Numbers) -> Numbers:
    """The error above the floor at a size, as a multiple of that at the last point."""
    fall: Numbers = ((size + shift) / (last + shift)) ** -power
    return fall


def _covariance(curve: Curve, measured: Numbers, shares: Numbers) -> Numbers:
    """The covariance of the points: from measuring them on the same rows, and from the law's own misfit."""
    rows = curve.wrong.shape[1]
    misfit = MISFIT * shares * (np.log2(measured[-1] / measured) + 0.5)
    covariance: Numbers = np.cov(curve.wrong) / rows + np.diag(misfit**2 + 0.25 / rows**2)
    return covariance
