"""The rows of a file of labels as texts.

A field of an inner object has a dot in its name, as in `feedback.correct`; lists are left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monitoring.datasets.row_files import read_objects
from monitoring.evaluation.dataset import DatasetError

Fields = Mapping[str, str]


def read_fields(path: Path) -> Iterator[tuple[int, Fields]]:
    """Read the rows, each with its line, or its number in a list or a table: true is "1", null is "".

    Raises DatasetError or OSError if something can't be read.
    """
    for line, entry in read_objects(path, str(path), _see_that_names_differ):
        if isinstance(entry, DatasetError):
            raise entry
        yield line, dict(_flatten("", entry))


def _see_that_names_differ(names: list[str]) -> None:
    twice = next((name for name in names if name and names.count(name) > 1), None)
    if twice is not None:
        raise DatasetError(f"Line 1: two columns are named {twice!r}: rename one.")


def _flatten(prefix: str, entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The values of an object as texts; those of inner objects have their path as name."""
    for name, value in entry.items():
        if isinstance(value, dict):
            yield from _flatten(f"{prefix}{name}.", value)
        elif isinstance(value, bool) or value is None:
            yield prefix + name, "" if value is None else str(int(value))
        elif not isinstance(value, list):
            yield prefix + name, str(value).strip()
