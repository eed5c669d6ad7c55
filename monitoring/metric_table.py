"""The table of metrics. docs/reference/metrics.md lists them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from monitoring.metric_series import Counter, Gauge, Histogram
from monitoring.metric_spec import Joined, Spec

SECONDS_OF_A_REQUEST = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
SECONDS_OF_A_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
SECONDS_OF_OVERHEAD = (5e-05, 1e-04, 2e-04, 3e-04, 5e-04, 1e-03, 2e-03, 5e-03, 0.01, 0.02, 0.05, 0.1)
SECONDS_OF_A_LOAD = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
SECONDS_OF_A_WRITE = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SECONDS_OF_LAG = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)

TASK_POOL = ("task", "pool")
BY_TASK_AND_POOL = "(T+1)*P + 1"


def declare(
    unit: str,
    help_text: str,
    labels: tuple[str, ...] = (),
    children: str = "1",
    bounds: tuple[float, ...] = (),
    joined: Joined = "sum",
    merged: Joined = "greatest",
) -> Any:
    """Make a row of the table: a metric's Spec without name and kind. These come from its attribute."""
    return Spec("", "gauge", unit, help_text, labels, children, bounds, joined, merged)


class MetricFamilies:
    """The metrics, each a family of series. `requests: Counter` is the counter `apprentice_requests_total`: only the
    names of counters end in `_total`."""

    # fmt: off
    requests: Counter = declare(
        "requests", "Finished requests.", ("task", "version", "pool", "reason", "outcome"), "(T+1)*(V+1)*40 + 306",
    )
    request_duration_seconds: Histogram = declare(
        "seconds", "Time from a request's first byte to its end.", TASK_POOL, "(T+1)*(P+1) + 1", SECONDS_OF_A_REQUEST,
    )
    time_to_first_token_seconds: Histogram = declare(
        "seconds", "Time to the first token, streamed.", TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_REQUEST,
    )
    time_per_output_token_seconds: Histogram = declare(
        "seconds", "Mean time of a token; in a stream, after the first.", TASK_POOL, BY_TASK_AND_POOL,
        SECONDS_OF_A_TOKEN,
    )
    overhead_seconds: Histogram = declare(
        "seconds", "Time until commit without waits for body, place and engine.", TASK_POOL, BY_TASK_AND_POOL,
        SECONDS_OF_OVERHEAD,
    )
    tokens: Counter = declare(
        "tokens", "Tokens of prompts and completions.", ("task", "version", "pool", "type"), "(T+1)*(V+1)*2 + 3",
    )
    cost_usd: Counter = declare(
        "US dollars", "Known cost in US dollars.", ("task", "version", "pool", "purpose"), "(T+1)*(V+1)*5 + 6",
    )
    caller_cost_usd: Counter = declare(
        "US dollars", "Known cost of a key's requests in US dollars.", ("caller", "owner"), "K + 1",
    )
    cost_unknown: Counter = declare("requests", "Requests with unknown cost.", ("pool",), "P + 1")
    saving_usd: Counter = declare(
        "US dollars", "US dollars below general's price, of cheaper requests.", ("task",), "T + 2",
    )
    overspend_usd: Counter = declare(
        "US dollars", "US dollars above general's price, of dearer requests.", ("task",), "T + 2",
    )
    fallbacks: Counter = declare(
        "fallbacks", "Requests that another choice answered before commit.", ("task", "from", "to", "reason"),
        "T*P*12 + 18",
    )
    check_fired: Counter = declare(
        "requests", "Requests for which a check fired.", ("task", "version", "check", "mode"), "T*V*5 + 27",
    )
    check_unjudged: Counter = declare(
        "requests", "Requests that an enforced check could not judge.", ("task", "version", "check"), "T*V*4 + 9",
    )
    route_asked: Counter = declare("requests", "Decisions alone, and token counts.", ("reason",), "18")
    refusals: Counter = declare("requests", "Errors sent to callers.", ("code",), "56")
    requests_shed: Counter = declare("requests", "Requests that got no place.", ("cause",), "6")
    queue_length: Gauge = declare("requests", "Requests that wait for a place.", ("priority",), "3", merged="sum")
    queue_seconds: Histogram = declare(
        "seconds", "Waiting time of requests without a free place.", ("priority",), "3", SECONDS_OF_A_WRITE,
    )
    configuration_reloads: Counter = declare("reloads", "Reloads of the configuration.", ("outcome",), "17")
    configuration_loaded_at_seconds: Gauge = declare(
        "Unix seconds", "Unix time when the active configuration was read.", merged="least",
    )
    limits_unenforced: Counter = declare("requests", "Requests without a limit while Redis did not answer.")
    fallback_capped: Counter = declare("requests", "Requests that met a capped fallback.", ("task", "reason"), "T + 18")
    attempts: Counter = declare("attempts", "Attempts at engines.", ("pool", "outcome"), "P*16 + 18")
    feedback: Counter = declare(
        "judgements", "Judgements.", ("task", "version", "metric", "outcome"), "(T+1)*(V+1)*M*5 + 17",
    )
    feedback_coverage_ratio: Gauge = declare(
        "ratio, 0 to 1", "Share of recent requests with feedback.", ("task",), "T + 2", joined="least",
        merged="least",
    )
    adapter_info: Gauge = declare(
        "always 1", "1 for each known version.", ("task", "version", "pool", "digest", "state"), "T*V*2 + 11",
    )
    adapter_load_seconds: Histogram = declare(
        "seconds", "Time of an engine to load an adapter.", ("pool",), "P + 1", SECONDS_OF_A_LOAD,
    )
    adapter_placements: Gauge = declare(
        "replicas", "Replicas on which a version is in a state.", ("version", "state"), "T*V*8 + 11",
    )
    adapter_loads_left: Gauge = declare(
        "loads", "Adapters that an engine still takes.", ("pool", "replica"), "R + 1", joined="least", merged="least",
    )
    adapter_working_set_ratio: Gauge = declare(
        "ratio", "Versions for a replica, as a share of its room.", ("pool", "replica"), "R + 1", joined="greatest",
    )
    shadow_requests: Counter = declare(
        "requests", "Requests for a shadow: agreed, differed, failed or dropped.", ("task", "version", "outcome"),
        "T*V*4 + 17",
    )
    reported_records: Counter = declare(
        "records", "Reported records: created, same, conflict or refused.", ("task", "version", "outcome"),
        "(T+1)*(V+1)*3 + 17",
    )
    canary_verdicts: Counter = declare(
        "verdicts", "Verdicts on canaries that were carried out.", ("task", "action"), "T*3 + 4",
    )
    verdict: Gauge = declare(
        "0, 1 or 2", "Verdict on a version: 0 healthy, 1 suspect, 2 degraded.", ("task", "version"), "T*V + 1",
        joined="greatest",
    )
    verdict_since_seconds: Gauge = declare(
        "Unix seconds", "Unix time of a version's present verdict.", ("task", "version"), "T*V + 1",
        joined="greatest",
    )
    evidence_rests_on_one: Gauge = declare(
        "0 or 1", "1 where evidence rests on one caller or rater.", ("task", "version"), "T*V + 1", joined="greatest",
    )
    kept_ratio: Gauge = declare(
        "ratio, 0 to 1", "Share of requests that a version keeps.", ("task", "version"), "T*V + 1", joined="least",
    )
    e_value: Gauge = declare(
        "ratio", "E-value that a signal got worse, at most 1e12.", ("task", "version", "signal"),
        "T*V*14 + 15", joined="greatest",
    )
    e_value_threshold: Gauge = declare(
        "ratio", "The e-value at which a signal alarms.", ("task", "version", "signal"), "T*V*14 + 15",
        joined="greatest",
    )
    quality_ratio: Gauge = declare(
        "ratio, 0 to 1", "Estimated share of an arm's right answers, with its 95% interval.",
        ("task", "version", "arm", "bound"), "T*V*9 + 16", joined="least",
    )
    label_coverage_ratio: Gauge = declare(
        "ratio, 0 to 1", "Share of a version's requests with a label.", ("task", "version"), "T*V + 1",
        joined="least",
    )
    labels_per_day: Gauge = declare(
        "labels a day", "Labels of a version in a day, at today's rate.", ("task", "version"), "T*V + 1",
        joined="least",
    )
    labels: Gauge = declare(
        "labels", "Labels on which a version's verdict can rest.", ("task", "version"), "T*V + 1", joined="least",
    )
    labels_wanted: Gauge = declare(
        "labels", "Labels of a version that a verdict needs.", ("task",), "T + 1", joined="greatest",
    )
    time_to_detect_seconds: Gauge = declare(
        "seconds", "Time to find errors risen by these points; +Inf: never.", ("task", "version", "points"),
        "T*V*2 + 3", joined="greatest",
    )
    feedback_delay_seconds: Gauge = declare(
        "seconds", "Median time from a request to its label.", ("task", "version"), "T*V + 1", joined="greatest",
    )
    complaints_expected: Gauge = declare(
        "complaints", "Complaints expected of a version so far.", ("task", "version"), "T*V + 1",
    )
    complaints_seen: Gauge = declare("complaints", "Complaints about a version so far.", ("task", "version"), "T*V + 1")
    monitor_actions: Counter = declare(
        "actions", "Actions of the monitor, undone ones too.", ("task", "kind"), "T*15 + 16",
    )
    monitor_unmatched: Counter = declare("feedback", "Feedback read after its record was gone.")
    monitor_judged_at_seconds: Gauge = declare("Unix seconds", "Unix time of the last judgement.")
    monitor_behind_seconds: Gauge = declare("seconds", "Age of the oldest unread evidence.")
    monitor_unjudged: Gauge = declare("versions", "Versions that can't be judged.")
    shadow_queue_length: Gauge = declare("requests", "Requests that wait for a shadow.", merged="sum")
    shadow_queue_max: Gauge = declare("requests", "Most requests that may wait for a shadow.", merged="sum")
    shadow_share_ratio: Gauge = declare(
        "ratio, 0 to 1", "Probability with which both arms answer.", ("task",), "T + 1", joined="greatest",
    )
    judge_agreement_ratio: Gauge = declare(
        "ratio, 0 to 1", "Agreement of the judge of shadow pairs with people.", ("task",), "T + 1", joined="least",
    )
    pairs: Counter = declare(
        "pairs", "Shadow pairs: agreed, differed, failed, unjudged or passed_over.", ("task", "version", "outcome"),
        "T*V*5 + 17",
    )
    reviews: Counter = declare(
        "reviews", "Reviews: drawn, dropped, given, skipped, answered or expired.", ("task", "outcome"), "T*6 + 17",
    )
    reviews_waiting: Gauge = declare("reviews", "Requests that wait for review.", ("task",), "T + 1")
    review_cost_usd: Counter = declare("US dollars", "Cost of answered reviews in US dollars.", ("task",), "T + 1")
    tuning_cost_usd: Gauge = declare("US dollars", "Cost of a task's fine-tuning in US dollars.", ("task",), "T + 1")
    version_stale: Gauge = declare(
        "0 or 1", "1 where a version learned rules that have changed.", ("task", "version"), "T*V + 1",
        joined="greatest",
    )
    version_review_by_seconds: Gauge = declare(
        "Unix seconds", "Unix time by which a version's owner must review it.", ("task", "version"), "T*V + 1",
        joined="least",
    )
    retraining_open: Gauge = declare("requests", "Open requests to train.", ("task",), "T + 1")
    webhooks: Counter = declare("messages", "Messages to the webhook: sent, retried or dropped.", ("outcome",), "17")
    evaluation_rows: Counter = declare(
        "rows", "Rows of evaluations: right, wrong, empty, refused or failed.", ("outcome",), "17",
    )
    fitting: Counter = declare("fittings", "Fittings: ready or failed.", ("outcome",), "17")
    fitting_seconds: Histogram = declare("seconds", "Time to fit a model.", bounds=SECONDS_OF_A_LOAD)
    fitted_unused: Counter = declare(
        "faults", "Fitted models unreadable (damaged), out of date (unsuited) or failed.", ("outcome",), "17",
    )
    replica_cordoned: Gauge = declare(
        "0 or 1", "1 where a replica is cordoned.", ("pool", "replica"), "R + 1", joined="greatest",
    )
    breaker_state: Gauge = declare(
        "0, 1 or 2", "Worst breaker of a replica: 0 closed, 1 half-open, 2 open.", ("pool", "replica"), "R + 1",
        joined="greatest",
    )
    discovery_failing: Gauge = declare(
        "0 or 1", "1 where the discovery of a pool fails, or names no replica.", ("pool",), "P + 1",
        joined="greatest", merged="greatest",
    )
    replica_up: Gauge = declare(
        "0 or 1", "1 where the last health check passed.", ("pool", "replica"), "R + 1", joined="least",
        merged="least",
    )
    in_flight: Gauge = declare(
        "requests", "Requests of this gateway on a replica.", ("pool", "replica"), "R + 1", merged="sum",
    )
    tasks: Gauge = declare("tasks", "Tasks of the event loop.", merged="sum")
    background_job_pass_seconds: Gauge = declare(
        "seconds", "Time that a job's pass has lasted; 0 between passes.", ("background_job",), "14",
        joined="greatest",
    )
    processes: Gauge = declare("processes", "Processes that serve.", merged="sum")
    process_restarts: Counter = declare("processes", "Processes that were started again.")
    texts: Counter = declare(
        "texts", "Texts kept, or dropped: no room, not redacted, disk damaged.", ("task", "outcome"), "T*2 + 17",
    )
    records_pending: Gauge = declare("records", "Records that are not stored yet.", merged="sum")
    records_dropped: Counter = declare("records", "Records lost: spool or buffer full, or disk damaged.")
    records_flush_seconds: Histogram = declare(
        "seconds", "Time to write one batch of records.", bounds=SECONDS_OF_A_WRITE,
    )
    records_oldest_age_seconds: Gauge = declare("seconds", "Age of the oldest record that is not stored yet.")
    records_spool_bytes: Gauge = declare("bytes", "Size of this gateway's spool.", merged="sum")
    records_spool_bytes_max: Gauge = declare("bytes", "Size beyond which the oldest records go.", merged="sum")
    records_archived: Counter = declare("records", "Records written to Parquet files.")
    records_unarchived_dropped: Counter = declare("records", "Records dropped by the stream before they were archived.")
    redis_up: Gauge = declare("0 or 1", "1 where Redis has answered lately.", merged="least")
    state_durable: Gauge = declare("0 or 1", "1 where acknowledged writes are on the disk of Redis.", merged="least")
    event_loop_lag_seconds: Histogram = declare(
        "seconds", "Lateness of the event loop's timers.", bounds=SECONDS_OF_LAG,
    )
    snapshot_generation: Gauge = declare("generation", "Generation of the policy snapshot in force.", merged="least")
    snapshot_age_seconds: Gauge = declare("seconds", "Time since this gateway last confirmed its snapshot.")
    build_info: Gauge = declare("always 1", "1, with the version of the gateway.", ("version",), "2")
    series_overflow: Counter = declare(
        "updates", "Updates counted under other, beyond the series budget.", ("family",), "103",
    )
    measurements_lost: Counter = declare(
        "updates", "Unusable updates and unreadable gauges: report it.", ("family",), "103",
    )
    # fmt: on


def _take_specs() -> tuple[Spec, ...]:
    """The rows, each with its name and kind. They are removed from the class, since meters have families in their
    place."""
    specs: list[Spec] = []
    for attribute, family in MetricFamilies.__annotations__.items():
        name = f"apprentice_{attribute}_total" if family == "Counter" else f"apprentice_{attribute}"
        specs.append(replace(vars(MetricFamilies)[attribute], name=name, kind=family.lower()))
        delattr(MetricFamilies, attribute)
    return tuple(specs)


METRICS = _take_specs()
