"""Clusters of vectors by cosine: classes for prompts without labels, and vectors that represent a task in an index."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from router.embedding import Vectors
from router.task_index import CENTROIDS

CLASSES_MAX = 160
CLASS_PROMPTS_MIN = 4
CLUSTERS_MAX = 30

Integers = npt.NDArray[np.intp]


def number_classes(labels: Sequence[str | None], vectors: Vectors, draw: np.random.Generator) -> Integers:
    """The labels as numbers. Clusters replace labels that are incomplete, all the same, or too many to learn from."""
    names = sorted({label for label in labels if label is not None})
    usable = None not in labels and 1 < len(names) <= CLASSES_MAX and len(labels) >= CLASS_PROMPTS_MIN * len(names)
    if usable:
        number = {name: at for at, name in enumerate(names)}
        return np.array([number[label] for label in labels if label is not None], np.intp)
    return find_clusters(vectors, min(CLUSTERS_MAX, max(2, round(math.sqrt(len(labels)) / 2))), draw)[0]


def compute_centroids(vectors: Vectors, seed: int) -> Vectors:
    """A few vectors that stand for the prompts of a task in an index of many tasks."""
    return find_clusters(vectors, min(CENTROIDS, len(vectors)), np.random.default_rng(seed))[1]


def find_clusters(vectors: Vectors, count: int, draw: np.random.Generator) -> tuple[Integers, Vectors]:
    """Clusters by cosine: the cluster of each vector, and the centres, of unit length. No cluster is empty."""
    centres = vectors[draw.permutation(len(vectors))[:count]]
    belongs = np.zeros(len(vectors), np.intp)
    for _ in range(25):
        now = (vectors @ centres.T).argmax(1)
        if (now == belongs).all():
            break
        belongs = now
        sums = np.stack([vectors[belongs == at].sum(0) for at in range(len(centres))])
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(lengths > 1e-6, sums / np.maximum(lengths, 1e-6), centres).astype(np.float32)
    used, belongs = np.unique(belongs, return_inverse=True)
    return belongs.astype(np.intp), centres[used]
