"""The table of metrics, and the attribute of each. docs/reference/metrics.md lists them."""

from __future__ import annotations

from monitoring.metric_series import Counter, Gauge, Histogram
from monitoring.metric_spec import Spec

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

METRICS: tuple[Spec, ...] = (
    Spec(
        "apprentice_requests_total", "counter", "requests", "Finished requests.",
        ("task", "version", "pool", "reason", "outcome"), "(T+1)*(V+1)*40 + 252",
    ),
    Spec(
        "apprentice_request_duration_seconds", "histogram", "seconds",
        "Time from a request's first byte to its end.",
        TASK_POOL, "(T+1)*(P+1) + 1", SECONDS_OF_A_REQUEST,
    ),
    Spec(
        "apprentice_time_to_first_token_seconds", "histogram", "seconds",
        "Time to the first token, streamed.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_REQUEST,
    ),
    Spec(
        "apprentice_time_per_output_token_seconds", "histogram", "seconds",
        "Mean time of a token; in a stream, after the first.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_TOKEN,
    ),
    Spec(
        "apprentice_overhead_seconds", "histogram", "seconds",
        "Time until commit without waits for body, place and engine.", TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_OVERHEAD,
    ),
    Spec(
        "apprentice_tokens_total", "counter", "tokens", "Tokens of prompts and completions.",
        ("task", "version", "pool", "type"), "(T+1)*(V+1)*2 + 3",
    ),
    Spec(
        "apprentice_cost_usd_total", "counter", "US dollars", "Known cost in US dollars.",
        ("task", "version", "pool", "purpose"), "(T+1)*(V+1)*5 + 6",
    ),
    Spec(
        "apprentice_caller_cost_usd_total", "counter", "US dollars",
        "Known cost of a key's requests in US dollars.", ("caller", "owner"), "K + 1",
    ),
    Spec(
        "apprentice_cost_unknown_total", "counter", "requests", "Requests with unknown cost.", ("pool",), "P + 1",
    ),
    Spec(
        "apprentice_saving_usd_total", "counter", "US dollars",
        "US dollars below general's price, of cheaper requests.", ("task",), "T + 2",
    ),
    Spec(
        "apprentice_overspend_usd_total", "counter", "US dollars",
        "US dollars above general's price, of dearer requests.", ("task",), "T + 2",
    ),
    Spec(
        "apprentice_fallbacks_total", "counter", "fallbacks", "Requests that another choice answered before commit.",
        ("task", "from", "to", "reason"), "T*P*12 + 18",
    ),
    Spec(
        "apprentice_check_fired_total", "counter", "requests",
        "Requests for which a check fired.",
        ("task", "version", "check", "mode"), "T*V*5 + 27",
    ),
    Spec(
        "apprentice_check_unjudged_total", "counter", "requests",
        "Requests that an enforced check could not judge.",
        ("task", "version", "check"), "T*V*4 + 9",
    ),
    Spec(
        "apprentice_route_asked_total", "counter", "requests", "Decisions alone, and token counts.", ("reason",), "18",
    ),
    Spec(
        "apprentice_refusals_total", "counter", "requests", "Errors sent to callers.", ("code",), "56",
    ),
    Spec(
        "apprentice_requests_shed_total", "counter", "requests", "Requests that got no place.", ("cause",), "6",
    ),
    Spec(
        "apprentice_queue_length", "gauge", "requests", "Requests that wait for a place.", ("priority",), "3",
        merged="sum",
    ),
    Spec(
        "apprentice_queue_seconds", "histogram", "seconds", "Waiting time of requests without a free place.",
        ("priority",), "3", SECONDS_OF_A_WRITE,
    ),
    Spec(
        "apprentice_configuration_reloads_total", "counter", "reloads", "Reloads of the configuration.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_configuration_loaded_at_seconds", "gauge", "Unix seconds",
        "Unix time when the active configuration was read.", merged="least",
    ),
    Spec(
        "apprentice_limits_unenforced_total", "counter", "requests",
        "Requests without a limit while Redis did not answer.",
    ),
    Spec(
        "apprentice_fallback_capped_total", "counter", "requests", "Requests that met a capped fallback.",
        ("task", "reason"), "T + 18",
    ),
    Spec(
        "apprentice_attempts_total", "counter", "attempts", "Attempts at engines.", ("pool", "outcome"), "P*14 + 15",
    ),
    Spec(
        "apprentice_feedback_total", "counter", "judgements", "Judgements.",
        ("task", "version", "metric", "outcome"), "(T+1)*(V+1)*M*5 + 14",
    ),
    Spec(
        "apprentice_feedback_coverage_ratio", "gauge", "ratio, 0 to 1",
        "Share of recent requests with feedback.", ("task",), "T + 2", joined="least", merged="least",
    ),
    Spec(
        "apprentice_adapter_info", "gauge", "always 1", "1 for each known version.",
        ("task", "version", "pool", "digest", "state"), "T*V*2 + 11",
    ),
    Spec(
        "apprentice_adapter_load_seconds", "histogram", "seconds", "Time of an engine to load an adapter.",
        ("pool",), "P + 1", SECONDS_OF_A_LOAD,
    ),
    Spec(
        "apprentice_adapter_placements", "gauge", "replicas", "Replicas on which a version is in a state.",
        ("version", "state"), "T*V*8 + 11",
    ),
    Spec(
        "apprentice_adapter_loads_left", "gauge", "loads", "Adapters that an engine still takes.",
        ("pool", "replica"), "R + 1", joined="least", merged="least",
    ),
    Spec(
        "apprentice_adapter_working_set_ratio", "gauge", "ratio",
        "Versions for a replica, as a share of its room.",
        ("pool", "replica"), "R + 1", joined="greatest",
    ),
    Spec(
        "apprentice_shadow_requests_total", "counter", "requests",
        "Requests for a shadow: agreed, differed, failed or dropped.", ("task", "version", "outcome"), "T*V*4 + 14",
    ),
    Spec(
        "apprentice_reported_records_total", "counter", "records",
        "Reported records: created, same, conflict or refused.", ("task", "version", "outcome"), "(T+1)*(V+1)*3 + 14",
    ),
    Spec(
        "apprentice_rollout_verdicts_total", "counter", "verdicts", "Verdicts on canaries that were carried out.",
        ("task", "action"), "T*3 + 4",
    ),
    Spec(
        "apprentice_verdict", "gauge", "0, 1 or 2", "Verdict on a version: 0 healthy, 1 suspect, 2 degraded.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_verdict_since_seconds", "gauge", "Unix seconds", "Unix time of a version's present verdict.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_evidence_rests_on_one", "gauge", "0 or 1",
        "1 where evidence rests on one caller or rater.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_kept_ratio", "gauge", "ratio, 0 to 1", "Share of requests that a version keeps.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_e_value", "gauge", "ratio", "E-value that a signal (`stream`) got worse, at most 1e12.",
        ("task", "version", "stream"), "T*V*14 + 15", joined="greatest",
    ),
    Spec(
        "apprentice_e_value_threshold", "gauge", "ratio", "The e-value at which a signal alarms.",
        ("task", "version", "stream"), "T*V*14 + 15", joined="greatest",
    ),
    Spec(
        "apprentice_quality_ratio", "gauge", "ratio, 0 to 1",
        "Estimated share of an arm's right answers, with its 95% interval.",
        ("task", "version", "arm", "bound"), "T*V*9 + 16", joined="least",
    ),
    Spec(
        "apprentice_label_coverage_ratio", "gauge", "ratio, 0 to 1", "Share of a version's requests with a label.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_labels_per_day", "gauge", "labels a day", "Labels of a version in a day, at today's rate.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_labels", "gauge", "labels", "Labels on which a version's verdict can rest.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_labels_wanted", "gauge", "labels", "Labels of a version that a verdict needs.",
        ("task",), "T + 1", joined="greatest",
    ),
    Spec(
        "apprentice_time_to_detect_seconds", "gauge", "seconds",
        "Time to find errors risen by these points; +Inf: never.",
        ("task", "version", "points"), "T*V*2 + 3", joined="greatest",
    ),
    Spec(
        "apprentice_feedback_delay_seconds", "gauge", "seconds", "Median time from a request to its label.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_complaints_expected", "gauge", "complaints", "Complaints expected of a version so far.",
        ("task", "version"), "T*V + 1",
    ),
    Spec(
        "apprentice_complaints_seen", "gauge", "complaints", "Complaints about a version so far.",
        ("task", "version"), "T*V + 1",
    ),
    Spec(
        "apprentice_monitor_actions_total", "counter", "actions", "Actions of the monitor, undone ones too.",
        ("task", "kind"), "T*15 + 16",
    ),
    Spec(
        "apprentice_monitor_unmatched_total", "counter", "feedback",
        "Feedback read after its record was gone.",
    ),
    Spec(
        "apprentice_monitor_judged_at_seconds", "gauge", "Unix seconds",
        "Unix time of the last judgement of all versions.",
    ),
    Spec(
        "apprentice_monitor_behind_seconds", "gauge", "seconds",
        "Age of the oldest unread evidence.",
    ),
    Spec(
        "apprentice_shadow_queue_length", "gauge", "requests", "Requests that wait for a shadow.", merged="sum",
    ),
    Spec(
        "apprentice_shadow_queue_max", "gauge", "requests", "Most requests that may wait for a shadow.", merged="sum",
    ),
    Spec(
        "apprentice_shadow_share_ratio", "gauge", "ratio, 0 to 1", "Probability with which both arms answer.",
        ("task",), "T + 1", joined="greatest",
    ),
    Spec(
        "apprentice_judge_agreement_ratio", "gauge", "ratio, 0 to 1",
        "Agreement of the judge of shadow pairs with people.", ("task",), "T + 1", joined="least",
    ),
    Spec(
        "apprentice_pairs_total", "counter", "pairs",
        "Shadow pairs: agreed, differed, failed, unjudged or passed_over.",
        ("task", "version", "outcome"), "T*V*5 + 14",
    ),
    Spec(
        "apprentice_reviews_total", "counter", "reviews",
        "Reviews: drawn, dropped, given, skipped, answered or expired.", ("task", "outcome"), "T*6 + 14",
    ),
    Spec(
        "apprentice_reviews_waiting", "gauge", "reviews", "Requests that wait for review.", ("task",), "T + 1",
    ),
    Spec(
        "apprentice_review_cost_usd_total", "counter", "US dollars", "Cost of answered reviews in US dollars.",
        ("task",), "T + 1",
    ),
    Spec(
        "apprentice_tuning_cost_usd", "gauge", "US dollars", "Cost of a task's fine-tuning in US dollars.",
        ("task",), "T + 1",
    ),
    Spec(
        "apprentice_version_stale", "gauge", "0 or 1",
        "1 where a version learned rules that have changed.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_version_review_by_seconds", "gauge", "Unix seconds",
        "Unix time by which a version's owner must review it.", ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_retraining_open", "gauge", "requests", "Open requests to train.", ("task",), "T + 1",
    ),
    Spec(
        "apprentice_webhooks_total", "counter", "messages", "Messages to the webhook: sent, retried or dropped.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_evaluation_rows_total", "counter", "rows",
        "Rows of evaluations: right, wrong, empty, refused or failed.", ("outcome",), "14",
    ),
    Spec(
        "apprentice_fitting_total", "counter", "fittings", "Fittings: ready or failed.", ("outcome",), "14",
    ),
    Spec(
        "apprentice_fitting_seconds", "histogram", "seconds", "Time to fit a model.", bounds=SECONDS_OF_A_LOAD,
    ),
    Spec(
        "apprentice_fitted_unused_total", "counter", "faults",
        "Fitted models unreadable (damaged), out of date (unsuited) or failed.", ("outcome",), "14",
    ),
    Spec(
        "apprentice_replica_cordoned", "gauge", "0 or 1", "1 where a replica is cordoned.",
        ("pool", "replica"), "R + 1", joined="greatest",
    ),
    Spec(
        "apprentice_breaker_state", "gauge", "0, 1 or 2", "Worst breaker of a replica: 0 closed, 1 half-open, 2 open.",
        ("pool", "replica"), "R + 1", joined="greatest",
    ),
    Spec(
        "apprentice_discovery_failing", "gauge", "0 or 1",
        "1 where the discovery of a pool fails, or names no replica.",
        ("pool",), "P + 1", joined="greatest", merged="greatest",
    ),
    Spec(
        "apprentice_replica_up", "gauge", "0 or 1", "1 where the last health check passed.",
        ("pool", "replica"), "R + 1", joined="least", merged="least",
    ),
    Spec(
        "apprentice_in_flight", "gauge", "requests", "Requests of this gateway on a replica.",
        ("pool", "replica"), "R + 1", merged="sum",
    ),
    Spec(
        "apprentice_tasks", "gauge", "tasks", "Tasks of the event loop.", merged="sum",
    ),
    Spec("apprentice_processes", "gauge", "processes", "Processes that serve.", merged="sum"),
    Spec(
        "apprentice_process_restarts_total", "counter", "processes",
        "Processes that were started again.",
    ),
    Spec(
        "apprentice_texts_total", "counter", "texts",
        "Texts kept, or dropped: no room, or not to be redacted.", ("task", "outcome"), "T*2 + 14",
    ),
    Spec("apprentice_records_pending", "gauge", "records", "Records that are not stored yet.", merged="sum"),
    Spec(
        "apprentice_records_dropped_total", "counter", "records",
        "Records lost: spool or buffer full, or disk damaged.",
    ),
    Spec(
        "apprentice_records_flush_seconds", "histogram", "seconds", "Time to write one batch of records.",
        bounds=SECONDS_OF_A_WRITE,
    ),
    Spec(
        "apprentice_records_oldest_age_seconds", "gauge", "seconds", "Age of the oldest record that is not stored yet.",
    ),
    Spec("apprentice_records_spool_bytes", "gauge", "bytes", "Size of this gateway's spool.", merged="sum"),
    Spec(
        "apprentice_records_spool_bytes_max", "gauge", "bytes", "Size beyond which the oldest records go.",
        merged="sum",
    ),
    Spec(
        "apprentice_records_archived_total", "counter", "records", "Records written to Parquet files.",
    ),
    Spec(
        "apprentice_records_unarchived_dropped_total", "counter", "records",
        "Records dropped by the stream before they were archived.",
    ),
    Spec("apprentice_redis_up", "gauge", "0 or 1", "1 where Redis has answered lately.", merged="least"),
    Spec(
        "apprentice_state_durable", "gauge", "0 or 1", "1 where acknowledged writes are on the disk of Redis.",
        merged="least",
    ),
    Spec(
        "apprentice_event_loop_lag_seconds", "histogram", "seconds", "Lateness of the event loop's timers.",
        bounds=SECONDS_OF_LAG,
    ),
    Spec(
        "apprentice_snapshot_generation", "gauge", "generation", "Generation of the policy snapshot in force.",
        merged="least",
    ),
    Spec(
        "apprentice_snapshot_age_seconds", "gauge", "seconds", "Time since this gateway last confirmed its snapshot.",
    ),
    Spec(
        "apprentice_build_info", "gauge", "always 1", "1, with the version of the gateway.", ("version",), "2",
    ),
    Spec(
        "apprentice_series_overflow_total", "counter", "updates",
        "Updates counted under other, beyond the series budget.", ("family",), "96",
    ),
    Spec(
        "apprentice_measurements_lost_total", "counter", "updates",
        "Unusable updates and unreadable gauges: report it.", ("family",), "96",
    ),
)  # fmt: skip


class MetricFamilies:
    """The families of the table. Attributes have the metrics' names, without prefix and `_total`."""

    series_overflow: Counter
    measurements_lost: Counter
    requests: Counter
    request_duration_seconds: Histogram
    time_to_first_token_seconds: Histogram
    time_per_output_token_seconds: Histogram
    overhead_seconds: Histogram
    tokens: Counter
    cost_usd: Counter
    caller_cost_usd: Counter
    cost_unknown: Counter
    saving_usd: Counter
    overspend_usd: Counter
    fallbacks: Counter
    check_fired: Counter
    check_unjudged: Counter
    route_asked: Counter
    refusals: Counter
    requests_shed: Counter
    queue_length: Gauge
    queue_seconds: Histogram
    configuration_reloads: Counter
    configuration_loaded_at_seconds: Gauge
    limits_unenforced: Counter
    fallback_capped: Counter
    attempts: Counter
    feedback: Counter
    feedback_coverage_ratio: Gauge
    adapter_info: Gauge
    adapter_load_seconds: Histogram
    adapter_placements: Gauge
    adapter_loads_left: Gauge
    adapter_working_set_ratio: Gauge
    shadow_requests: Counter
    reported_records: Counter
    rollout_verdicts: Counter
    verdict: Gauge
    verdict_since_seconds: Gauge
    evidence_rests_on_one: Gauge
    kept_ratio: Gauge
    e_value: Gauge
    e_value_threshold: Gauge
    quality_ratio: Gauge
    label_coverage_ratio: Gauge
    labels_per_day: Gauge
    labels: Gauge
    labels_wanted: Gauge
    time_to_detect_seconds: Gauge
    feedback_delay_seconds: Gauge
    complaints_expected: Gauge
    complaints_seen: Gauge
    monitor_actions: Counter
    monitor_unmatched: Counter
    monitor_judged_at_seconds: Gauge
    monitor_behind_seconds: Gauge
    shadow_queue_length: Gauge
    shadow_queue_max: Gauge
    shadow_share_ratio: Gauge
    judge_agreement_ratio: Gauge
    pairs: Counter
    reviews: Counter
    reviews_waiting: Gauge
    review_cost_usd: Counter
    tuning_cost_usd: Gauge
    version_stale: Gauge
    version_review_by_seconds: Gauge
    retraining_open: Gauge
    webhooks: Counter
    evaluation_rows: Counter
    fitting: Counter
    fitting_seconds: Histogram
    fitted_unused: Counter
    replica_cordoned: Gauge
    breaker_state: Gauge
    discovery_failing: Gauge
    replica_up: Gauge
    in_flight: Gauge
    tasks: Gauge
    processes: Gauge
    process_restarts: Counter
    texts: Counter
    records_pending: Gauge
    records_dropped: Counter
    records_flush_seconds: Histogram
    records_oldest_age_seconds: Gauge
    records_spool_bytes: Gauge
    records_spool_bytes_max: Gauge
    records_archived: Counter
    records_unarchived_dropped: Counter
    redis_up: Gauge
    state_durable: Gauge
    event_loop_lag_seconds: Histogram
    snapshot_generation: Gauge
    snapshot_age_seconds: Gauge
    build_info: Gauge
