"""Looking into a folder that a gateway writes to: what it moves or deletes meanwhile is not an error of a test."""

from __future__ import annotations

import os
from pathlib import Path


def find_paths(folder: Path) -> list[Path]:
    """Folders and files below a folder. Unlike `Path.rglob`, it passes over a folder that is gone meanwhile."""
    return [Path(parent, name) for parent, folders, files in os.walk(folder) for name in [*folders, *files]]
