"""Rows that both a gate and reviewers have judged, for `apprentice tasks baseline --calibrate FILE`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gateway.cli.admin_client import Unusable
from monitoring.evaluation.dataset import DatasetError
from monitoring.quality.replay.label_files import read_fields

COLUMNS = ("gate", "reviewer")
JUDGEMENTS: Mapping[str, bool] = {"1": True, "true": True, "right": True, "0": False, "false": False, "wrong": False}


def count_differences(path: Path) -> dict[str, int]:
    """Count the rows that both judged, and those that reviewers judged differently. Other columns are ignored.

    Raises Unusable with the line that can't be read.
    """
    counts = {"rows": 0, "stricter": 0, "milder": 0}
    try:
        for line, row in read_fields(path):
            fields = {name.lower(): value for name, value in row.items()}
            _check_columns(line, fields)
            gate, reviewer = (JUDGEMENTS.get(fields[name].lower()) for name in COLUMNS)
            if gate is None or reviewer is None:
                raise DatasetError(f"Line {line}: gate and reviewer must each be right or wrong, or 1 or 0.")
            counts["rows"] += 1
            counts["stricter"] += gate and not reviewer
            counts["milder"] += reviewer and not gate
    except DatasetError as error:
        raise Unusable(f"--calibrate {path}: {error}") from None
    return counts


def _check_columns(line: int, names: Mapping[str, str]) -> None:
    """Raises DatasetError if a column is missing."""
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DatasetError(f"Line {line}: no column {' and no column '.join(missing)}.")
