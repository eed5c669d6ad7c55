"""Fits a confidence model, and calibrates its threshold, from held-out answers whose truth is known.

The weights and the thresholds come from the same rows, so no row may be scored by a model that has seen it. Five models
are fitted, each on four fifths of the rows. Each row is scored by the model that has not seen it (cross-fitting). Its
rank carries the score over to the scale of the model of all rows. Thresholds are calibrated on those scores; the model
of all rows serves. The usual alternative, fitting on some rows and calibrating on the rest, is exact by theorem and
keeps less. `python -m benchmarks.confidence` measures that this method errs no more often.

For one target the threshold is the lowest that is certified together with all stricter ones. A lower one only keeps
more answers, right and wrong. So thresholds are tested from the strictest on, each at the full 1 - delta, until one
fails (fixed-sequence testing: Angelopoulos et al., "Learn then Test", arXiv 2110.01052; Bates et al., arXiv
2101.02703). Each target has its own certificate, so one calibration serves any target; all at once hold less surely.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from router.confidence_model import (
    NAMES,
    ROWS_MAX,
    Calibration,
    ConfidenceFeatures,
    ConfidenceModel,
    compute_first_features,
    make_inputs,
)
from router.fitted import CALIBRATION_ROWS_MIN
from router.fitting.errors import FittingError

EACH_MIN = 10
"""Fewest right and fewest wrong answers to learn from. With fewer, answers are ordered by their logprobs alone."""
FOLDS = 5
DELTA_MAX = 0.5
TIE = 1e-12
"""Scores closer than this are equal: their last bits depend on the library that computes them."""
RANKS_EACH = 256
RANK_STEP = 1.01
"""Stored ranks of wrong answers: each of the first RANKS_EACH, then in steps of 1%."""
SIGNS = (1.0, 1.0, 1.0, 0.0, 1.0, -1.0)
"""The sign that each feature's weight may have, in the order of NAMES; 0: either."""
SURENESS = 3
"""Number of features that measure how sure the tokens are: the first ones of NAMES."""

Matrix = NDArray[np.float64]
Truth = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """An answer of the adapter that no training used: its evidence, and whether it was right.

    `seen` has the features of the whole answer if they were measured before. Then no logprobs are needed, unless the
    model judges first tokens.
    """

    logprobs: Sequence[float]
    scope: float | None
    contract_kept: bool | None
    right: bool
    seen: ConfidenceFeatures | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """Calibration rows as numbers; the columns of `matrix` are in the order of NAMES."""

    matrix: Matrix
    right: Truth
    scope_mean: float
    silent: Truth = field(repr=False)
    """Answers without logprobs: they score 0."""


def fit_confidence(
    rows: Sequence[CalibrationRow], seed: int, delta: float = 0.1, tokens: int | None = None
) -> ConfidenceModel:
    """Fit a model to these rows. Its thresholds hold with a confidence of 1 - delta.

    `tokens` is the number of an answer's first tokens that it will see, None for all. `seed` decides which rows are
    held out together. Rows that are all right can be certified. Raises FittingError if there are too few rows, if all
    are wrong, or if a number is not finite. Takes about 10 ms for 500 rows, plus reading their logprobs.

    The guarantee needs rows that are independent of each other: of equal requests, or paraphrases, pass only one
    (`draw_one_of_each`).
    """
    return fit_measured(measure_rows(rows, tokens), seed, delta, tokens)


def draw_one_of_each(groups: Sequence[object], seed: int) -> list[int]:
    """The places of the rows to keep, in order: one row of each group, drawn with the seed."""
    first: dict[object, int] = {}
    for at in np.random.default_rng(seed).permutation(len(groups)).tolist():
        first.setdefault(groups[at], at)
    return sorted(first.values())


def measure_rows(rows: Sequence[CalibrationRow], tokens: int | None = None) -> Measured:
    """Compute the rows' features. Raises FittingError if there are too few rows or a number is not finite."""
    if tokens is not None and tokens < 1:
        raise FittingError(f"An answer can't be judged by its first {tokens} tokens: give at least 1, or none for all.")
    if not rows:
        raise FittingError("There are no calibration rows: evaluate the version on held-out data first.")
    if not CALIBRATION_ROWS_MIN <= len(rows) <= ROWS_MAX:
        raise FittingError(
            f"There are {len(rows)} calibration rows: give {CALIBRATION_ROWS_MIN} at least and {ROWS_MAX} at most."
        )
    features_of_rows = [_features_of(row, number, tokens) for number, row in enumerate(rows, 1)]
    scopes = [features.scope for features in features_of_rows if features.scope is not None]
    scope_mean = math.fsum(scopes) / len(scopes) if scopes else 0.0
    return Measured(
        np.array([make_inputs(features, scope_mean) for features in features_of_rows], dtype=np.float64),
        np.array([row.right for row in rows], dtype=np.bool_),
        scope_mean,
        np.array([features.length == 0 for features in features_of_rows], dtype=np.bool_),
    )


def fit_measured(measured: Measured, seed: int, delta: float = 0.1, tokens: int | None = None) -> ConfidenceModel:
    """Do the same as `fit_confidence`, from features that were measured before. Raises FittingError."""
    if not 0.0 < delta <= DELTA_MAX:
        raise FittingError(f"delta is {delta:g}: give a probability above 0, at most {DELTA_MAX:g}.")
    if not measured.right.any():
        raise FittingError(
            f"All {len(measured.right)} answers are wrong, so none may be kept: see whether labels fit the answers, "
            "or send the task to general."
        )
    weights, bias = weigh(measured.matrix, measured.right)
    scores = compute_scores(measured, weights, bias)
    if _can_be_learned(measured.right):
        scores = _scores_by_others(measured, scores, seed)
    calibration = calibrate(scores, measured.right, delta)
    return ConfidenceModel(tuple(map(float, weights)), float(bias), measured.scope_mean, calibration, tokens)


def weigh(matrix: Matrix, right: Truth) -> tuple[Matrix, float]:
    """The weights and the bias of a logistic model. A feature whose weight would have the wrong sign is left out."""
    middle, spread = matrix.mean(axis=0), matrix.std(axis=0)
    used = [at for at in range(len(NAMES)) if spread[at] > 1e-9]
    scaled = (matrix - middle) / np.where(spread > 1e-9, spread, 1.0)
    standard, bias = np.zeros(len(NAMES)), math.log((right.sum() + 1) / ((~right).sum() + 1))
    if not _can_be_learned(right):
        sure = [at for at in used if at < SURENESS]
        standard[sure] = 1.0 / max(1, len(sure))
        used = []
    while used:
        coefficients, intercept = _logistic(scaled[:, used], right)
        against = [-SIGNS[at] * weight for at, weight in zip(used, coefficients, strict=True)]
        worst = int(np.argmax(against))
        if against[worst] <= 0.0:
            standard[used], bias = coefficients, intercept
            break
        del used[worst]
    weights = standard / np.where(spread > 1e-9, spread, 1.0)
    return weights, bias - float(weights @ middle)


def calibrate(scores: Matrix, right: Truth, delta: float) -> Calibration:
    """Thresholds by the number of wrong answers that each keeps. No score may come from a model that saw its row."""
    ordered = np.sort(scores)
    wrong = np.sort(scores[~right])[::-1]
    ranks = [rank for rank in list_stored_ranks(len(wrong)) if rank < len(wrong)]
    thresholds = [*(wrong[ranks] + TIE).tolist(), 0.0]
    counts = len(scores) - np.searchsorted(ordered, thresholds, side="left")
    return Calibration(len(scores), delta, (*ranks, len(wrong)), tuple(thresholds), tuple(counts.tolist()))


def list_stored_ranks(count: int) -> list[int]:
    """The ranks below `count` that are stored. They are fixed beforehand: omitted ranks cost a few answers, but bounds
    stay true."""
    ranks = list(range(min(count, RANKS_EACH)))
    rank = RANKS_EACH
    while rank < count:
        ranks.append(rank)
        rank = math.ceil(rank * RANK_STEP)
    return ranks


def _scores_by_others(measured: Measured, scores: Matrix, seed: int) -> Matrix:
    """Each row's score by a model that has not seen it, on the scale of `scores`, those of the model of all rows."""
    rows = len(scores)
    fold = np.empty(rows, dtype=np.int64)
    fold[np.random.default_rng(seed).permutation(rows)] = np.arange(rows) % FOLDS
    scale = np.sort(scores)
    held_out = np.empty(rows)
    for at in range(FOLDS):
        is_held_out = fold == at
        others = compute_scores(measured, *weigh(measured.matrix[~is_held_out], measured.right[~is_held_out]))
        held_out[is_held_out] = np.interp(others[is_held_out], np.sort(others), scale)
    return held_out


def _logistic(scaled: Matrix, right: Truth) -> tuple[Matrix, float]:
    with warnings.catch_warnings(), config_context(assume_finite=True, skip_parameter_validation=True):
        warnings.simplefilter("ignore")  # for rows that separate without error; the penalty bounds their weights
        fitted = LogisticRegression(C=1.0, solver="newton-cholesky", max_iter=50).fit(scaled, right)
    return fitted.coef_[0], float(fitted.intercept_[0])


def compute_scores(measured: Measured, weights: Matrix, bias: float) -> Matrix:
    """The scores that a model with these weights gives to the rows."""
    at = np.clip(measured.matrix @ weights + bias, -700.0, None)
    scores: Matrix = np.where(measured.silent, 0.0, 1.0 / (1.0 + np.exp(-at)))
    return scores


def _can_be_learned(right: Truth) -> bool:
    return min(int(right.sum()), int((~right).sum())) >= EACH_MIN


def _features_of(row: CalibrationRow, number: int, tokens: int | None) -> ConfidenceFeatures:
    features = row.seen if tokens is None else None
    logprobs: Sequence[float] = (
        row.logprobs if features is None else (features.minimum, features.quantile_10, features.mean)
    )
    try:
        finite = all(map(math.isfinite, logprobs)) and (row.scope is None or math.isfinite(row.scope))
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        raise FittingError(f"Calibration row {number} has a logprob or a scope that is not finite: leave it out.")
    return compute_first_features(tokens, row.logprobs, row.scope, row.contract_kept) if features is None else features
