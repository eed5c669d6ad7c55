"""Parses fitted models. It needs Numpy and 12 MB of memory, so it is imported only if there is a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, assert_never

from threadpoolctl import threadpool_limits

from gateway.state.fitted_store import Kind
from router.confidence_model import ConfidenceModel
from router.embedding import Embedding, StaticEmbedding
from router.gain_model import GainModel
from router.scope_model import ScopeModel
from router.task_index import TaskIndex


class ModelParser:
    """Parses models of all kinds. Owner of the word vectors that scope models share."""

    def __init__(self, deep: Embedding | None) -> None:
        """`deep` is the neural embedding, if there is one."""
        threadpool_limits(1)  # a score's few sums wait longer for other threads than they take
        self._deep = deep
        self._embedding: StaticEmbedding | None = None

    def parse(self, kind: Kind, data: bytes) -> Any:
        """Blocks for milliseconds. Raises UnusableModel."""
        if kind == "confidence":
            return ConfidenceModel.from_json(data)
        if kind == "gain":
            return GainModel.from_bytes(data)
        if kind == "scope":
            if self._embedding is None:
                self._embedding = StaticEmbedding.load()
            return ScopeModel.from_bytes(data, self._embedding, self._deep)
        assert_never(kind)

    def build_index(self, models: Mapping[str, ScopeModel]) -> TaskIndex | None:
        """The index that finds a task for `auto`; None without models. Blocks for milliseconds."""
        return TaskIndex.build(models)
