"""Fits the models of `router.gain_model` from requests on which both arms were judged. Takes seconds: in a process.

Cross-validation measures the model's benefit, and the model stores it. If no order beats a random one, the model is a
constant.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from router.clipping import clip_text, fold_text
from router.embedding import Vectors
from router.fitting.errors import FittingError
from router.gain_model import SHAPE_CLIP, GainModel, MeasuredGain
from router.ngrams import BUCKETS, count_buckets
from router.text_shape import compute_shape

ROWS_MIN = 200
ROWS_MAX = 10_000
DIFFERING_MIN = 20
FOLDS = 5
RESAMPLES = 1_000
LOWER_TAIL = 0.025
QUANTILES = 201
OVERLAP = math.sqrt(1 + FOLDS / (FOLDS - 1))
"""Factor by which an estimate over folds varies more than over as many fresh rows: the folds' models share most
training rows (C. Nadeau, Y. Bengio, "Inference for the Generalization Error", Machine Learning 52, 2003)."""
REGULARISATION = 0.3
CENTRES_MAX = 400
WIDTH = 0.7
SMOOTHING = 20.0

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class GainRow:
    """A request on which both arms were judged, each from 0 (wrong) to 1 (right).

    Requests of one `group`, or with equal texts, count as one piece of evidence; None: the group is not known.
    """

    text: str
    adapter_right: float
    general_right: float
    group: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The requests as features. Requests that count as one piece of evidence have the same group number, from 0."""

    counts: Any
    shapes: npt.NDArray[np.float32]
    right: Floats  # general, adapter
    groups: Integers

    @property
    def gain(self) -> Floats:
        """General's rightness minus the adapter's, for each row."""
        gain: Floats = self.right[:, 0] - self.right[:, 1]
        return gain

    def of(self, at: Integers) -> Rows:
        """Some of the rows."""
        return Rows(self.counts[at], self.shapes[at], self.right[at], self.groups[at])


def fit_gain(rows: Sequence[GainRow], seed: int) -> GainModel:
    """Fit a model, and measure it. The same rows and seed give the same bytes.

    At most 10,000 rows are used, drawn with the seed. Raises FittingError if there is nothing to learn from.
    """
    _see_that_there_is_something_to_learn(rows)
    draw = np.random.default_rng(seed)
    if len(rows) > ROWS_MAX:
        rows = [rows[at] for at in np.sort(draw.permutation(len(rows))[:ROWS_MAX])]
    with threadpool_limits(1):  # sums in another order would give other bytes
        table = read(rows)
        folds = _folds(table.groups, draw)
        scores, ranks = np.zeros(len(rows)), np.zeros(len(rows))
        for fold in folds:
            model = fit_unmeasured(table.of(np.setdiff1d(np.arange(len(rows)), fold)), seed)
            scores[fold] = predict_gains(model, table.of(fold))
            ranks[fold] = rank_scores(scores[fold])
        measured = _measured(ranks, table.right, table.groups, draw)
        model = fit_unmeasured(table, seed)
        constant = None if measured.lift > 0.0 else float(table.gain.mean())
        if constant is not None:
            scores[:] = constant
    quantiles = np.quantile(scores, np.linspace(0.0, 1.0, QUANTILES)).astype(np.float32)
    return dataclasses.replace(model, constant=constant, measured=measured, quantiles=quantiles)


def rank_scores(scores: Floats) -> Floats:
    """The rank of each score among all, from 0 to 1; equal scores get the middle of their ranks."""
    ordered = np.sort(scores)
    below, up_to = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
    places: Floats = (below + up_to) / (2.0 * len(scores))
    return places


# ---- reading -----------------------------------------------------------------------------------------


def _see_that_there_is_something_to_learn(rows: Sequence[GainRow]) -> None:
    """Raise FittingError if the rows hold nothing to learn from."""
    if not rows:
        raise FittingError("There are no rows: give requests on which both arms were judged, by shadow or by the gate.")
    for row in rows:
        if not (0.0 <= row.adapter_right <= 1.0 and 0.0 <= row.general_right <= 1.0):
            raise FittingError("A label lies outside 0 to 1: give 0 for wrong, 1 for right, or what lies between.")
    if len(rows) < ROWS_MIN:
        raise FittingError(f"{len(rows)} rows are too few: collect at least {ROWS_MIN}, better 1,000.")
    if all(row.adapter_right >= 1.0 for row in rows):
        raise FittingError("The adapter is right in every row, so general can not do better: leave predicted_gain off.")
    if all(row.general_right <= 0.0 for row in rows):
        raise FittingError("General is right in no row, so it can not do better: leave predicted_gain off.")
    differing = sum(row.adapter_right != row.general_right for row in rows)
    if differing < DIFFERING_MIN:
        raise FittingError(
            f"The arms differ in {differing} rows, which is too few to learn from: collect rows until they differ "
            f"in {DIFFERING_MIN}, or leave predicted_gain off."
        )
    if int(_groups(rows, [clip_text(row.text) for row in rows]).max()) + 1 < 2 * FOLDS:
        raise FittingError("The rows have almost all the same text: check that the text is what the caller asked.")


def read(rows: Sequence[GainRow]) -> Rows:
    """The requests as features."""
    texts = [clip_text(row.text) for row in rows]
    counted = [np.unique(count_buckets(text), return_counts=True) for text in texts]
    counts = sp.csr_matrix(
        (
            np.concatenate([1.0 + np.log(counts) for _, counts in counted]),
            np.concatenate([buckets for buckets, _ in counted]),
            np.cumsum([0, *(len(buckets) for buckets, _ in counted)]),
        ),
        shape=(len(rows), BUCKETS),
    )
    return Rows(
        counts=counts,
        shapes=np.stack([compute_shape(row.text) for row in rows]),
        right=np.array([(row.general_right, row.adapter_right) for row in rows], np.float64),
        groups=_groups(rows, texts),
    )


def _groups(rows: Sequence[GainRow], texts: Sequence[str]) -> Integers:
    """Each row's group. Rows with the same text or the same group are in one group."""
    by_text = np.unique([fold_text(text) for text in texts], return_inverse=True)[1]
    named = [f"{at}" if row.group is None else f"group {row.group}" for at, row in enumerate(rows)]
    by_name = np.unique(named, return_inverse=True)[1] + int(by_text.max()) + 1
    count = int(by_name.max()) + 1
    joined = sp.coo_matrix((np.ones(len(rows)), (by_text, by_name)), shape=(count, count))
    return np.unique(connected_components(joined, directed=False)[1][by_text], return_inverse=True)[1].astype(np.intp)


def _folds(groups: Integers, draw: np.random.Generator) -> list[Integers]:
    """The rows in folds; rows of one group are in the same fold."""
    belongs = draw.permutation(int(groups.max()) + 1) % FOLDS
    return [np.flatnonzero(belongs[groups] == fold) for fold in range(FOLDS)]


# ---- fitting ------------------------------------------------------------------------------------------


def fit_unmeasured(rows: Rows, seed: int) -> GainModel:
    """A model without a measurement, for a caller that measures it; never a constant."""
    rows_with_bucket = np.bincount(rows.counts.indices, minlength=BUCKETS)
    idf = (np.log((1 + len(rows.gain)) / (1 + rows_with_bucket)) + 1).astype(np.float16)
    weighted = _weighted(rows.counts, idf)
    arms = [_arm(weighted, rows.right[:, arm], seed) for arm in (0, 1)]
    weights = np.stack([of for of, _ in arms], axis=1)
    mean, scale, centres, heights = _over_shape(rows, np.random.default_rng(seed))
    return GainModel(
        constant=None,
        base=float(rows.gain.mean()),
        width=WIDTH * math.sqrt(max(1, int(np.count_nonzero(scale)))),
        measured=MeasuredGain(len(rows.gain), 0.0, 0.0, 0.0, 0.0, None, None),
        idf=idf,
        lexical=weights.astype(np.float16),
        bias=np.array([bias for _, bias in arms], np.float32),
        shape_mean=mean,
        shape_scale=scale,
        centres=centres,
        heights=heights,
        quantiles=np.zeros(2, np.float32),
    )


def _weighted(counts: Any, idf: npt.NDArray[np.float16]) -> Any:
    """The weighted n-grams, each row of unit length."""
    weighted = counts.copy()
    weighted.data = weighted.data * idf.astype(np.float64)[weighted.indices]
    lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(1)).ravel())
    return (sp.diags(1 / np.maximum(lengths, 1e-9)) @ weighted).tocsr()


def _arm(weighted: Any, right: Floats, seed: int) -> tuple[Floats, float]:
    """Weights and bias of one arm's logistic model; a label between 0 and 1 counts partly as right, partly as wrong."""
    rate = float(right.mean())
    if not 0.0 < rate < 1.0:
        return np.zeros(weighted.shape[1]), math.copysign(math.log(2 * len(right) + 1), rate - 0.5)
    yes, no = np.flatnonzero(right > 0.0), np.flatnonzero(right < 1.0)
    model = LogisticRegression(C=REGULARISATION, solver="liblinear", tol=1e-3, random_state=seed, max_iter=200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(
            weighted[np.concatenate((yes, no))],
            np.arange(len(yes) + len(no)) < len(yes),
            sample_weight=np.concatenate((right[yes], 1.0 - right[no])),
        )
    return model.coef_[0], float(model.intercept_[0])


def _over_shape(rows: Rows, draw: np.random.Generator) -> tuple[Vectors, Vectors, Vectors, Vectors]:
    """The ridge regression of the gain over the shape, with bells as features: its mean, scale, centres and heights."""
    mean = rows.shapes.mean(0)
    spread = rows.shapes.std(0)
    scale = np.where(spread > 1e-4, 1 / np.maximum(spread, 1e-4), 0.0).astype(np.float32)
    placed = _placed(rows.shapes, mean, scale)
    centres = placed[draw.permutation(len(placed))[:CENTRES_MAX]]
    width = WIDTH * math.sqrt(max(1, int(np.count_nonzero(scale))))
    bells, among = _bells(placed, centres, width), _bells(centres, centres, width)
    among[np.diag_indices(len(among))] += 1e-3
    heights = np.linalg.solve(bells.T @ bells + SMOOTHING * among, bells.T @ (rows.gain - rows.gain.mean()))
    return mean.astype(np.float32), scale, centres, heights.astype(np.float32)


def _placed(shapes: npt.NDArray[np.float32], mean: Vectors, scale: Vectors) -> Vectors:
    placed: Vectors = np.clip((shapes - mean) * scale, -SHAPE_CLIP, SHAPE_CLIP).astype(np.float32)
    return placed


def _bells(placed: Vectors, centres: Vectors, width: float) -> Floats:
    """The nearness of each row to each centre, from 0 to 1."""
    rows, other = placed.astype(np.float64), centres.astype(np.float64)
    distances = (rows * rows).sum(1)[:, None] + (other * other).sum(1) - 2 * rows @ other.T
    bells: Floats = np.exp(np.maximum(distances, 0.0) * (-0.5 / width**2))
    return bells


def predict_gains(model: GainModel, rows: Rows) -> Floats:
    """Compute the model's `score` of all rows at once."""
    logits = _weighted(rows.counts, model.idf) @ model.lexical.astype(np.float64)
    chances = 1.0 / (1.0 + np.exp(-(logits + model.bias)))
    bells = _bells(_placed(rows.shapes, model.shape_mean, model.shape_scale), model.centres, model.width)
    by_shape = model.base + bells @ model.heights.astype(np.float64)
    gain: Floats = np.clip(0.5 * (chances[:, 0] - chances[:, 1]) + 0.5 * by_shape, -1.0, 1.0)
    return gain


# ---- measuring ----------------------------------------------------------------------------------------


def _measured(ranks: Floats, right: Floats, groups: Integers, draw: np.random.Generator) -> MeasuredGain:
    """Lift and APGR of an order. A bootstrap over the groups, widened by OVERLAP, gives their lower bounds."""
    gain, count = right[:, 0] - right[:, 1], int(groups.max()) + 1
    times = draw.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    weights = times[:, groups] / (times @ np.bincount(groups))[:, None]
    drawn_gain, drawn_rank = weights @ gain, weights @ ranks
    lifts = weights @ (gain * ranks) - drawn_gain * drawn_rank
    lift, mean = float((gain * ranks).mean() - gain.mean() * ranks.mean()), float(gain.mean())
    lifts = lift + OVERLAP * (lifts - lift)
    with_gap = mean > 0.0 and float(np.quantile(drawn_gain, LOWER_TAIL)) > 0.0
    ratios = 0.5 + lifts / np.maximum(drawn_gain, 1e-9)
    return MeasuredGain(
        rows=len(gain),
        adapter_right=float(right[:, 1].mean()),
        general_right=float(right[:, 0].mean()),
        lift=lift,
        lift_low=float(np.quantile(lifts, LOWER_TAIL)),
        apgr=0.5 + lift / mean if with_gap else None,
        apgr_low=float(np.quantile(ratios, LOWER_TAIL)) if with_gap else None,
    )
