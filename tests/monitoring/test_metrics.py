"""Metrics: declared and documented alike, counted right, and exposed in both formats as Prometheus reads them."""

from __future__ import annotations

import math
import subprocess
import timeit
from typing import get_type_hints

import prometheus_client
import pytest

from monitoring.metric_table import METRICS, MetricFamilies
from monitoring.metrics import Meters
from tests.monitoring.filled_meters import (
    OPENMETRICS,
    family_of,
    fill_as_forty_tasks_of_three_versions_do,
    samples,
    spec_of,
    value,
)
from tests.programs import program


def test_every_declared_metric_is_made_once_under_its_own_name_and_kind() -> None:
    meters = Meters()
    names = [spec.name for spec in METRICS]
    assert len(set(names)) == len(names) == len(get_type_hints(MetricFamilies))
    for spec in METRICS:
        family = family_of(meters, spec)
        assert family.spec is spec
        assert type(family).__name__.lower() == spec.kind
        attribute = spec.name.removeprefix("apprentice_").removesuffix("_total")
        assert get_type_hints(MetricFamilies)[attribute] is type(family)
        assert (spec.kind == "counter") == spec.name.endswith("_total")
        assert spec.unit != "seconds" or spec.name.endswith("_seconds")
        assert spec.help.endswith((".", "."))
        assert list(spec.bounds) == sorted(set(spec.bounds))


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


@pytest.mark.parametrize("filled", [False, True])
def test_promtool_finds_nothing_to_object_to(filled: bool) -> None:
    promtool = program("promtool")
    meters = Meters()
    if filled:
        # Not all forty: promtool takes ten seconds for them, and looks at names more than at numbers.
        fill_as_forty_tasks_of_three_versions_do(meters, tasks_count=4, replicas_count=8)
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=meters.exposition()[0],
        capture_output=True,
        timeout=150,
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


@pytest.mark.invariant("Callers share their connections over all processes of a gateway, and its metrics are the sum.")
def test_what_processes_measured_adds_up_and_gauges_are_merged_as_declared() -> None:
    one, other, both = Meters(), Meters(), Meters()
    for meters, amount in ((one, 1), (other, 2)):
        meters.requests.add(amount, "returns", "returns@v1", "small", "adapter", "ok")
        meters.request_duration_seconds.observe(amount, "returns", "small")
        meters.in_flight.set(amount, "small", "small-0")
        meters.replica_up.set(amount - 1, "small", "small-0")
        meters.breaker_state.set(amount, "small", "small-0")
        both.add(meters.measured())
    labels = {"task": "returns", "pool": "small"}
    ok = {"version": "returns@v1", "reason": "adapter", "outcome": "ok"}
    assert value(both, "apprentice_requests_total", **labels, **ok) == 3
    assert value(both, "apprentice_request_duration_seconds_count", **labels) == 2
    assert value(both, "apprentice_request_duration_seconds_sum", **labels) == 3
    assert value(both, "apprentice_request_duration_seconds_bucket", le="1.0", **labels) == 1
    replica = {"pool": "small", "replica": "small-0"}
    assert [value(both, f"apprentice_{name}", **replica) for name in ("in_flight", "replica_up", "breaker_state")] == [
        3,
        0,
        2,
    ]


def test_the_newest_exemplar_of_each_bucket_is_kept_across_processes() -> None:
    one, other, both = Meters(), Meters(), Meters()
    for meters, trace, at in ((one, "a" * 32, 1.0), (other, "b" * 32, 2.0), (one, "c" * 32, 0.5)):
        cell = meters.request_duration_seconds.cell("returns", "small")
        cell.observe(0.7)
        cell.exemplify(0.7, trace, at)
    for meters in (other, one):
        both.add(meters.measured())
    lines = [line for line in both.exposition(OPENMETRICS)[0].decode().splitlines() if "trace_id" in line]
    assert lines == [
        'apprentice_request_duration_seconds_bucket{task="returns",pool="small",le="1.0"} 3'
        f' # {{trace_id="{"b" * 32}"}} 0.7 2.000'
    ]
    assert "trace_id" not in both.exposition()[0].decode()


def test_counters_of_an_ended_process_stay_but_not_those_of_retired_versions() -> None:
    ended, live = Meters(), Meters()
    for version in ("returns@v1", "returns@v2", ""):
        ended.requests.add(1, "returns", version, "small", "adapter", "ok")
    ended.in_flight.set(4, "small", "small-0")
    live.adapter_info.set(1, "returns", "returns@v2", "small", "0" * 12, "ready")
    kept = Meters()
    kept.add(ended.measured(), with_gauges=False)
    kept.forget_all_but(live.versions())
    assert {
        labels["version"] for labels in map(dict, (key for name, key in samples(kept) if "requests_total" in name))
    } >= {
        "returns@v2",
        "",
    }
    assert not any(("version", "returns@v1") in key for _, key in samples(kept))
    assert value(kept, "apprentice_in_flight", pool="small", replica="small-0") is None
