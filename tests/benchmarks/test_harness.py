"""The arithmetic of the benchmarks: medians, ratios, goals, the plan of the cells, and JSON as the last line."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from benchmarks import harness, subjects, walk
from benchmarks.harness import Goal, Load, Unmeasurable, Verdict
from benchmarks.walk import Cell


def test_median_leaves_out_what_was_not_measured() -> None:
    assert harness.median([3.0, None, 1.0, 2.0]) == 2.0
    assert harness.median([1.0, 2.0]) == 1.5
    assert harness.median([None]) is None
    assert harness.median([]) is None


def test_ratio_of_something_unmeasured_or_to_nothing_is_none() -> None:
    assert harness.ratio(3.0, 2.0) == 1.5
    assert harness.ratio(None, 2.0) is None
    assert harness.ratio(3.0, None) is None
    assert harness.ratio(3.0, 0.0) is None


def test_numbers_are_rounded_to_significant_digits_at_any_depth() -> None:
    assert harness.rounded({"a": [12345.67, 0.00123456], "b": (1.0, "text", True, None)}) == {
        "a": [12350, 0.001235],
        "b": [1.0, "text", True, None],
    }


def test_table_has_a_dash_where_nothing_was_measured() -> None:
    assert harness.table(["", "gateway"], [["requests", 12.5], ["chunks", None]]).splitlines() == [
        "          gateway",
        "requests     12.5",
        "chunks          -",
    ]


@pytest.mark.parametrize(
    ("goal", "value", "reached"),
    [
        (Goal("x", at_least=0.35), 0.35, True),
        (Goal("x", at_least=0.35), 0.34999, False),
        (Goal("x", at_most=10), 10, True),
        (Goal("x", at_most=10), 10.1, False),
        (Goal("x", at_least=1, at_most=2), 1.5, True),
        (Goal("x", at_least=1, at_most=2), 2.5, False),
        (Goal("x", at_least=0), None, False),
        (Goal("x", at_least=0), float("nan"), False),
        (Goal("x", at_most=0), float("nan"), False),
        (Goal("x", at_least=0), True, False),
    ],
)
def test_goal_is_reached_at_its_bound_and_never_by_what_is_no_number(
    goal: Goal, value: float | None, reached: bool
) -> None:
    assert (goal.missed({"x": value}) is None) is reached


def test_goals_hold_only_if_all_are_reached_and_nothing_stands_in_the_way() -> None:
    goals = (Goal("requests", at_least=0.35), Goal("chunks", at_least=1.0))
    reached = {"requests": 0.4, "chunks": 1.2}
    assert harness.judge(goals, reached) == Verdict(True, ())
    assert harness.judge(goals, reached, ["the load is the limit"]) == Verdict(False, ("the load is the limit",))
    assert harness.judge(goals, {"requests": 0.3, "chunks": None}) == Verdict(
        False, ("requests is 0.3, under 0.35", "chunks was not measured")
    )


def test_last_line_is_one_json_object_with_goal_and_holds() -> None:
    line = harness.last_line("walk", {"figure": 1.5}, [Goal("x", 0.35, 2)], Verdict(False, ("why",)))
    assert "\n" not in line
    assert json.loads(line) == {
        "benchmark": "walk",
        "figure": 1.5,
        "goal": {"x": ">= 0.35 and <= 2"},
        "holds": False,
        "reasons": ["why"],
    }


def run(capsys: pytest.CaptureFixture[str], report: dict[str, Any] | None, show: bool = False) -> tuple[int, list[str]]:
    def measure() -> tuple[dict[str, Any], list[str]]:
        if report is None:
            raise Unmeasurable("wrk is missing: install it with `apt-get install wrk`.")
        return report, []

    code = harness.conclude("walk", measure, [Goal("x", at_least=1)], (lambda _: "a table") if show else None)
    return code, capsys.readouterr().out.splitlines()


def test_benchmark_that_cannot_run_says_so_in_json_and_does_not_hold(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, None)
    found = json.loads(lines[-1])
    assert (code, found["holds"]) == (1, False)
    assert found["reasons"] == ["wrk is missing: install it with `apt-get install wrk`."]


def test_benchmark_that_misses_its_goal_still_ends_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = run(capsys, {"ratios": {"x": 0.5}})
    assert (code, json.loads(lines[-1])["holds"]) == (0, False)


def test_without_json_the_verdict_stands_under_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, {"ratios": {"x": 2}}, show=True) == (0, ["a table", "The goals hold."])
    assert run(capsys, {"ratios": {"x": 0}}, show=True)[1][-2:] == ["The goals do not hold:", "x is 0, under 1"]


def test_cpu_time_of_a_process_grows_with_its_work() -> None:
    before = harness.cpu_seconds(os.getpid())
    while harness.cpu_seconds(os.getpid()) <= before:
        sum(range(10_000))


WRK = '{"requests":4000,"duration_us":1000000,"bytes":1,"refused":2,"broken":1,"p50_us":500,"p99_us":900}'


def test_load_is_read_from_the_last_line_of_wrk() -> None:
    load = Load.read(f"Running 1s test\n{WRK}\n")
    assert (load.per_second, load.faults, load.p50_us) == (4000.0, 3, 500)
    for output in ("", "unable to connect\n", "{}\n"):
        with pytest.raises(Unmeasurable):
            Load.read(output)


def test_plan_interleaves_all_subjects_and_is_the_same_for_the_same_seed() -> None:
    names = ["direct", "gateway", "vllm_router"]
    planned = walk.plan(3, names, seed=7)
    assert planned == walk.plan(3, names, seed=7)
    assert len(planned) == 3
    for number, cells in enumerate(planned):
        for kind in ("requests", "streams"):
            expected = set(names) if number == 0 else {"gateway", "vllm_router"}
            assert {cell.subject for cell in cells if cell.kind == kind} == expected
        assert {cell.subject for cell in cells if cell.kind == "latency"} == set(names)
    assert [sum(cell.kind == "paced" for cell in cells) for cells in planned] == [2, 2, 0]


def test_bodies_are_of_the_stated_size_for_every_subject() -> None:
    for model in ("returns", "smollm2-135m-instruct"):
        for stream in (False, True):
            made = walk.body(model, stream)
            assert len(made) == walk.BODY_BYTES
            assert json.loads(made)["model"] == model
            assert json.loads(made).get("stream", False) is stream


def cells(gateway: float = 4000, vllm_router: float = 10_000, direct: float = 100_000) -> dict[Cell, Any]:
    found: dict[Cell, Any] = {}
    for name, rate in (("gateway", gateway), ("vllm_router", vllm_router), ("direct", direct)):
        found[Cell("requests", name)] = [
            {"requests_per_second": rate * factor, "cpu_us_per_request": 1e6 / rate, "faults": 0}
            for factor in (0.5, 1, 1.1)
        ]
        found[Cell("streams", name)] = [
            {"chunks_per_second": 30 * rate, "cpu_us_per_chunk": 1e5 / rate, "faults": 0} for _ in range(3)
        ]
        found[Cell("latency", name)] = [{"latency_p50_us": 1e6 / rate, "latency_p99_us": 2e6 / rate, "faults": 0}]
    for one in found[Cell("requests", "gateway")]:
        one["valkey_cpu_us_per_request"] = 50.0
    return found


def test_report_has_medians_ratios_and_what_is_added_to_calling_the_engine() -> None:
    report, obstacles = walk.report_of(cells(), {"seed": 1})
    assert obstacles == []
    assert report["subjects"]["gateway"]["requests_per_second"] == 4000
    assert report["subjects"]["gateway"]["added_p50_us"] == pytest.approx(240)
    assert report["ratios"]["requests"] == pytest.approx(0.4)
    assert report["ratios"]["requests_by_cpu"] == pytest.approx(0.4)
    assert report["ratios"]["requests_by_cpu_with_valkey"] == pytest.approx(100 / 300)
    assert report["ratios"]["paced_chunks_by_cpu"] is None
    assert report["limit"] is None
    assert report["direct_to_fastest_router"]["requests"] == pytest.approx(10)
    assert "gateway to vllm-router" in walk.show({**report, "scheduling": "shared"})


def test_slow_load_is_the_limit_and_nothing_holds() -> None:
    report, obstacles = walk.report_of(cells(direct=19_000), {})
    assert report["limit"] == "load"
    assert not harness.judge(walk.GOALS, report["ratios"], obstacles).holds


def test_missing_peer_is_said_and_nothing_holds() -> None:
    without = {cell: found for cell, found in cells().items() if cell.subject != "vllm_router"}
    report, obstacles = walk.report_of(without, {})
    assert obstacles == ["vllm-router is not installed: run once with --peers"]
    assert report["ratios"]["requests"] is None


def test_failed_requests_make_the_measurement_void() -> None:
    found = cells()
    found[Cell("streams", "gateway")][1]["faults"] = 2
    assert walk.report_of(found, {})[1] == ["gateway: 2 requests failed"]


def test_cell_divides_cpu_time_by_requests_or_by_chunks() -> None:
    load = Load.read(WRK)
    whole = walk.figures_of("requests", load, {"own": 0.8, "valkey": 0.1})
    assert whole["cpu_us_per_request"] == pytest.approx(200)
    assert whole["valkey_core_share"] == pytest.approx(0.1)
    assert whole["faults"] == 3
    streamed = walk.figures_of("streams", load, {"own": 0.8})
    assert streamed["chunks_per_second"] == pytest.approx(4000 * 65)
    assert streamed["cpu_us_per_chunk"] == pytest.approx(200 / 65)


def test_golden_answers_are_taken_out_of_the_manifest_and_nothing_else() -> None:
    text = "task: returns\ngolden:\n  - prompt: a\n    expected: b\n\n  - prompt: c\nsampling:\n  temperature: 0\n"
    assert subjects.without_block(text, "golden") == "task: returns\nsampling:\n  temperature: 0\n"
    assert subjects.without_block("task: returns\n", "golden") == "task: returns\n"
    assert subjects.without_block("a: 1\ngolden:\n- prompt: x\n", "golden") == "a: 1\n"
