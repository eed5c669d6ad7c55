"""The training rows that are most like a request: the cosine of weighted words and pairs of words. Pure.

It imports scikit-learn, so only separate processes import this file, and no gateway does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from monitoring.datasets.rows import DataRow, input_of
from monitoring.datasets.similarity import measure_nearest
from monitoring.diagnosis.faults import FAR, TrainingNeighbour

NEIGHBOURS_MAX = 8
CHARACTERS_TOLD = 400
FAR_QUANTILE, FAR_ROWS_MIN, FAR_ROWS_MAX = 0.05, 100, 1000


class Neighbours(NamedTuple):
    """The nearest rows, nearest first. A text is unlike all rows if the nearest is less similar than `far`."""

    nearest: tuple[TrainingNeighbour, ...] = ()
    far: float = FAR


def find_neighbours(rows: Sequence[DataRow], text: str) -> Neighbours:
    """The nearest rows; none if no row has a word of the text."""
    inputs = [input_of(row) for row in rows]
    try:
        features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform([*inputs, text])
    except ValueError:  # there is no word at all
        return Neighbours()
    similar = (features[:-1] @ features[-1].T).toarray().ravel()
    nearest = tuple(
        TrainingNeighbour(
            id=rows[at].id,
            text=inputs[at][:CHARACTERS_TOLD],
            answer=rows[at].answer,
            similarity=round(float(similar[at]), 4),
            origin=rows[at].origin,
            source=rows[at].source,
        )
        for at in np.argsort(-similar, kind="stable")[:NEIGHBOURS_MAX]
        if similar[at] > 0
    )
    return Neighbours(nearest, _find_far(features[:-1]))


def _find_far(features: Any) -> float:
    """FAR, or a lower quantile of the rows' own nearest similarities if rows differ much."""
    if features.shape[0] < FAR_ROWS_MIN:
        return FAR
    among = measure_nearest(features[:FAR_ROWS_MAX], features, apart=False)
    return min(FAR, float(np.quantile(among, FAR_QUANTILE)))
