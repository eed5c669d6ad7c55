"""PromQL that more than one panel asks, over the tasks and versions that are picked above a dashboard."""

from __future__ import annotations

TASK = 'task=~"$task"'
VERSION = 'task=~"$task", version=~"$version"'
TASKS = "label_values(apprentice_requests_total, task)"
"""Those that can be picked: all that were asked for."""
INTERVAL = "$__rate_interval"
TUNING_DAYS = 90
"""Days over which the cost of tuning is spread (docs/estimation.md), as in monitoring/alerts/recording.yaml."""


def rate(metric: str, by: str = "", match: str = TASK, window: str = INTERVAL) -> str:
    """How fast a counter grows in a second, added up over gateways by these labels."""
    return f"{_sum(by)} (rate({metric}{{{match}}}[{window}]))"


def growth(metric: str, by: str = "", match: str = TASK, window: str = INTERVAL) -> str:
    """By how much a counter grew within a window, added up over gateways by these labels."""
    return f"{_sum(by)} (increase({metric}{{{match}}}[{window}]))"


def quantile(share: float, metric: str, by: str = "", match: str = TASK, window: str = INTERVAL) -> str:
    """The value under which this share of a histogram's measurements within a window lies, by these labels."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{match}}}[{window}])))"


def greatest(metric: str, by: str = "", match: str = "") -> str:
    """What a gauge says that every gateway tells: the greatest of them, by these labels."""
    return (
        f"max{f' by ({by})' if by else ''} ({metric}{{{match}}})"
        if match
        else f"max{f' by ({by})' if by else ''} ({metric})"
    )


def serving(expr: str) -> str:
    """What is said by task and version, of those versions that have answered within the last hour."""
    return f"{expr} and on (task, version) ({growth('apprentice_requests_total', 'task, version', window='1h')} > 0)"


def added(metric: str, by: str, match: str = "") -> str:
    """What a gauge says that each gateway tells for itself: the sum of them, by these labels."""
    return f"sum by ({by}) ({metric}{{{match}}})" if match else f"sum by ({by}) ({metric})"


def failed(window: str) -> str:
    """Share of requests that failed or broke off, of those that callers sent well."""
    bad = growth("apprentice_requests_total", match=f'{TASK}, outcome=~"failed|truncated"', window=window)
    none = growth("apprentice_requests_total", window=window)
    of = growth("apprentice_requests_total", match=f'{TASK}, outcome=~"ok|failed|truncated"', window=window)
    return f"({bad} or 0 * {none}) / ({of} > 0)"


def saved(by: str, window: str, days: str) -> str:
    """The net saving within a window in US dollars (docs/estimation.md); `by` may be `part` or `task`.

    `days` is the window's length, by which tuning is spread. The recording rule for 7 days is the same, over all tasks.
    """
    spread = f"{days} / {TUNING_DAYS}"
    parts = {
        "saved": f"increase(apprentice_saving_usd_total{{{TASK}}}[{window}])",
        "overspent": f"-increase(apprentice_overspend_usd_total{{{TASK}}}[{window}])",
        "shadows": f'-increase(apprentice_cost_usd_total{{{TASK}, purpose="shadow"}}[{window}])',
        "reviews": f"-increase(apprentice_review_cost_usd_total{{{TASK}}}[{window}])",
        "tuning": f"-max by (task) (apprentice_tuning_cost_usd{{{TASK}}}) * {spread}",
    }
    named = (f'label_replace({expr}, "part", "{part}", "", "")' for part, expr in parts.items())
    return f"{_sum(by)} ({' or '.join(named)})"


def told(expr: str) -> str:
    """The same series, but those without a task (a pool was asked for by its name) under a name that can be shown."""
    return f'label_replace({expr}, "task", "no task", "task", "")'


def _sum(by: str) -> str:
    return f"sum by ({by})" if by else "sum"
