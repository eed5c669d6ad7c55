"""A small sample of short texts of many kinds, with sources. It stands for other traffic until a task has seen some."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from router.fitting.errors import FittingError

FILE = Path(__file__).parents[1] / "data" / "background.txt"


def read_stand_in(without: Collection[str] = ()) -> tuple[str, ...]:
    """The texts in the file's order, except those of the sources in `without`. Raises FittingError if it is damaged.

    Sources: banking77, clinc150 (in scope), cuad, gsm8k, hwu64, mmlu; their licences are beside the file.
    """
    try:
        lines = FILE.read_text(encoding="utf-8").splitlines()
        pairs = [line.split("\t", 1) for line in lines]
        return tuple(text for source, text in pairs if source not in without)
    except (OSError, ValueError) as error:
        raise FittingError("router/data/background.txt can not be read: install the package again.") from error
