"""The number of series: a budget that no values whatever exceed, and what becomes of those beyond it."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.errors import ERRORS
from monitoring.metric_spec import CLOSED, SCALE, evaluate
from monitoring.metric_table import METRICS
from monitoring.metrics import ACTIONS_EXPECTED, SERIES_MAX_DEFAULT, SERIES_MAX_LEAST, Meters
from monitoring.quality.verdicts.canary_verdict import CanaryAction
from monitoring.quality.verdicts.quality import ActionKind
from router.routing_data import REASONS
from serving.adapters.placement import PLACEMENT_STATES
from serving.adapters.versions_and_aliases import VERSION_STATES
from tests.monitoring.filled_meters import (
    fill_as_forty_tasks_of_three_versions_do,
    fill_with_more_than_there_is_room_for,
    samples,
    series_by_metric,
    spec_of,
    value,
)


def test_formulas_are_sums_of_products() -> None:
    assert evaluate("1") == 1
    assert evaluate("(T+1)*V*5 + 8", {"T": 40, "V": 3}) == 41 * 3 * 5 + 8


def test_closed_labels_have_room_for_the_lists_in_the_code_and_other() -> None:
    lists = {
        "reason": (REASONS,),
        "code": (ERRORS,),
        "state": (VERSION_STATES, (*PLACEMENT_STATES, "absent")),
        "action": (set(get_args(CanaryAction)) - {"continue"},),
        "family": (METRICS,),
    }
    for label, values in lists.items():
        assert max(map(len, values)) < CLOSED[label], label


def test_closed_labels_are_those_of_metrics() -> None:
    assert set(CLOSED) <= {label for spec in METRICS for label in spec.labels}


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


def test_a_gauge_that_reads_too_many_shows_the_sum_of_the_rest_as_other() -> None:
    meters = Meters()
    meters.in_flight.read_from(lambda: {("small", f"small-{number}"): 1.0 for number in range(300)})
    for _ in range(2):
        assert value(meters, "apprentice_in_flight", pool="other", replica="other") == 300 - SCALE["R"]


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


def test_a_budget_too_small_for_other_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at least {SERIES_MAX_LEAST}"):
        Meters(SERIES_MAX_LEAST - 1)


def test_rare_events_to_come_stand_at_zero_and_take_no_room_of_others() -> None:
    meters = Meters()
    tasks = [f"task-{number}" for number in range(200)]
    meters.expect(tasks)
    meters.expect(tasks)
    begun = ("verdicts", "monitor_actions", "reviews_total", "webhooks", "overflow")
    found = {key: number for key, number in samples(meters).items() if any(name in key[0] for name in begun)}
    assert set(found.values()) == {0.0}
    for name in ("canary_verdicts_total", "monitor_actions_total", "reviews_total"):
        (spec,) = (one for one in METRICS if one.name == f"apprentice_{name}")
        assert 0 < series_by_metric(meters)[spec.name] <= evaluate(spec.children)
    assert not [name for name, _ in found if "overflow" in name]
    meters.monitor_actions.add(1, "task-0", "shift")
    assert value(meters, "apprentice_monitor_actions_total", task="task-0", kind="shift") == 1


def test_actions_of_the_monitor_are_expected_and_those_of_admins_are_not() -> None:
    kinds = {kind for each in get_args(ActionKind) for kind in get_args(each) or (each,)}
    assert kinds - set(ACTIONS_EXPECTED) == {"pin", "release", "changed", "undo"}
    assert set(ACTIONS_EXPECTED) <= kinds
