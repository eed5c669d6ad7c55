"""Learns how much each part of a scope score counts, from classes that were held out as if they were out of scope.

That is the world which is scored, made of the training prompts alone: near misses of one field. A logistic model tells
prompts of the other classes, held back, from those of the classes held out. Its weights are shrunk towards usual ones
(ridge regression with a prior mean), since few classes say little.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router.scope_parts import ScoreParts

Numbers = npt.NDArray[np.float64]

PARTS = ("echo", "first", "nearest", "excess", "typical", "extent")
USUAL: Numbers = np.array([1.0, 0.15, 0.25, 1.0, 0.2, 0.0])
"""Weights of the parts, each as large as it varies in scope: where nothing is learned, and towards which it is shrunk.
Only of the margin of other traffic what is unusual counts, as large as the first margin varies."""
SHRINKING = 0.1
SIZE_MIN = 0.01
FAR = 6.0
"""Sizes from the middle that a part counts at most while weights are learned."""
USUAL_SHARE = 0.9


class Scale(NamedTuple):
    """The usual margin of other traffic, and the middles and sizes of the parts, of prompts in scope."""

    usual: float
    middles: Numbers
    sizes: Numbers


def measure_scale(inside: Sequence[ScoreParts]) -> Scale:
    """Measure the parts of prompts in scope."""
    usual = float(np.quantile([parts.background[0] for parts in inside], USUAL_SHARE))
    values = _table(inside, usual)
    sizes = np.maximum(values.std(0), 1e-6)
    middles, excess = np.median(values, 0), PARTS.index("excess")
    middles[excess], sizes[excess] = 0.0, sizes[PARTS.index("first")]
    return Scale(usual, middles, sizes)


def learn_weights(folds: Sequence[tuple[Sequence[ScoreParts], Sequence[ScoreParts]]]) -> Numbers:
    """The weights by which prompts in scope are told from those of classes held out, fold by fold."""
    if not folds:
        return USUAL
    tables, answers, counts = [], [], []
    for inside, outside in folds:
        scale = measure_scale(inside)
        for parts, answer in ((inside, 1.0), (outside, 0.0)):
            tables.append(np.clip((_table(parts, scale.usual) - scale.middles) / scale.sizes, -FAR, FAR))
            answers.append(np.full(len(parts), answer))
            counts.append(np.full(len(parts), 0.5 / len(folds) / len(parts)))
    table, is_inside, count = np.concatenate(tables), np.concatenate(answers), np.concatenate(counts)
    usual: Numbers = table @ USUAL
    size, middle = _fit_logistic(usual[:, None], is_inside, count, np.zeros(len(table)), 0.0).tolist()
    size = max(size, SIZE_MIN)
    learned = _fit_logistic(table, is_inside, count, usual * size + middle, SHRINKING)[:-1]
    return np.asarray(USUAL * size + learned)


def _table(texts: Sequence[ScoreParts], usual: float) -> Numbers:
    """A row a text, of the parts of its whole."""
    return np.array(
        [
            [-max(0.0, parts.background[0] - usual) if name == "excess" else getattr(parts, name)[0] for name in PARTS]
            for parts in texts
        ]
    )


def _fit_logistic(table: Numbers, answer: Numbers, count: Numbers, offset: Numbers, shrinking: float) -> Numbers:
    """The weights of a logistic model beside an offset, and its constant last, by Newton's method."""
    rows = np.hstack((table, np.ones((len(table), 1))))
    penalty = np.append(np.full(table.shape[1], max(shrinking, 1e-6)), 1e-6)
    weights = np.zeros(rows.shape[1])
    for _ in range(25):
        likely = 1 / (1 + np.exp(-np.clip(rows @ weights + offset, -30, 30)))
        slope = rows.T @ (count * (likely - answer)) + penalty * weights
        curve = (rows * (count * np.maximum(likely * (1 - likely), 1e-6))[:, None]).T @ rows + np.diag(penalty)
        weights -= np.linalg.solve(curve, slope)
    return weights
