"""The tasks that a text may belong to: one matrix product picks a few, whose own models then score the text in full."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from router.clipping import clip_text
from router.embedding import Embedding, Vectors
from router.scope_model import ScopeModel

CENTROIDS = 6
AXES_MAX = 96


@dataclass(frozen=True, slots=True, eq=False)
class TaskIndex:
    """All tasks' centroids, on the axes along which they differ most.

    `axes` converts an embedding's vector to these axes. `centroids`: a row each; `starts`: each task's first row.
    """

    embedding: Embedding
    tasks: tuple[str, ...]
    axes: Vectors
    centroids: Vectors
    starts: npt.NDArray[np.intp]

    @classmethod
    def build(cls, models: Mapping[str, ScopeModel]) -> TaskIndex | None:
        """Build an index from the tasks' scope models; None if there are none. Milliseconds for 1,000 tasks."""
        if not models:
            return None
        embedding = next(iter(models.values())).embedding
        return cls.of({task: model.centroids for task, model in models.items()}, embedding)

    @classmethod
    def of(cls, centroids: Mapping[str, Vectors], embedding: Embedding) -> TaskIndex:
        """Build an index of at least one task, from its centroids."""
        lines = np.concatenate(list(centroids.values()))
        counts = [len(rows) for rows in centroids.values()]
        _, axes = np.linalg.eigh(lines.T @ lines)
        axes = np.ascontiguousarray(axes[:, -AXES_MAX:], np.float32)
        starts = np.concatenate(([0], np.cumsum(counts)[:-1])).astype(np.intp)
        return cls(embedding, tuple(centroids), axes, np.ascontiguousarray(lines @ axes), starts)

    def candidates(self, text: str, allowed: Collection[str], count: int) -> tuple[str, ...]:
        """The allowed tasks that are nearest to the text, nearest first, at most `count`."""
        vector = self.embedding.embed([clip_text(text)])[0]
        nearness = np.maximum.reduceat(self.centroids @ (vector @ self.axes), self.starts)
        tasks: list[str] = []
        for at in np.argsort(-nearness, kind="stable"):
            if len(tasks) >= count:
                break
            if self.tasks[at] in allowed:
                tasks.append(self.tasks[at])
        return tuple(tasks)
