"""The optional second embedding: its module and its packages are imported only where the settings name its file."""

from __future__ import annotations

import importlib
from pathlib import Path

from router.embedding import Embedding


def load_deep(path: Path) -> Embedding:
    """The optional second embedding, from its file. Only here is its module imported.

    Raises EmbeddingError where the file is missing or damaged, or an optional package is.
    """
    model: Embedding = importlib.import_module("router.minilm").MiniLM.load(path)
    return model
