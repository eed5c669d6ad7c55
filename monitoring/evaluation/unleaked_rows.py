"""The rows of a report except those that the version was trained on and may have memorised. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class RowCounts(NamedTuple):
    """Numbers of an arm's rows in a report: right ones, failed ones, and all."""

    right: int
    failed: int
    of: int


def count_leaked(report: Mapping[str, Any]) -> int:
    """The number of rows in a report that the version is known to be trained on."""
    leaks = report.get("leaks")
    return 0 if leaks is None else int(leaks["same"] + leaks["near"])


def count_unleaked(report: Mapping[str, Any], arm: str) -> RowCounts | None:
    """Numbers of an arm's rows in a report, without those that the version was trained on; None if it was not asked."""
    figures: dict[str, Any] = report.get("arms", {}).get(arm, {})
    accuracy = figures.get("accuracy") or {}
    right, of, failed = accuracy.get("right"), accuracy.get("of"), figures.get("failed", 0)
    if not isinstance(right, int) or not isinstance(of, int):
        return None
    if leaked := count_leaked(report):
        leaks = report["leaks"]
        of -= leaked
        right = round((leaks["right_without"][arm] or 0.0) * of)
        failed = leaks.get("failed_without", {}).get(arm, 0)
    return RowCounts(right, failed, of)
