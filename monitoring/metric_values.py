"""The badness of a value of a declared feedback metric, from 0 (good) to 1 (bad)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MetricKind = Literal["boolean", "float", "category"]
BAD_FROM = 0.5
"""The badness from which an answer counts as bad."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a declared metric that decides how bad a value is."""

    kind: MetricKind
    better: Literal["higher", "lower"] = "higher"
    minimum: float | None = None
    maximum: float | None = None


def measure_badness(metric: Metric, value: Any) -> float | None:
    """The badness of a value; None for a category, a float without bounds, or a value of another kind."""
    if metric.kind == "boolean" and isinstance(value, bool):
        good = float(value)
    elif metric.kind == "float" and metric.minimum is not None and metric.maximum is not None:
        span = metric.maximum - metric.minimum
        if not isinstance(value, int | float) or span <= 0:
            return None
        good = min(1.0, max(0.0, (value - metric.minimum) / span))
    else:
        return None
    return 1.0 - good if metric.better == "higher" else good


def is_bad(value: float | None) -> bool:
    """True if this badness counts as bad; False for None, which is no judgement."""
    return value is not None and value >= BAD_FROM
