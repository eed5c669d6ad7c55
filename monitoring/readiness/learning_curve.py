"""Measurement of a learning curve: a cheap model is trained on growing parts of labelled texts. Pure, and seeded.

The model is a linear one on words and pairs of words. It shows whether more examples would help, but not how good an
adapter would be. An adapter starts with all knowledge of its base, and mostly does better.

It imports scikit-learn, so only separate processes import this file, and no gateway does.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.svm import LinearSVC

from monitoring.readiness.extrapolation import Curve

PARTS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 0.71, 1.0)
FOLDS = 5
SIZE_MIN = 8
Places = npt.NDArray[np.intp]


class CurveError(Exception):
    """No curve can be measured; the message says why."""


def measure_curve(
    texts: Sequence[str], labels: Sequence[str], groups: Sequence[int] | None = None, seed: int = 0
) -> Curve:
    """The curve of these texts. Rows of one group are on the same side of every split. Raises CurveError."""
    labelled = np.array(labels, dtype=object)
    numbers = np.unique(np.arange(len(texts)) if groups is None else np.array(groups), return_inverse=True)[1]
    count = int(numbers.max()) + 1 if len(texts) else 0
    if len(set(labels)) < 2:
        raise CurveError("all rows have the same class")
    sizes = sorted({size for part in PARTS if (size := int(part * len(texts) * (1 - 1 / FOLDS))) >= SIZE_MIN})
    if len(sizes) < 4 or count < 5 * FOLDS:
        raise CurveError(f"{len(texts)} rows are too few to train on parts of them")
    try:
        features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform(texts)
    except ValueError as error:
        raise CurveError("the texts have no words") from error
    generator = np.random.default_rng(seed)
    wrong = np.zeros((len(sizes), len(texts)))
    for held_out in np.array_split(generator.permutation(count), FOLDS):
        is_held_out = np.isin(numbers, held_out)
        tested = np.flatnonzero(is_held_out)
        rest = generator.permutation(np.flatnonzero(~is_held_out))
        for at, size in enumerate(sizes):
            wrong[at, tested] = predict(features, labelled, rest[:size], tested) != labelled[tested]
    of_group = np.bincount(numbers)
    return Curve(tuple(sizes), np.array([np.bincount(numbers, line) / of_group for line in wrong]))


def predict(
    features: object, labels: npt.NDArray[np.object_], train: Places, tested: Places
) -> npt.NDArray[np.object_]:
    """The labels that the cheap model, trained on the rows `train`, gives to the rows `tested`."""
    classes = set(labels[train])
    if len(classes) < 2:
        return np.full(len(tested), classes.pop(), dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # many classes of few rows each, and a solver that stops early, are expected
        model = LinearSVC(C=1.0, tol=0.1, random_state=0).fit(features[train], labels[train])  # type: ignore[index]
    predictions: npt.NDArray[np.object_] = model.predict(features[tested])  # type: ignore[index]
    return predictions
