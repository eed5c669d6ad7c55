"""The training rows that are most like a request: the cosine of weighted words and pairs of words. Pure.

It imports scikit-learn, which a process of its own can spare and a gateway cannot.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer

from monitoring.datasets.rows import DataRow, input_of
from monitoring.diagnosis.faults import TrainingNeighbour

NEIGHBOURS_MAX = 8
CHARACTERS_TOLD = 400


def find_neighbours(rows: Sequence[DataRow], text: str) -> tuple[TrainingNeighbour, ...]:
    """The nearest rows, the nearest first; none where no word of the text is in any of them."""
    inputs = [input_of(row) for row in rows]
    try:
        features = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit_transform([*inputs, text])
    except ValueError:  # there is no word at all
        return ()
    similar = (features[:-1] @ features[-1].T).toarray().ravel()
    return tuple(
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
