"""Meters filled as a large deployment fills them, and what Prometheus would store of them."""

from __future__ import annotations

import itertools
import re
from collections import Counter as Tally

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from monitoring.metric_series import Counter, Gauge, Histogram
from monitoring.metric_spec import CLOSED, SCALE, Spec
from monitoring.metric_table import METRICS
from monitoring.metrics import Meters
from monitoring.quality.signal_table import LABELLED, UNLABELLED

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
POOLS = ("small", "general")


def samples(meters: Meters, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """The samples that Prometheus would store, read by prometheus_client's parsers."""
    body, content_type = meters.exposition(accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in parse(body.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} stands twice in one exposition"
            found[key] = sample.value
    return found


def value(meters: Meters, name: str, **labels: str) -> float | None:
    return samples(meters).get((name, tuple(sorted(labels.items()))))


def series_by_metric(meters: Meters) -> dict[str, int]:
    names = {spec.name for spec in METRICS}
    counted = Tally(re.sub(r"_(bucket|count|sum)$", "", name) for name, _ in samples(meters))
    assert set(counted) <= names, set(counted) - names
    return dict(counted)


def fill_as_forty_tasks_of_three_versions_do(
    meters: Meters, tasks_count: int = SCALE["T"], replicas_count: int = SCALE["R"]
) -> None:
    tasks = [*(f"task-{number}" for number in range(tasks_count)), ""]
    pairs = list(itertools.product(range(8), range(5)))
    for task in tasks:
        versions = [f"{task}@v{number}" for number in range(1, SCALE["V"] + 1)]
        for version in [*versions, ""]:
            pool = "general" if version == "" else "small"
            for reason, outcome in pairs:
                meters.requests.add(1, task, version, pool, f"reason-{reason}", f"outcome-{outcome}")
            for kind in ("prompt", "completion"):
                meters.tokens.add(7, task, version, pool, kind)
            for purpose in ("serve", "shadow", "probe", "evaluation", "wasted"):
                meters.cost_usd.add(0.01, task, version, pool, purpose)
            for metric, outcome in itertools.product(
                range(SCALE["M"]), ("created", "same", "pending", "joined", "dropped")
            ):
                meters.feedback.add(1, task, version, f"metric-{metric}", outcome)
        for pool in ("", *POOLS):
            meters.request_duration_seconds.observe(0.2, task, pool)
        for pool in POOLS:
            meters.time_to_first_token_seconds.observe(0.1, task, pool)
            meters.time_per_output_token_seconds.observe(0.01, task, pool)
            meters.overhead_seconds.observe(0.0002, task, pool)
        meters.saved(task, 0.1)
        meters.saved(task, -0.1)
        meters.feedback_coverage_ratio.set(0.5, task)
        if task:
            for origin, reason in itertools.product(("", "small"), range(12)):
                meters.fallbacks.add(1, task, origin, "general", f"reason-{reason}")
            meters.fallback_capped.add(1, task, "no_replica")
            for action in ("promote", "roll_back", "hold"):
                meters.canary_verdicts.add(1, task, action)
            for version in versions:
                for check in range(5):
                    meters.check_fired.add(1, task, version, f"check-{check}", "enforce")
                for check in range(4):
                    meters.check_unjudged.add(1, task, version, f"check-{check}")
                for outcome in ("created", "same", "conflict"):
                    meters.reported_records.add(1, task, version, outcome)
                for outcome in ("agreed", "differed", "failed", "dropped"):
                    meters.shadow_requests.add(1, task, version, outcome)
                for state in range(2):
                    meters.adapter_info.set(1, task, version, "small", "0" * 64, f"state-{state}")
                for state in range(8):
                    meters.adapter_placements.set(1, version, f"state-{state}")
    fill_as_the_monitor_does(meters)
    fill_what_no_task_has(meters, replicas_count)


def fill_as_the_monitor_does(meters: Meters) -> None:
    by_version = ("verdict", "verdict_since_seconds", "kept_ratio", "label_coverage_ratio", "labels_per_day", "labels")
    by_version += ("evidence_rests_on_one",)
    later = ("feedback_delay_seconds", "complaints_expected", "complaints_seen", "version_stale")
    by_task = ("labels_wanted", "shadow_share_ratio", "judge_agreement_ratio", "reviews_waiting")
    for task in (f"task-{number}" for number in range(SCALE["T"])):
        for gauge in (*by_task, "tuning_cost_usd", "retraining_open"):
            getattr(meters, gauge).set(1, task)
        meters.review_cost_usd.add(1, task)
        for outcome in ("kept", "dropped"):
            meters.texts.add(1, task, outcome)
        for outcome in range(4):
            meters.reviews.add(1, task, f"outcome-{outcome}")
        for kind in range(CLOSED["kind"] - 1):
            meters.monitor_actions.add(1, task, f"kind-{kind}")
        for version in (f"{task}@v{number}" for number in range(SCALE["V"])):
            for gauge in (*by_version, *later, "version_review_by_seconds"):
                getattr(meters, gauge).set(1, task, version)
            for signal in (*LABELLED, *UNLABELLED):
                meters.e_value.set(1, task, version, signal)
                meters.e_value_threshold.set(1, task, version, signal)
            for arm, bound in itertools.product(("version", "general", "previous_version"), ("mean", "low", "high")):
                meters.quality_ratio.set(1, task, version, arm, bound)
            for points in ("5", "10"):
                meters.time_to_detect_seconds.set(1, task, version, points)
            for outcome in range(4):
                meters.pairs.add(1, task, version, f"outcome-{outcome}")


def fill_what_no_task_has(meters: Meters, replicas_count: int) -> None:
    for job in range(13):
        meters.background_job_pass_seconds.set(0, f"job-{job}")
    for pool in POOLS:
        meters.cost_unknown.add(1, pool)
        meters.discovery_failing.set(1, pool)
        meters.adapter_load_seconds.observe(0.4, pool)
        for outcome in range(7):
            meters.attempts.add(1, pool, f"outcome-{outcome}")
    for caller in range(SCALE["K"]):
        meters.caller_cost_usd.add(0.01, f"caller-{caller}", f"owner-{caller % 20}")
    for replica in range(replicas_count):
        meters.replica_up.set(1, POOLS[replica % 2], f"replica-{replica}")
        meters.breaker_state.set(0, POOLS[replica % 2], f"replica-{replica}")
        meters.in_flight.set(3, POOLS[replica % 2], f"replica-{replica}")
        meters.replica_cordoned.set(0, POOLS[replica % 2], f"replica-{replica}")
        meters.adapter_loads_left.set(12, POOLS[replica % 2], f"replica-{replica}")
        meters.adapter_working_set_ratio.set(0.2, POOLS[replica % 2], f"replica-{replica}")
    for gauge in ("monitor_judged_at_seconds", "monitor_behind_seconds", "shadow_queue_length", "shadow_queue_max"):
        getattr(meters, gauge).set(1)
    meters.webhooks.add(1, "sent")
    meters.monitor_unjudged.set(1)
    meters.monitor_unmatched.add(1)
    meters.requests_shed.add(1, "queue_full")
    meters.queue_length.set(1, "batch")
    meters.queue_seconds.observe(0.2, "batch")
    meters.configuration_reloads.add(1, "applied")
    meters.fitting.add(1, "ready")
    meters.fitting_seconds.observe(4.0)
    meters.fitted_unused.add(1, "damaged")
    meters.evaluation_rows.add(1, "right")
    meters.configuration_loaded_at_seconds.set(1)
    meters.limits_unenforced.add(1)
    for reason in range(CLOSED["reason"] - 1):
        meters.route_asked.add(1, f"reason-{reason}")
    for code in range(CLOSED["code"] - 1):
        meters.refusals.add(1, f"code-{code}")
    spool = ("records_spool_bytes", "records_spool_bytes_max", "records_pending", "records_oldest_age_seconds")
    for gauge in (*spool, "redis_up", "state_durable", "snapshot_generation", "tasks", "processes"):
        getattr(meters, gauge).set(1)
    meters.snapshot_age_seconds.set(0.25)
    meters.records_flush_seconds.observe(0.002)
    meters.event_loop_lag_seconds.observe(0.0001)
    meters.build_info.set(1, "0.1.0")


def fill_with_more_than_there_is_room_for(meters: Meters) -> None:
    """Every combination of closed label values, and two too many of each, for many values of the open labels."""
    for spec in METRICS:
        family = family_of(meters, spec)
        if not spec.labels or family in (meters.series_overflow, meters.measurements_lost):
            continue
        closed = [
            [f"{label}-{number}" for number in range(CLOSED[label] + 2)] for label in spec.labels if label in CLOSED
        ]
        open_labels = [label for label in spec.labels if label not in CLOSED]
        for number in range(64 if closed else 2_000):
            for combination in itertools.product(*closed):
                values = iter(combination)
                labels = [next(values) if label in CLOSED else f"{label}-{number}" for label in spec.labels]
                family.cell(*labels)
        assert open_labels or closed


def family_of(meters: Meters, spec: Spec) -> Counter | Gauge | Histogram:
    return getattr(meters, spec.name.removeprefix("apprentice_").removesuffix("_total"))


def spec_of(name: str) -> Spec:
    return next(spec for spec in METRICS if spec.name == name)
