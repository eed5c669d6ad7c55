from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
import timeit
from collections import Counter as Tally
from pathlib import Path
from typing import get_args

import prometheus_client
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from gateway.errors import ERRORS
from monitoring.degradation.verdicts.health import STREAMS, ActionKind
from monitoring.degradation.verdicts.rollout import Action
from monitoring.metric_spec import CLOSED, SCALE, Spec, evaluate
from monitoring.metric_table import METRICS
from monitoring.metrics import ACTIONS_EXPECTED, SERIES_MAX_DEFAULT, SERIES_MAX_LEAST, Counter, Gauge, Histogram, Meters
from router.decision import REASONS
from serving.adapters.placement import PLACEMENT_STATES
from serving.adapters.registry import VERSION_STATES

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
POOLS = ("small", "general")


def samples(meters: Meters, accept: str = "") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """What Prometheus would store, read by prometheus_client's parsers."""
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


def fill_as_forty_tasks_of_three_versions_do(meters: Meters, tasks_count: int = SCALE["T"]) -> None:
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
            meters.exit_capped.add(1, task, "no_replica")
            for action in ("promote", "roll_back", "hold"):
                meters.rollout_verdicts.add(1, task, action)
            for version in versions:
                for rung in range(5):
                    meters.rung_fired.add(1, task, version, f"rung-{rung}", "enforce")
                for rung in range(4):
                    meters.rung_unjudged.add(1, task, version, f"rung-{rung}")
                for outcome in ("created", "same", "conflict"):
                    meters.reported_records.add(1, task, version, outcome)
                for outcome in ("agreed", "differed", "failed", "dropped"):
                    meters.shadow_requests.add(1, task, version, outcome)
                for state in range(2):
                    meters.adapter_info.set(1, task, version, "small", "0" * 64, f"state-{state}")
                for state in range(SCALE["R"]):
                    meters.adapter_placements.set(1, version, f"state-{state}")
    fill_as_the_monitor_does(meters)
    fill_what_no_task_has(meters)


def fill_as_the_monitor_does(meters: Meters) -> None:
    by_version = ("verdict", "verdict_since_seconds", "kept_ratio", "label_coverage_ratio", "labels_per_day", "labels")
    later = ("feedback_delay_seconds", "complaints_expected", "complaints_seen", "version_stale")
    by_task = ("labels_wanted", "shadow_share_ratio", "judge_agreement_ratio", "reviews_waiting")
    for task in (f"task-{number}" for number in range(SCALE["T"])):
        for gauge in (*by_task, "tuning_cost_usd", "retraining_open"):
            getattr(meters, gauge).set(1, task)
        meters.review_cost_usd.add(1, task)
        for outcome in range(4):
            meters.reviews.add(1, task, f"outcome-{outcome}")
        for kind in range(CLOSED["kind"] - 1):
            meters.monitor_actions.add(1, task, f"kind-{kind}")
        for version in (f"{task}@v{number}" for number in range(SCALE["V"])):
            for gauge in (*by_version, *later, "version_review_by_seconds"):
                getattr(meters, gauge).set(1, task, version)
            for stream in STREAMS:
                meters.e_value.set(1, task, version, stream)
                meters.e_value_threshold.set(1, task, version, stream)
            for arm, bound in itertools.product(("version", "general", "standby"), ("mean", "low", "high")):
                meters.quality_ratio.set(1, task, version, arm, bound)
            for points in ("5", "10"):
                meters.time_to_detect_seconds.set(1, task, version, points)
            for outcome in range(4):
                meters.pairs.add(1, task, version, f"outcome-{outcome}")


def fill_what_no_task_has(meters: Meters) -> None:
    for pool in POOLS:
        meters.cost_unknown.add(1, pool)
        meters.adapter_load_seconds.observe(0.4, pool)
        for outcome in range(7):
            meters.attempts.add(1, pool, f"outcome-{outcome}")
    for replica in range(SCALE["R"]):
        meters.replica_up.set(1, POOLS[replica % 2], f"replica-{replica}")
        meters.breaker_state.set(0, POOLS[replica % 2], f"replica-{replica}")
        meters.in_flight.set(3, POOLS[replica % 2], f"replica-{replica}")
        meters.replica_cordoned.set(0, POOLS[replica % 2], f"replica-{replica}")
        meters.adapter_loads_left.set(12, POOLS[replica % 2], f"replica-{replica}")
        meters.adapter_working_set_ratio.set(0.2, POOLS[replica % 2], f"replica-{replica}")
    for gauge in ("monitor_judged_at_seconds", "monitor_behind_seconds", "shadow_queue_length", "shadow_queue_max"):
        getattr(meters, gauge).set(1)
    meters.webhooks.add(1, "sent")
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
    for gauge in (*spool, "redis_up", "state_durable", "snapshot_generation", "tasks"):
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


def docs_row(spec: Spec) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "none"
    formula = spec.children if spec.width == 1 else f"({spec.children})*{spec.width}"
    formula = formula.removeprefix("(1)*")
    return f"| `{spec.name}` | {spec.kind} | {labels} | {spec.unit} | `{formula}` | {spec.series_max:,} | {spec.help} |"


def test_documented_metrics_are_the_declared_ones() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `apprentice_")]
    expected = [docs_row(spec) for spec in METRICS]
    assert rows == expected, "docs/metrics.md should have these rows:\n" + "\n".join(expected)


def test_documented_scale_and_sum_are_the_declared_ones() -> None:
    text = DOCS.read_text()
    total = sum(spec.series_max for spec in METRICS)
    for expected in (f"**{total:,}**", f"{SERIES_MAX_DEFAULT:,}", f"{SERIES_MAX_LEAST:,}"):
        assert expected in text, f"docs/metrics.md should say {expected}"
    for letter, number in SCALE.items():
        assert re.search(rf"\| `{letter}` \| {number} \|", text), f"docs/metrics.md should say {letter} = {number}"
    for label, number in CLOSED.items():
        assert re.search(rf"\| `{label}` \| {number} \|", text), f"docs/metrics.md should say {label}: {number}"


def test_every_declared_metric_is_made_once_under_its_own_name_and_kind() -> None:
    meters = Meters()
    names = [spec.name for spec in METRICS]
    assert len(set(names)) == len(names)
    for spec in METRICS:
        family = family_of(meters, spec)
        assert family.spec is spec
        assert type(family).__name__.lower() == spec.kind
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert spec.unit != "seconds" or spec.name.endswith("_seconds")
        assert spec.help.endswith((".", "."))
        assert list(spec.bounds) == sorted(set(spec.bounds))


def test_formulas_are_sums_of_products() -> None:
    assert evaluate("1") == 1
    assert evaluate("(T+1)*V*5 + 8", {"T": 40, "V": 3}) == 41 * 3 * 5 + 8


def test_closed_labels_have_room_for_the_lists_in_the_code_and_other() -> None:
    lists = {
        "reason": (REASONS,),
        "code": (ERRORS,),
        "state": (VERSION_STATES, (*PLACEMENT_STATES, "absent")),
        "action": (set(get_args(Action)) - {"continue"},),
        "family": (METRICS,),
    }
    for label, values in lists.items():
        assert max(map(len, values)) < CLOSED[label], label


def test_declared_series_fit_into_the_budget() -> None:
    assert sum(spec.series_max for spec in METRICS) <= SERIES_MAX_DEFAULT


def test_forty_tasks_of_three_versions_fit_and_nothing_overflows() -> None:
    meters = Meters()
    fill_as_forty_tasks_of_three_versions_do(meters)
    counted = series_by_metric(meters)
    overflowing = {name: number for (name, _), number in samples(meters).items() if "overflow" in name}
    assert overflowing == {}
    for spec in METRICS:
        made_only_by_faults = spec.name in (
            "apprentice_series_overflow_total",
            "apprentice_measurements_lost_total",
        )
        assert made_only_by_faults or 0 < counted[spec.name] <= spec.series_max, spec.name
    assert sum(counted.values()) <= SERIES_MAX_DEFAULT


@pytest.mark.parametrize("series_max", [SERIES_MAX_LEAST, SERIES_MAX_DEFAULT, 50_000])
def test_no_values_whatever_make_more_series_than_the_budget(series_max: int) -> None:
    meters = Meters(series_max)
    fill_as_forty_tasks_of_three_versions_do(meters)
    fill_with_more_than_there_is_room_for(meters)
    meters.measurements_lost.add(1, "apprentice_requests_total")
    counted = series_by_metric(meters)
    if series_max == SERIES_MAX_DEFAULT:
        assert {name: number for name, number in counted.items() if number > spec_of(name).series_max} == {}
    assert sum(counted.values()) <= series_max
    assert value(meters, "apprentice_series_overflow_total", family="apprentice_requests_total")


def spec_of(name: str) -> Spec:
    return next(spec for spec in METRICS if spec.name == name)


def test_series_beyond_the_share_are_counted_under_other_and_closed_labels_stay() -> None:
    meters = Meters(SERIES_MAX_LEAST)
    for number in range(9_000):
        meters.requests.add(1, f"task-{number}", f"task-{number}@v1", "small", "adapter", "ok")
    found = {labels: v for (name, labels), v in samples(meters).items() if name == "apprentice_requests_total"}
    assert sum(found.values()) == 9_000
    other = value(
        meters,
        "apprentice_requests_total",
        task="other",
        version="other",
        pool="other",
        reason="adapter",
        outcome="ok",
    )
    assert other is not None
    assert other == 9_000 - (len(found) - 1)
    assert value(meters, "apprentice_series_overflow_total", family="apprentice_requests_total") == other


def test_a_closed_label_with_too_many_values_is_cut_off_at_other() -> None:
    meters = Meters()
    for number in range(CLOSED["code"] + 10):
        meters.refusals.add(1, f"code-{number}")
    assert series_by_metric(meters)["apprentice_refusals_total"] == CLOSED["code"]
    assert value(meters, "apprentice_refusals_total", code="other") == 11


def test_a_retired_version_takes_its_series_along_and_gives_its_room_back() -> None:
    meters = Meters(SERIES_MAX_LEAST)
    room = 0
    while value_of_overflow(meters) == 0:
        meters.requests.add(1, "returns", f"returns@v{room}", "small", "adapter", "ok")
        room += 1
    meters.tokens.add(5, "returns", "returns@v0", "small", "prompt")
    meters.forget("returns@v0", "contracts@v1")
    assert not [labels for _, labels in samples(meters) if ("version", "returns@v0") in labels]
    meters.requests.add(1, "returns", "returns@new", "small", "adapter", "ok")
    assert value_of_overflow(meters) == 1
    assert value(
        meters, "apprentice_requests_total",
        task="returns", version="returns@new", pool="small", reason="adapter", outcome="ok",
    ) == 1  # fmt: skip


def value_of_overflow(meters: Meters) -> float:
    return meters.series_overflow.cell("apprentice_requests_total").value


def test_cells_and_label_look_ups_count_into_the_same_series() -> None:
    meters = Meters()
    cell = meters.attempts.cell("small", "ok")
    cell.add(2)
    meters.attempts.add(3, "small", "ok")
    assert value(meters, "apprentice_attempts_total", pool="small", outcome="ok") == 5


def test_a_histogram_counts_a_bound_itself_into_its_bucket() -> None:
    meters = Meters()
    for seconds in (0.0, 0.001, 0.0010001, 119.0, 500.0):
        meters.request_duration_seconds.observe(seconds, "returns", "small")
    name = "apprentice_request_duration_seconds"
    assert value(meters, f"{name}_bucket", task="returns", pool="small", le="0.001") == 2
    assert value(meters, f"{name}_bucket", task="returns", pool="small", le="0.0025") == 3
    assert value(meters, f"{name}_bucket", task="returns", pool="small", le="120.0") == 4
    assert value(meters, f"{name}_bucket", task="returns", pool="small", le="+Inf") == 5
    assert value(meters, f"{name}_count", task="returns", pool="small") == 5
    assert value(meters, f"{name}_sum", task="returns", pool="small") == pytest.approx(619.0020001)


@pytest.mark.parametrize("wrong", [-1, -1e-9, math.nan, math.inf])
def test_what_is_no_number_of_at_least_nought_is_reported_and_harms_nothing(wrong: float) -> None:
    meters = Meters()
    meters.cost_usd.add(1.5, "returns", "returns@v1", "small", "serve")
    meters.cost_usd.add(wrong, "returns", "returns@v1", "small", "serve")
    meters.overhead_seconds.observe(wrong, "returns", "small")
    assert (
        value(
            meters,
            "apprentice_cost_usd_total",
            task="returns",
            version="returns@v1",
            pool="small",
            purpose="serve",
        )
        == 1.5
    )
    assert value(meters, "apprentice_overhead_seconds_count", task="returns", pool="small") == 0
    for family in ("apprentice_cost_usd_total", "apprentice_overhead_seconds"):
        assert value(meters, "apprentice_measurements_lost_total", family=family) == 1


def test_a_negative_saving_is_overspend_since_a_counter_never_goes_down() -> None:
    meters = Meters()
    for usd in (0.5, -0.25, 0.5, 0.0):
        meters.saved("returns", usd)
    assert value(meters, "apprentice_saving_usd_total", task="returns") == 1.0
    assert value(meters, "apprentice_overspend_usd_total", task="returns") == 0.25


def test_a_gauge_is_absent_until_something_is_known() -> None:
    meters = Meters()
    assert value(meters, "apprentice_redis_up") is None
    meters.redis_up.set(0)
    assert value(meters, "apprentice_redis_up") == 0


def test_a_gauge_reads_at_each_scrape_and_drops_what_is_gone() -> None:
    meters = Meters()
    in_flight = {("small", "small-0"): 3.0, ("small", "small-1"): 1.0}
    meters.in_flight.read_from(lambda: in_flight)
    meters.records_pending.read_from(lambda: 12)
    assert value(meters, "apprentice_in_flight", pool="small", replica="small-0") == 3
    assert value(meters, "apprentice_records_pending") == 12
    del in_flight["small", "small-0"]
    in_flight["small", "small-1"] = 2
    assert value(meters, "apprentice_in_flight", pool="small", replica="small-0") is None
    assert value(meters, "apprentice_in_flight", pool="small", replica="small-1") == 2


def test_a_gauge_that_reads_too_many_shows_the_sum_of_the_rest_as_other() -> None:
    meters = Meters()
    meters.in_flight.read_from(lambda: {("small", f"small-{number}"): 1.0 for number in range(100)})
    for _ in range(2):
        assert value(meters, "apprentice_in_flight", pool="other", replica="other") == 100 - SCALE["R"]


def test_verdicts_beyond_the_budget_show_the_worst_as_other_and_never_their_sum() -> None:
    meters = Meters()
    suspect: dict[tuple[str, ...], float] = {
        (f"task-{number}", f"task-{number}@v1"): 1.0 for number in range(SCALE["T"] * SCALE["V"] + 40)
    }
    meters.verdict.read_from(lambda: suspect)
    meters.kept_ratio.read_from(lambda: {labels: 0.2 if labels[0] == "task-130" else 1.0 for labels in suspect})
    assert value(meters, "apprentice_verdict", task="other", version="other") == 1
    suspect["task-150", "task-150@v1"] = 2.0
    assert value(meters, "apprentice_verdict", task="other", version="other") == 2
    assert value(meters, "apprentice_kept_ratio", task="other", version="other") == 0.2


def test_only_what_can_be_added_up_is_summed_as_other() -> None:
    summed = {spec.unit for spec in METRICS if spec.kind == "gauge" and spec.labels and spec.joined == "sum"}
    assert not {unit for unit in summed if "ratio" in unit or "seconds" in unit or " or " in unit}


def test_a_gauge_that_can_not_be_read_is_absent_and_breaks_no_scrape(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def read() -> float:
        raise RuntimeError("the buffer is closed")

    meters = Meters()
    meters.records_pending.set(1)
    meters.records_pending.read_from(read)
    meters.redis_up.set(1)
    assert value(meters, "apprentice_redis_up") == 1
    assert value(meters, "apprentice_records_pending") is None
    assert value(meters, "apprentice_measurements_lost_total", family="apprentice_records_pending") == 3
    assert "apprentice_records_pending could not be read" in caplog.text


def test_label_values_of_any_characters_come_back_as_they_were() -> None:
    meters = Meters()
    odd = 'a "quoted" \\ back\\nslash\nand a line, größer'
    meters.cost_unknown.add(1, odd)
    for accept in ("", OPENMETRICS):
        assert samples(meters, accept)["apprentice_cost_unknown_total", (("pool", odd),)] == 1
    meters.cost_unknown.add(1, "half a surrogate \ud800")
    assert b"half a surrogate ?" in meters.exposition()[0]


def test_a_wrong_number_of_labels_is_told_at_once() -> None:
    with pytest.raises(TypeError, match="apprentice_attempts_total has the labels"):
        Meters().attempts.add(1, "small")


def test_both_formats_say_the_same_and_no_created_series() -> None:
    meters = Meters()
    fill_as_forty_tasks_of_three_versions_do(meters)
    text, openmetrics = samples(meters), samples(meters, OPENMETRICS)
    assert text == openmetrics
    assert not [name for name, _ in openmetrics if name.endswith("_created")]
    assert meters.exposition()[1] == "text/plain; version=0.0.4; charset=utf-8"
    body, content_type = meters.exposition(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")


def test_a_budget_too_small_for_other_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {SERIES_MAX_LEAST}"):
        Meters(SERIES_MAX_LEAST - 1)


@pytest.mark.parametrize("filled", [False, True])
def test_promtool_finds_nothing_to_object_to(filled: bool) -> None:
    promtool = shutil.which("promtool")
    assert promtool, "promtool is missing: install Debian's package prometheus (apt-get install prometheus)."
    meters = Meters()
    if filled:
        # Not all forty: promtool takes ten seconds for them, and looks at names more than at numbers.
        fill_as_forty_tasks_of_three_versions_do(meters, tasks_count=4)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=meters.exposition()[0],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_an_update_takes_less_time_than_prometheus_client_needs() -> None:
    labels = ("returns", "returns@v3", "small", "adapter", "ok")
    meters = Meters()
    theirs = prometheus_client.Counter(
        "requests_total", "Requests.", spec_of("apprentice_requests_total").labels, registry=None
    )
    ours_seconds = min(timeit.repeat(lambda: meters.requests.add(1, *labels), number=5_000, repeat=7))
    their_seconds = min(timeit.repeat(lambda: theirs.labels(*labels).inc(), number=5_000, repeat=7))
    assert ours_seconds < their_seconds


def test_rare_events_to_come_stand_at_zero_and_take_no_room_of_others() -> None:
    meters = Meters()
    tasks = [f"task-{number}" for number in range(200)]
    meters.expect(tasks)
    meters.expect(tasks)
    begun = ("verdicts", "monitor_actions", "reviews_total", "webhooks", "overflow")
    found = {key: number for key, number in samples(meters).items() if any(name in key[0] for name in begun)}
    assert set(found.values()) == {0.0}
    for name in ("rollout_verdicts_total", "monitor_actions_total", "reviews_total"):
        (spec,) = (one for one in METRICS if one.name == f"apprentice_{name}")
        assert 0 < series_by_metric(meters)[spec.name] <= evaluate(spec.children)
    assert not [name for name, _ in found if "overflow" in name]
    meters.monitor_actions.add(1, "task-0", "shift")
    assert value(meters, "apprentice_monitor_actions_total", task="task-0", kind="shift") == 1


def test_what_the_monitor_does_by_itself_is_expected_and_what_is_done_by_admins_is_not() -> None:
    kinds = {kind for each in get_args(ActionKind) for kind in get_args(each) or (each,)}
    assert kinds - set(ACTIONS_EXPECTED) == {"pin", "release", "changed", "undo"}
    assert set(ACTIONS_EXPECTED) <= kinds
