"""The badness of a value of a declared feedback metric, from 0 (good) to 1 (bad)."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MetricKind = Literal["boolean", "float", "category"]
BAD_FROM = 0.5
"""From this badness on an answer counts as judged bad."""


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """A declared metric, as far as it matters to how bad a value is."""

    kind: MetricKind
    better: Literal["higher", "lower"] = "higher"
    minimum: float | None = None
    maximum: float | None = None


def measure_badness(metric: Metric, value: Any) -> float | None:
    """The badness of a value; None without an order, for a float without bounds, or for another kind of value."""
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
    """True if so much badness says that the answer was bad; None, which says nothing, does not."""
    return value is not None and value >= BAD_FROM
