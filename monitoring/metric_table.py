"""The table of metrics: what each is called and counts. docs/reference/metrics.md lists them."""

from __future__ import annotations

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
        "apprentice_requests_total", "counter", "requests",
        "Finished requests by what answered, why it was chosen and how it ended.",
        ("task", "version", "pool", "reason", "outcome"), "(T+1)*(V+1)*40 + 252",
    ),
    Spec(
        "apprentice_request_duration_seconds", "histogram", "seconds",
        "Time from a request's first byte to the end of its answer or error, in seconds.",
        TASK_POOL, "(T+1)*(P+1) + 1", SECONDS_OF_A_REQUEST,
    ),
    Spec(
        "apprentice_time_to_first_token_seconds", "histogram", "seconds",
        "Time from a request's first byte to the first token of its answer, in seconds; streams only.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_REQUEST,
    ),
    Spec(
        "apprentice_time_per_output_token_seconds", "histogram", "seconds",
        "Mean time for each token of an answer, in seconds; in a stream, for each after the first.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_A_TOKEN,
    ),
    Spec(
        "apprentice_overhead_seconds", "histogram", "seconds",
        "Time from a request's first byte to commit that was not spent on waiting for an engine, in seconds.",
        TASK_POOL, BY_TASK_AND_POOL, SECONDS_OF_OVERHEAD,
    ),
    Spec(
        "apprentice_tokens_total", "counter", "tokens",
        "Tokens that engines read (prompt) and made (completion).",
        ("task", "version", "pool", "type"), "(T+1)*(V+1)*2 + 3",
    ),
    Spec(
        "apprentice_cost_usd_total", "counter", "US dollars",
        "Known cost in US dollars, by what it was spent on.",
        ("task", "version", "pool", "purpose"), "(T+1)*(V+1)*5 + 6",
    ),
    Spec(
        "apprentice_cost_unknown_total", "counter", "requests",
        "Requests whose cost is not known, and which are therefore missing in the cost.",
        ("pool",), "P + 1",
    ),
    Spec(
        "apprentice_saving_usd_total", "counter", "US dollars",
        "US dollars saved against the same tokens at the general price, over requests that were cheaper.",
        ("task",), "T + 2",
    ),
    Spec(
        "apprentice_overspend_usd_total", "counter", "US dollars",
        "US dollars spent above the same tokens at the general price, over requests that were dearer.",
        ("task",), "T + 2",
    ),
    Spec(
        "apprentice_fallbacks_total", "counter", "fallbacks",
        "Requests given to another choice before commit, as the first could not or may not answer.",
        ("task", "from", "to", "reason"), "T*P*12 + 18",
    ),
    Spec(
        "apprentice_check_fired_total", "counter", "requests",
        "Requests for which a check fired, by the version that they were led to; observed ones changed nothing.",
        ("task", "version", "check", "mode"), "T*V*5 + 27",
    ),
    Spec(
        "apprentice_check_unjudged_total", "counter", "requests",
        "Requests that an enforced check let pass as it could not judge: no model, or one for another prefix.",
        ("task", "version", "check"), "T*V*4 + 9",
    ),
    Spec(
        "apprentice_route_asked_total", "counter", "requests",
        "Requests for a decision alone (POST /v1/route), by the reason that it had; none where it was refused.",
        ("reason",), "18",
    ),
    Spec(
        "apprentice_refusals_total", "counter", "requests",
        "Errors sent to callers, by the error's code.",
        ("code",), "56",
    ),
    Spec(
        "apprentice_requests_shed_total", "counter", "requests",
        "Requests that got no place, by why.",
        ("cause",), "6",
    ),
    Spec(
        "apprentice_queue_length", "gauge", "requests",
        "Requests that wait for a place in this gateway or on a replica, by their class.",
        ("priority",), "3",
    ),
    Spec(
        "apprentice_queue_seconds", "histogram", "seconds",
        "How long a request that had to wait waited for a place, in seconds, whatever came of it.",
        ("priority",), "3", SECONDS_OF_A_WRITE,
    ),
    Spec(
        "apprentice_configuration_reloads_total", "counter", "reloads",
        "Readings of the configuration while the gateway runs, by what came of them.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_configuration_loaded_at_seconds", "gauge", "Unix seconds",
        "When the configuration that this gateway goes by was read, in Unix seconds.",
    ),
    Spec(
        "apprentice_limits_unenforced_total", "counter", "requests",
        "Requests let through without holding a limit, since Redis did not answer.",
    ),
    Spec(
        "apprentice_fallback_capped_total", "counter", "requests",
        "Requests that met a closed fallback, past its task's cap; by the reason for which they were to go there.",
        ("task", "reason"), "T + 18",
    ),
    Spec(
        "apprentice_attempts_total", "counter", "attempts",
        "Attempts at engines by how each ended; a request may take several.",
        ("pool", "outcome"), "P*14 + 15",
    ),
    Spec(
        "apprentice_feedback_total", "counter", "judgements",
        "Feedback by what became of it.",
        ("task", "version", "metric", "outcome"), "(T+1)*(V+1)*M*5 + 14",
    ),
    Spec(
        "apprentice_feedback_coverage_ratio", "gauge", "ratio, 0 to 1",
        "Share of the task's recent requests that have feedback, from 0 to 1.",
        ("task",), "T + 2", joined="least",
    ),
    Spec(
        "apprentice_adapter_info", "gauge", "always 1",
        "1 for each version known, with the digest of its bytes and its state.",
        ("task", "version", "pool", "digest", "state"), "T*V*2 + 11",
    ),
    Spec(
        "apprentice_adapter_load_seconds", "histogram", "seconds",
        "Time an engine took to load an adapter, in seconds.",
        ("pool",), "P + 1", SECONDS_OF_A_LOAD,
    ),
    Spec(
        "apprentice_adapter_placements", "gauge", "replicas",
        "Replicas on which a version is in a state.",
        ("version", "state"), "T*V*R + 11",
    ),
    Spec(
        "apprentice_adapter_loads_left", "gauge", "loads",
        "Adapters that a replica's engine takes before something must go.",
        ("pool", "replica"), "R + 1", joined="least",
    ),
    Spec(
        "apprentice_adapter_working_set_ratio", "gauge", "ratio",
        "Versions that are to be on a replica, as a share of the adapters that its engine can hold.",
        ("pool", "replica"), "R + 1", joined="greatest",
    ),
    Spec(
        "apprentice_shadow_requests_total", "counter", "requests",
        "Requests that a shadow was to answer too: agreed, differed, failed or dropped.",
        ("task", "version", "outcome"), "T*V*4 + 14",
    ),
    Spec(
        "apprentice_reported_records_total", "counter", "records",
        "Reports of what another gateway served: created, same, conflict or refused.",
        ("task", "version", "outcome"), "(T+1)*(V+1)*3 + 14",
    ),
    Spec(
        "apprentice_rollout_verdicts_total", "counter", "verdicts",
        "Canaries on which a verdict was carried out: promote, roll_back or hold.",
        ("task", "action"), "T*3 + 4",
    ),
    Spec(
        "apprentice_verdict", "gauge", "0, 1 or 2",
        "The monitor's verdict on a version, or an admin's: 0 healthy, 1 suspect, 2 degraded.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_verdict_since_seconds", "gauge", "Unix seconds",
        "When a version's verdict became what it is, in Unix seconds.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_evidence_rests_on_one", "gauge", "0 or 1",
        "1 where labels would make a version degraded, by the word alone of the caller or rater who gave most of them.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_kept_ratio", "gauge", "ratio, 0 to 1",
        "Share of its requests that a version keeps; below 1 the monitor has shifted the rest to another arm.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_e_value", "gauge", "ratio",
        "Evidence that a stream of a version got worse: an e-value, at most 1e12. It alarms at its threshold.",
        ("task", "version", "stream"), "T*V*14 + 15", joined="greatest",
    ),
    Spec(
        "apprentice_e_value_threshold", "gauge", "ratio",
        "The e-value at which a stream of a version alarms, from the fleet's accepted false alarms.",
        ("task", "version", "stream"), "T*V*14 + 15", joined="greatest",
    ),
    Spec(
        "apprentice_quality_ratio", "gauge", "ratio, 0 to 1",
        "Estimated share of right answers of an arm on the task, with its 95% interval: mean, low or high.",
        ("task", "version", "arm", "bound"), "T*V*9 + 16", joined="least",
    ),
    Spec(
        "apprentice_label_coverage_ratio", "gauge", "ratio, 0 to 1",
        "Share of a version's requests that have a label.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_labels_per_day", "gauge", "labels a day",
        "Labels of a version in a day, at today's rate.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_labels", "gauge", "labels",
        "Labels of a version that its verdict can rest on so far.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_labels_wanted", "gauge", "labels",
        "Labels of a version that a verdict needs at least.",
        ("task",), "T + 1", joined="greatest",
    ),
    Spec(
        "apprentice_time_to_detect_seconds", "gauge", "seconds",
        "Time until errors risen by so many points would be found at today's label rate, in seconds; +Inf: never.",
        ("task", "version", "points"), "T*V*2 + 3", joined="greatest",
    ),
    Spec(
        "apprentice_feedback_delay_seconds", "gauge", "seconds",
        "Median time from a request to its label, in seconds.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_complaints_expected", "gauge", "complaints",
        "Complaints that were to be expected of a version so far, by requests, rate and delay.",
        ("task", "version"), "T*V + 1",
    ),
    Spec(
        "apprentice_complaints_seen", "gauge", "complaints",
        "Complaints about a version that have come so far.",
        ("task", "version"), "T*V + 1",
    ),
    Spec(
        "apprentice_monitor_actions_total", "counter", "actions",
        "What the monitor did, by kind; those that were undone count too.",
        ("task", "kind"), "T*15 + 16",
    ),
    Spec(
        "apprentice_monitor_unmatched_total", "counter", "feedback",
        "Feedback whose record was gone when the monitor read it, so that it counts for no version.",
    ),
    Spec(
        "apprentice_monitor_judged_at_seconds", "gauge", "Unix seconds",
        "When the monitor last judged all versions, in Unix seconds, as far as this gateway knows.",
    ),
    Spec(
        "apprentice_monitor_behind_seconds", "gauge", "seconds",
        "Age of the oldest record or feedback that the monitor has not read, in seconds; 0 with none.",
    ),
    Spec(
        "apprentice_shadow_queue_length", "gauge", "requests",
        "Requests of this gateway that wait for a shadow to answer them too.",
    ),
    Spec(
        "apprentice_shadow_queue_max", "gauge", "requests",
        "Requests that may wait for a shadow in this gateway; beyond it they get none.",
    ),
    Spec(
        "apprentice_shadow_share_ratio", "gauge", "ratio, 0 to 1",
        "Probability with which both arms answer a request of the task.",
        ("task",), "T + 1", joined="greatest",
    ),
    Spec(
        "apprentice_judge_agreement_ratio", "gauge", "ratio, 0 to 1",
        "How often the judge of shadow pairs agrees with people, where both judged.",
        ("task",), "T + 1", joined="least",
    ),
    Spec(
        "apprentice_pairs_total", "counter", "pairs",
        "Shadow pairs by what the judge made of them: agreed, differed, failed, unjudged or passed_over.",
        ("task", "version", "outcome"), "T*V*5 + 14",
    ),
    Spec(
        "apprentice_reviews_total", "counter", "reviews",
        "Requests drawn for review by what became of them: drawn, dropped, given, skipped, answered or expired.",
        ("task", "outcome"), "T*6 + 14",
    ),
    Spec(
        "apprentice_reviews_waiting", "gauge", "reviews",
        "Requests that wait for a person to review them.",
        ("task",), "T + 1",
    ),
    Spec(
        "apprentice_review_cost_usd_total", "counter", "US dollars",
        "Cost of answered reviews in US dollars, at the price that the configuration gives.",
        ("task",), "T + 1",
    ),
    Spec(
        "apprentice_tuning_cost_usd", "gauge", "US dollars",
        "What a task's fine-tuning has cost in US dollars, as the configuration says.",
        ("task",), "T + 1",
    ),
    Spec(
        "apprentice_version_stale", "gauge", "0 or 1",
        "1 where the organisation has said that its rules are others than those that a version learned, else 0.",
        ("task", "version"), "T*V + 1", joined="greatest",
    ),
    Spec(
        "apprentice_version_review_by_seconds", "gauge", "Unix seconds",
        "When a version is due for a review by its owner, in Unix seconds; only where it says so.",
        ("task", "version"), "T*V + 1", joined="least",
    ),
    Spec(
        "apprentice_retraining_open", "gauge", "requests",
        "Open requests to train a task's adapter anew.",
        ("task",), "T + 1",
    ),
    Spec(
        "apprentice_webhooks_total", "counter", "messages",
        "Messages to the webhook by how each ended: sent, retried or dropped.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_evaluation_rows_total", "counter", "rows",
        "Rows that an evaluation had an arm answer: right, wrong, empty, refused or failed.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_fitting_total", "counter", "fittings",
        "Fittings of models that came to an end: ready or failed.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_fitting_seconds", "histogram", "seconds",
        "Time to fit a model, from its process's start to the model in Redis, in seconds.",
        bounds=SECONDS_OF_A_LOAD,
    ),
    Spec(
        "apprentice_fitted_unused_total", "counter", "faults",
        "Fitted models that could not be read (damaged), do not go with the selector or the coverage model that there "
        "is (unsuited), or could not be asked at a request (failed), which went on without.",
        ("outcome",), "14",
    ),
    Spec(
        "apprentice_replica_cordoned", "gauge", "0 or 1",
        "1 where a replica gets no requests because an admin or a recycling has cordoned it, else 0.",
        ("pool", "replica"), "R + 1", joined="greatest",
    ),
    Spec(
        "apprentice_breaker_state", "gauge", "0, 1 or 2",
        "State of a replica's breakers, the worst of them: 0 closed, 1 half-open, 2 open.",
        ("pool", "replica"), "R + 1", joined="greatest",
    ),
    Spec(
        "apprentice_replica_up", "gauge", "0 or 1",
        "1 where the replica's last health check passed, else 0.",
        ("pool", "replica"), "R + 1", joined="least",
    ),
    Spec(
        "apprentice_in_flight", "gauge", "requests",
        "Requests that this gateway holds on a replica at this moment.",
        ("pool", "replica"), "R + 1",
    ),
    Spec(
        "apprentice_tasks", "gauge", "tasks",
        "Tasks of the event loop: those of the jobs, and at most three for each connection that is served.",
    ),
    Spec("apprentice_records_pending", "gauge", "records", "Records in memory and spool that are not stored yet."),
    Spec(
        "apprentice_records_dropped_total", "counter", "records",
        "Records lost because spool or buffer was full, or the disk damaged them.",
    ),
    Spec(
        "apprentice_records_flush_seconds", "histogram", "seconds",
        "Time to write one batch of records, in seconds.",
        bounds=SECONDS_OF_A_WRITE,
    ),
    Spec(
        "apprentice_records_oldest_age_seconds", "gauge", "seconds",
        "Age of the oldest record that is not stored yet, in seconds; 0 with none pending.",
    ),
    Spec("apprentice_records_spool_bytes", "gauge", "bytes", "Size of this gateway's spool of records on disk."),
    Spec("apprentice_records_spool_bytes_max", "gauge", "bytes", "Size at which the spool drops its oldest records."),
    Spec(
        "apprentice_records_archived_total", "counter", "records",
        "Records that this gateway wrote to Parquet files.",
    ),
    Spec(
        "apprentice_records_unarchived_dropped_total", "counter", "records",
        "Records that the stream dropped before they were written to Parquet files.",
    ),
    Spec("apprentice_redis_up", "gauge", "0 or 1", "1 where Redis has answered lately, else 0."),
    Spec(
        "apprentice_state_durable", "gauge", "0 or 1",
        "1 where what is acknowledged is on the disk of Redis, 0 where Redis may forget it when it ends.",
    ),
    Spec(
        "apprentice_event_loop_lag_seconds", "histogram", "seconds",
        "How much later than due the event loop woke a timer, in seconds.",
        bounds=SECONDS_OF_LAG,
    ),
    Spec(
        "apprentice_snapshot_generation", "gauge", "generation",
        "Generation of the policy snapshot that this gateway decides by.",
    ),
    Spec(
        "apprentice_snapshot_age_seconds", "gauge", "seconds",
        "Time since this gateway last confirmed its policy snapshot in Redis, in seconds.",
    ),
    Spec(
        "apprentice_build_info", "gauge", "always 1",
        "1, with the version of the gateway's own package.",
        ("version",), "2",
    ),
    Spec(
        "apprentice_series_overflow_total", "counter", "updates",
        "Updates counted under other because their metric had used its share of the series budget.",
        ("family",), "96",
    ),
    Spec(
        "apprentice_measurements_lost_total", "counter", "updates",
        "Updates that were no finite number of at least 0, and gauges that could not be read: our fault.",
        ("family",), "96",
    ),
)  # fmt: skip
