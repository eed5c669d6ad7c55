"""Similarity of texts by their words (TF-IDF), as the card of a data set measures it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

TEXTS_MAX = 20_000
"""The most texts to compare with; the first ones are taken."""
COMPARED_MAX = 5000
"""The most texts of a set, or of a sample of requests, that are compared."""
AT_ONCE = 250
TERMS_MAX = 50_000
WORD_PATTERN = r"(?u)\b\w[\w'-]+\b"
Values = NDArray[np.float64]


def make_terms() -> Any:
    """Make a vectoriser for TF-IDF, which must be fitted to texts first."""
    from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415 - takes a second, only where it is used

    return TfidfVectorizer(token_pattern=WORD_PATTERN, ngram_range=(1, 2), sublinear_tf=True, max_features=TERMS_MAX)


def measure_nearest(vectors: Any, others: Any, apart: bool = True) -> Values:
    """The similarity (0 to 1) of each vector to the most similar of `others`. Without `apart`, `vectors` are the first
    of `others`, and none is compared with itself."""
    nearest, against = [], others.T.tocsc()
    for at in range(0, vectors.shape[0], AT_ONCE):
        similar = (vectors[at : at + AT_ONCE] @ against).toarray()
        if not apart:
            rows = np.arange(similar.shape[0])
            similar[rows, rows + at] = 0.0
        nearest.append(similar.max(axis=1))
    return np.concatenate(nearest)
