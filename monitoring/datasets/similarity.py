"""Similarity of texts by their words (TF-IDF), as the card of a data set measures it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXTS_MAX = 20_000
"""So many texts are compared with; of more, the first ones."""
COMPARED_MAX = 4000
AT_ONCE = 250
TERMS_MAX = 50_000
WORDS = r"(?u)\b\w[\w'-]+\b"
Values = NDArray[np.float64]


def fit_terms(texts: Sequence[str]) -> Any:
    """What makes TF-IDF vectors of texts, as it was fitted on these."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 - a second, where it is of use

    return TfidfVectorizer(token_pattern=WORDS, ngram_range=(1, 2), sublinear_tf=True, max_features=TERMS_MAX).fit(
        texts
    )


def measure_nearest(terms: Any, texts: Sequence[str], others: Sequence[str], apart: bool = True) -> Values:
    """The similarity (0 to 1) of each text to the most similar of the others. Not `apart`: `texts` are the first of
    `others`, and none is compared with itself."""
    if not texts or not others:
        return np.zeros(0)
    vectors, against = terms.transform(texts[:COMPARED_MAX]), terms.transform(others[:TEXTS_MAX]).T.tocsc()
    nearest = []
    for at in range(0, vectors.shape[0], AT_ONCE):
        similar = np.asarray((vectors[at : at + AT_ONCE] @ against).todense())
        if not apart:
            rows = np.arange(similar.shape[0])
            similar[rows, rows + at] = 0.0
        nearest.append(similar.max(axis=1))
    return np.concatenate(nearest)
