"""docs/reference/metrics.md, from the table of metrics."""

from __future__ import annotations

from collections.abc import Mapping

from monitoring.metric_spec import SCALE
from monitoring.metric_table import METRICS
from monitoring.metrics import SERIES_MAX_DEFAULT, SERIES_MAX_LEAST
from tools.reference.markdown import code, page, table

INTRODUCTION = """
`GET /metrics` answers in the Prometheus text format, or in OpenMetrics where `Accept` names it. Each gateway has its
own figures: scrape every one, and add up in the query.

- **Counters** begin at 0 with the process. A series appears with its first event; verdicts on canaries, actions of the
  monitor, reviews and webhooks are there at once.
- **Gauges** are absent where their value is not known, never 0.
- Unknown **money** is in no sum.
- An empty `version` is a base model, an empty `task` a named pool, an empty `pool` a refusal. Labels never hold a
  caller's text or secret. A retired version's series end; the monitor's gauges cover versions with a role.
"""


def metrics_page() -> str:
    """The page: every metric, and the budget of series."""
    rows = [
        (code(spec.name), spec.kind, code(",".join(spec.labels)) if spec.labels else "", spec.help) for spec in METRICS
    ]
    return page("Metrics", INTRODUCTION, table(("Metric", "Kind", "Labels", "Meaning"), rows), "## Series", _budget())


def _budget() -> str:
    total = sum(spec.series_max for spec in METRICS)
    scale = ", ".join(f"{number} {what}" for number, what in zip(SCALE.values(), SCALE_WORDS.values(), strict=True))
    return (
        f"The default budget (`series_max`) is {SERIES_MAX_DEFAULT:,} series for each gateway. It suits {scale}: at "
        f"most {total:,}. Another budget, of at least {SERIES_MAX_LEAST:,}, is shared out in proportion. Beyond its "
        "share, a metric's further series are counted under `other`, as the sum; a gauge that can't be added up shows "
        "the worst there. The alert [SeriesOverflow](alerts.md#seriesoverflow) fires then."
    )


SCALE_WORDS: Mapping[str, str] = {
    "T": "tasks",
    "V": "versions of each",
    "P": "pools",
    "R": "replicas",
    "M": "feedback metrics of a task",
    "K": "keys",
}
