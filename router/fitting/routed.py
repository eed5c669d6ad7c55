"""The result of routing by confidence: the share of wrong answers at each share of requests that go to general.

Each row is judged by a model that has not seen it. The rows are split into FOLDS parts; the weights for each come from
the other parts. The least sure share of each part goes to general.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from router.fitting.confidence import FOLDS, CalibrationRow, measure_rows, weigh

STEPS = 20


class Point(NamedTuple):
    """Shares of all requests if `general_share` of them go to general. `adapter_wrong_share`: the adapter answers
    wrong. `wrong_share`: the chosen arm answers wrong (None: general's answers are not known)."""

    general_share: float
    adapter_wrong_share: float
    wrong_share: float | None


def route_rows(
    rows: Sequence[CalibrationRow], general_right: Sequence[bool] | None, seed: int, tokens: int | None = None
) -> list[Point]:
    """Send a rising share of the requests to general, in steps of 5%. Raises FittingError as `measure_rows` does."""
    measured = measure_rows(rows, tokens)
    count = len(rows)
    fold = np.empty(count, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(count)] = np.arange(count) % FOLDS
    general = None if general_right is None else np.array(general_right, dtype=np.bool_)
    ranks = np.empty(count)
    for at in range(FOLDS):
        held_out = np.flatnonzero(fold == at)
        weights, bias = weigh(measured.matrix[fold != at], measured.right[fold != at])
        scores = np.where(measured.silent[held_out], -np.inf, measured.matrix[held_out] @ weights + bias)
        order = np.argsort(scores, kind="stable")
        ranks[held_out[order]] = (np.arange(len(held_out)) + 0.5) / len(held_out)
    points = []
    for step in range(STEPS + 1):
        goes = ranks < step / STEPS
        kept_wrong = ~goes & ~measured.right
        wrong = None if general is None else float((kept_wrong | (goes & ~general)).mean())
        points.append(Point(float(goes.mean()), float(kept_wrong.mean()), wrong))
    return points
