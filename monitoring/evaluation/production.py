"""The fit of an evaluation's rows to what production asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monitoring.datasets.coverage import FAR_QUANTILE, count_far


def measure_production(inputs: Sequence[str], requests: Sequence[str]) -> dict[str, Any]:
    """The share of the requests that no row is like, None where it is not known, and a sentence on it."""
    unlike = count_far(inputs, requests) if requests else None
    if not requests:
        words = "No text of a request can be read: whether the rows are like production is unknown."
    elif unlike is None:
        words = f"Whether these {len(inputs)} rows are like production is unknown: they are too few."
    else:
        words = (
            f"{100 * unlike / len(requests):.1f}% of {len(requests):,} requests of production are unlike any row; of "
            f"requests like the rows {100 * FAR_QUANTILE:.0f}% would be."
        )
    return {"requests": len(requests), "unlike": unlike, "words": words}
