"""The card of a data set: its figures, as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from monitoring.datasets.build import BuiltSet
from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.coverage import measure_coverage
from monitoring.datasets.rows import ORIGINS, DataRow, fold_text, input_of
from monitoring.datasets.rows_from_traffic import KeptRows
from monitoring.datasets.synthetic import measure_synthetic
from monitoring.evaluation.dataset import has_tool_call

CONTRASTS_MAX = 50


def card_of(built: BuiltSet, options: DatasetOptions, kept_rows: KeptRows) -> dict[str, Any]:
    """The figures of a set, and of the kept texts that were read for it."""
    return {
        "options": {
            "heldout_share": options.heldout_share,
            "class_ratio_max": options.class_ratio_max,
            "class_field": options.class_field,
        },
        "rows": {"train": len(built.train), "heldout": len(built.heldout), "left_out": len(built.left_out)},
        "left_out": dict(sorted(Counter(each.because for each in built.left_out).items())),
        "held_before": built.held_before,
        "conflicts": len({each.conflict for each in built.left_out if each.conflict}),
        "contrasts": {"pairs": len(built.contrasts), "first": built.contrasts[:CONTRASTS_MAX]},
        "classes": {"train": _counted(built.train), "heldout": _counted(built.heldout)},
        "origins": {part: _origins(rows) for part, rows in _parts(built).items()},
        "sources": dict(sorted(Counter(row.source for row in built.rows).items())),
        "groups": {part: _groups(rows) for part, rows in _parts(built).items()},
        "lengths": _lengths(built.rows),
        "tools": _tools(built.rows),
        "requests": len(built.requests()),
        "kept_texts": dict(sorted((name, count) for name, count in kept_rows.counts.items() if count)),
        "coverage": measure_coverage([fold_text(input_of(row)) for row in built.train], kept_rows.asked),
        "synthetic": measure_synthetic(built),
    }


def _parts(built: BuiltSet) -> dict[str, list[DataRow]]:
    return {"train": built.train, "heldout": built.heldout}


def _counted(rows: Sequence[DataRow]) -> dict[str, int]:
    """The number of rows of each class, largest first."""
    counts = Counter(row.label or "" for row in rows)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _origins(rows: Sequence[DataRow]) -> dict[str, int]:
    counts = Counter(row.origin for row in rows)
    return {origin: counts[origin] for origin in ORIGINS}


def _groups(rows: Sequence[DataRow]) -> dict[str, int]:
    """The number of groups, and the number of rows in the largest."""
    counts = Counter(row.group or row.id for row in rows)
    return {"count": len(counts), "largest": max(counts.values(), default=0)}


def _tools(rows: Sequence[DataRow]) -> dict[str, int]:
    """The numbers of rows with tools, of different sets of tools, and of rows whose answer calls a tool."""
    sets = Counter(msgspec.json.encode(row.tools) for row in rows if row.tools)
    calls = sum(has_tool_call(row.messages[-1]) for row in rows)
    return {"rows": sets.total(), "sets": len(sets), "calls": calls}


def _lengths(rows: Sequence[DataRow]) -> dict[str, int]:
    """The numbers of rows by the characters of their inputs, in powers of two."""
    counts = Counter(max(4, len(input_of(row)).bit_length()) for row in rows)
    return {
        f"under {1 << power:,}": counts[power] for power in range(min(counts, default=4), max(counts, default=3) + 1)
    }
