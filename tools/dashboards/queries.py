"""PromQL expressions for panels, over the tasks and versions that are selected above a dashboard."""

from __future__ import annotations

TASK = 'task=~"$task"'
VERSION = 'task=~"$task", version=~"$version"'
TASKS = "label_values(apprentice_requests_total, task)"
"""All tasks with requests."""
INTERVAL = "$__rate_interval"
MODEL = 'model_name=~"$model", instance=~"$instance"'
"""Of vLLM's own series: they know no task and no version."""
TUNING_DAYS = 90
"""Days over which the cost of tuning is spread, as in monitoring/alerts/recording.yaml."""


def sum_rate(metric: str, by: str = "", match: str = TASK, window: str = INTERVAL) -> str:
    """A counter's increase per second, summed over gateways by the labels `by`."""
    return f"{_aggregate('sum', by)} (rate({metric}{{{match}}}[{window}]))"


def sum_increase(metric: str, by: str = "", match: str = TASK, window: str = INTERVAL) -> str:
    """A counter's increase within a window, summed over gateways by the labels `by`."""
    return f"{_aggregate('sum', by)} (increase({metric}{{{match}}}[{window}]))"


def estimate_quantile(share: float, metric: str, by: str = "", match: str = TASK, window: str = INTERVAL) -> str:
    """A quantile of a histogram's measurements within a window, by the labels `by`."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) (rate({metric}_bucket{{{match}}}[{window}])))"


def take_max(metric: str, by: str = "", match: str = "") -> str:
    """The maximum of a gauge that every gateway reports for the whole fleet, by the labels `by`."""
    return f"{_aggregate('max', by)} ({_select(metric, match)})"


def sum_gauge(metric: str, by: str, match: str = "") -> str:
    """The sum of a gauge that each gateway reports for itself, by the labels `by`."""
    return f"{_aggregate('sum', by)} ({_select(metric, match)})"


def keep_serving(expr: str) -> str:
    """The series of versions that have answered a request within the last hour."""
    answered = sum_increase("apprentice_requests_total", "task, version", window="1h")
    return f"{expr} and on (task, version) ({answered} > 0)"


def compute_failed_share(window: str) -> str:
    """Share of valid requests that failed or were truncated."""
    bad = sum_increase("apprentice_requests_total", match=f'{TASK}, outcome=~"failed|truncated"', window=window)
    zero = f"0 * {sum_increase('apprentice_requests_total', window=window)}"
    valid = sum_increase("apprentice_requests_total", match=f'{TASK}, outcome=~"ok|failed|truncated"', window=window)
    return f"({bad} or {zero}) / ({valid} > 0)"


def compute_saving(by: str, window: str, days: str) -> str:
    """The net saving within a window in US dollars, by `part` or `task`.

    `days` is the window's length: tuning is spread over TUNING_DAYS. The recording rule for 7 days is the same, over
    all tasks.
    """
    parts = {
        "saved": f"increase(apprentice_saving_usd_total{{{TASK}}}[{window}])",
        "overspent": f"-increase(apprentice_overspend_usd_total{{{TASK}}}[{window}])",
        "shadows": f'-increase(apprentice_cost_usd_total{{{TASK}, purpose="shadow"}}[{window}])',
        "reviews": f"-increase(apprentice_review_cost_usd_total{{{TASK}}}[{window}])",
        "tuning": f"-max by (task) (apprentice_tuning_cost_usd{{{TASK}}}) * {days} / {TUNING_DAYS}",
    }
    labelled = (f'label_replace({expr}, "part", "{part}", "", "")' for part, expr in parts.items())
    return f"{_aggregate('sum', by)} ({' or '.join(labelled)})"


def find_last(metric: str, by: str, match: str) -> str:
    """The Unix time in milliseconds at which a counter last rose or began, by the labels `by`, in the shown range."""
    series = f"{metric}{{{match}}}"
    risen = f"sum by ({by}) (increase({series}[{INTERVAL}]) > 0 or {series} unless {series} offset {INTERVAL})"
    return f"1000 * max_over_time(timestamp({risen})[$__range:$__interval])"


def count_shown(metric: str, by: str, match: str) -> str:
    """A counter's increase in the shown range by the labels `by`, with the first value of a series that began in it."""
    series = f"{metric}{{{match}}}"
    first = f"min_over_time({series}[$__range])"
    risen = f"increase({series}[$__range]) + ({first} unless {series} offset $__range or 0 * {first})"
    return f"round(sum by ({by}) ({risen}))"


def name_missing_task(expr: str) -> str:
    """The same series, with the task "no task" for requests that named a pool instead."""
    return f'label_replace({expr}, "task", "no task", "task", "")'


def _aggregate(operator: str, by: str) -> str:
    return f"{operator} by ({by})" if by else operator


def _select(metric: str, match: str) -> str:
    return f"{metric}{{{match}}}" if match else metric
