"""The agreement between the judge model and people, in words beside each of the judge's figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe_trust(judge: Mapping[str, Any] | None) -> str:
    """The words behind a figure, from the `judge` of its report; empty if no model judged."""
    if judge is None:
        return ""
    if judge["agreement"] is None:
        return " (a judge: agreement with people unknown)"
    return f" (a judge: agrees with people in {100 * judge['agreement']:.1f} %)"
