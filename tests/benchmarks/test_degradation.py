"""Parts of the degradation benchmark: detectors in numpy that are those of the monitor, worlds, delays."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import (
    degradation,
    degradation_detectors,
    degradation_flaps,
    degradation_fleet,
    degradation_lasting,
    degradation_own,
    degradation_pairs,
    degradation_peers,
    replay,
)
from benchmarks.degradation_detectors import Guard, evidence, first_alarms, first_alarms_guarded, first_of_last_200
from benchmarks.degradation_figures import delays, median_of
from benchmarks.degradation_worlds import COMPLAINTS_FIRST, WORLDS, World, drawing, labels_of, poisoned, uneven
from benchmarks.harness import Unmeasurable
from monitoring.quality.detectors import guards, leave_one_out, rising_errors
from monitoring.quality.detectors.guards import Guarded
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR
from monitoring.quality.replay.rows import read_rows
from monitoring.quality.signals import entries, label_signal


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("baseline", [0.01, 0.05, 0.3, 0.75])
def test_the_detector_in_numpy_is_the_monitors_to_the_last_digits(baseline: float, seed: int) -> None:
    bad = np.random.default_rng(seed).random((4, 400)) < min(0.9, 1.6 * baseline)
    for run, found in enumerate(np.array(list(evidence(bad, np.full(4, baseline)))).T):
        detector = rising_errors.start(baseline)
        for label, e in zip(bad[run], found, strict=True):
            detector = rising_errors.observe(detector, float(label))
            assert math.log(e) == pytest.approx(rising_errors.log_e(detector), abs=1e-9)


def served(guard: Guarded, caller: str) -> Guarded:
    """The monitor's guard once a request of this caller was answered."""
    return guards.set_callers(guard, leave_one_out.add_request(guard.callers, caller))


@pytest.mark.parametrize("callers", [2, 3, 6, 8])
def test_the_guard_in_numpy_is_the_monitors_to_the_last_digits(callers: int) -> None:
    draw = np.random.default_rng(callers)
    bad, givers = draw.random((3, 300)) < 0.12, draw.integers(0, callers, (3, 300)).astype(np.int8)
    givers[:, 100:180] = 0
    guard = Guard(np.full(3, 0.05))
    detectors = [guards.start(0.05, "returns@v3")] * 3
    for run in range(3):
        for caller in range(8):
            detectors[run] = served(detectors[run], f"caller-{caller}")
    for n in range(300):
        found = guard.evidence(bad[:, n], givers[:, n])
        for run in range(3):
            detectors[run] = guards.observe(detectors[run], float(bad[run, n]), f"caller-{givers[run, n]}")
            log_e = math.log(found[run]) if found[run] else LOG_FLOOR
            assert log_e == pytest.approx(guards.log_e(detectors[run]), abs=1e-9)


def test_the_first_alarm_is_the_monitors_in_each_run_whatever_ended_before_it() -> None:
    draw = np.random.default_rng(5)
    rates = np.array([0.05, 0.1, 0.2, 0.5] * 3)
    bad = draw.random((12, 900)) < rates[:, None]
    givers = draw.integers(0, 8, (12, 900)).astype(np.int8)
    baselines, bars = np.full(12, 0.05), np.full(12, 2_000.0)
    plain, guarded = first_alarms(bad, baselines, bars), first_alarms_guarded(bad, givers, baselines, bars)
    for run in range(12):
        detector, guard = rising_errors.start(0.05), guards.start(0.05, "returns@v3")
        at: dict[str, float] = {}
        for caller in range(8):
            guard = served(guard, f"caller-{caller}")
        for n in range(900):
            detector = rising_errors.observe(detector, float(bad[run, n]))
            guard = guards.observe(guard, float(bad[run, n]), f"caller-{givers[run, n]}")
            if rising_errors.log_e(detector) >= rising_errors.find_threshold(100, 0.05):
                at.setdefault("plain", n + 1)
            if leave_one_out.has_alarmed(guard.detectors, 100, 0.05):
                at.setdefault("guarded", n + 1)
        assert (plain[run], guarded[run]) == (at.get("plain", math.inf), at.get("guarded", math.inf))


def test_usual_rule_alarms_where_the_last_200_labels_are_five_points_worse() -> None:
    bad = np.zeros((2, 500), dtype=np.bool_)
    bad[0, 300:320] = True
    assert first_of_last_200(bad, 0.05).tolist() == [320, math.inf]
    assert first_of_last_200(bad[:, :199], 0.05).tolist() == [math.inf, math.inf]


@pytest.mark.parametrize("world", [*WORLDS, COMPLAINTS_FIRST], ids=lambda world: world.name)
def test_labels_of_every_world_have_its_rates_and_all_of_them_come(world: World) -> None:
    came = labels_of(world, drawing(1, world.name), 40, 3_000, 0.05, 0.20)
    burst = 300 if world.burst else 0
    healthy = came.bad[~came.changed & (came.givers != 0)].mean() if burst else came.bad[~came.changed].mean()
    assert healthy == pytest.approx(0.05, abs=0.01)
    assert came.bad[came.changed].mean() == pytest.approx(0.25, abs=0.01)
    assert (came.changed.sum(axis=1) == 3_000 - world.before - burst).all()


def test_late_labels_mix_times_before_and_after_a_change_and_outages_hold_all_back() -> None:
    worlds = {world.name: world for world in WORLDS}
    first = {}
    for name in ("steady", "day_night", "feedback_outage"):
        came = labels_of(worlds[name], drawing(2, name), 50, 2_000, 0.05, 0.05)
        at_last = 2_000 - came.changed[:, ::-1].argmin(axis=1)
        first[name] = (came.changed.argmax(axis=1).mean(), at_last.mean())
    assert first["steady"] == (1_000, 1_000)
    assert first["day_night"][0] < 1_000 < first["day_night"][1]
    assert first["feedback_outage"][1] > 1_100


def test_bad_labels_that_come_first_are_no_null_hypothesis() -> None:
    came = labels_of(COMPLAINTS_FIRST, drawing(3, "complaints"), 50, 2_000, 0.05)
    assert came.bad[:, :100].mean() > 0.1


def test_a_burst_is_of_one_rater_and_half_bad() -> None:
    (world,) = [world for world in WORLDS if world.burst]
    came = labels_of(world, drawing(4, "burst"), 50, 1_500, 0.05)
    assert (came.givers[:, 200:500] == 0).all()
    assert came.bad[:, 200:500].mean() == pytest.approx(0.5, abs=0.03)


def test_delay_counts_labels_since_the_change_without_those_who_alarmed_before() -> None:
    changed = np.array([[False, False, True, False, True, True]] * 4)
    alarms = np.array([5.0, 2.0, math.inf, 3.0])
    assert delays(alarms, changed).tolist() == [2.0, math.inf, 1.0]


def test_medians_have_their_exact_interval_and_none_where_half_found_nothing() -> None:
    found = median_of(np.arange(1.0, 101.0))
    assert (found["low"], found["median"], found["high"]) == (37.0, 50.0, 64.0)
    assert median_of(np.array([1.0, *[math.inf] * 20]))["median"] is None
    assert median_of(np.array([]))["median"] is None


def test_a_poisoner_gives_the_share_that_is_asked_for_and_honest_callers_theirs() -> None:
    came = poisoned(drawing(5, "poison"), 20, 2_000, 0.05, 0.3, 6)
    assert (came.givers == 6).mean() == pytest.approx(0.3, abs=0.02)
    assert came.bad[came.givers == 6].all()
    assert came.bad[came.givers != 6].mean() == pytest.approx(0.05, abs=0.01)
    honest = uneven(drawing(6, "uneven"), 20, 2_000, 0.05, 0.2, (0.6, 0.4))
    assert (honest.givers == 0).mean() == pytest.approx(0.6, abs=0.02)


def test_false_verdicts_of_a_fleet_restart_the_monitors_detector_after_each() -> None:
    labels, rate, bar = np.array([400, 250, 30]), np.array([0.3, 0.2, 0.5]), np.array([50.0, 40.0, 60.0])
    baselines = np.array([0.15, 0.15, 0.3])
    found = degradation_fleet.false_verdicts(labels, rate, baselines, bar, drawing(7, "fleet"))
    draw, wanted = drawing(7, "fleet"), 0
    detectors = [rising_errors.start(float(one)) for one in baselines]
    for n in range(400):
        active = int((labels > n).sum())
        for version, place in enumerate(draw.random(active)):
            detectors[version] = rising_errors.observe(detectors[version], float(place < rate[version]))
            if rising_errors.log_e(detectors[version]) >= math.log(bar[version]):
                wanted, detectors[version] = wanted + 1, rising_errors.start(float(baselines[version]))
    assert found == wanted > 0


@pytest.mark.parametrize("wrong", [0, 3, 20])
def test_bounds_of_first_labels_are_the_baselines_that_the_monitor_takes(wrong: int) -> None:
    track, roll = label_signal.start(50, "returns@v3"), guards.start_roll("returns@v3")
    for n in range(50):
        track = track.take(entries.Label(badness=float(n * 7 % 50 < wrong), caller="shop"), float(n), roll, False)
    assert track.baseline is not None

    class Fixed:
        def binomial(self, first: int, rates: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
            return np.full(len(rates), wrong)

    found = degradation_fleet.own_bounds(50, np.array([0.1]), cast("np.random.Generator", Fixed()))
    assert found[0] == pytest.approx(track.baseline.upper, rel=0.05), "clusters by chance widen it a little"


def test_signals_against_their_first_labels_keep_the_claim_and_gain_with_more() -> None:
    rows = degradation_own.own_first([0.15], 200, 60, 1_000, 0.05, 1)
    assert [row["first"] for row in rows] == [50, 100]
    assert all(row["false_alarms"]["low"] <= 0.05 for row in rows)
    assert rows[0]["bound_median"] > rows[1]["bound_median"] > 0.15
    assert rows[0]["points"]["20"]["found"] < rows[1]["points"]["20"]["found"]
    assert "15%, first 50" in degradation_own.show_own(rows, 1_000)


def test_the_interval_of_a_count_is_exact() -> None:
    low, high = degradation_fleet.poisson(0)
    assert low == 0.0
    assert high == pytest.approx(-math.log(0.005))
    assert degradation_fleet.poisson(10)[0] < 10 < degradation_fleet.poisson(10)[1]


def test_without_river_its_columns_are_left_out(tmp_path: Path) -> None:
    with degradation_peers.River(tmp_path, 5) as river:
        assert not river.asked
        assert river.first_drifts(np.zeros((2, 10), dtype=np.bool_)) == {}


def test_what_a_peer_reports_first_is_taken() -> None:
    class Third:
        def __init__(self) -> None:
            self.seen = 0

        def update(self, label: int) -> None:
            self.seen += label

        @property
        def drift_detected(self) -> bool:
            return self.seen >= 3

    assert degradation_peers.first_drift(Third(), [1, 0, 1, 1, 1]) == 4
    assert degradation_peers.first_drift(Third(), [0] * 9) is None


def test_options_that_can_not_be_are_refused_before_anything_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--runs", "5"], ["--baselines", "0.9"], ["--alpha", "2"], ["--labels", "10"], ["--budget", "0"]):
        with pytest.raises(SystemExit):
            degradation.main(wrong)
    assert capsys.readouterr().out == ""


SMALL = ["--runs", "30", "--goal-runs", "30", "--labels", "300", "--alpha", "0.2", "--baselines", "0.05"]
SMALLER = [*SMALL, "--peers-runs", "0", "--versions", "50", "--months", "1"]


def test_same_seed_makes_the_same_report_and_the_tables_show_all_of_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(degradation, "AFTER", dict.fromkeys(degradation.AFTER, 50))
    for module in (degradation_fleet, degradation_pairs):
        monkeypatch.setattr(module, "AFTER", 50)
    monkeypatch.setattr(degradation_lasting, "PART_LABELS", 60)
    monkeypatch.setattr(degradation_flaps, "SEA_BEFORE", 200)
    monkeypatch.setattr(degradation_flaps, "SEA_AFTER", 200)
    told = []
    for seed in ("1", "1"):
        degradation.main(["--json", *SMALLER, "--seed", seed])
        told.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    shown = degradation.show(told[0])
    for one in told:
        del one["cpu_seconds"]
    assert told[0] == told[1]
    assert told[0]["river"] is None
    assert {row["world"] for row in told[0]["false_alarms"]} == {world.name for world in WORLDS}
    assert set(told[0]["goal"]) <= set(told[0]["figures"])
    assert told[0]["figures"]["false_alarm_rate_known_mean"] <= 0.2
    assert max(row["guarded"]["low"] for row in told[0]["poison"]) <= 0.2
    assert all(row["plain"]["rate"] > 0.9 for row in told[0]["poison"])
    assert all(name in shown for name in (*(world.name for world in WORLDS), *degradation.DELAY_GOALS))
    assert "one caller, all bad" in shown


def test_sums_that_go_on_after_an_alarm_overflow_nothing() -> None:
    bad = np.ones((3, 3_000), dtype=np.bool_)
    assert first_alarms(bad, np.full(3, 0.002), np.array([1e5, 1e9, np.inf])).tolist()[2] == math.inf
    givers = np.tile(np.arange(8, dtype=np.int8), (3, 375))
    assert (first_alarms_guarded(bad, givers, np.full(3, 0.002), np.full(3, 1e5)) < 100).all()
    assert degradation_detectors.SUM_MAX < 1e300


def test_another_design_with_the_monitors_alternatives_is_the_monitors_detector() -> None:
    draw = np.random.default_rng(9)
    bad = draw.random((20, 600)) < 0.15
    baselines, bars = np.full(20, 0.05), np.full(20, 5_000.0)
    same = degradation_detectors.Design(rising_errors.POINTS, rising_errors.WEIGHTS)
    assert first_alarms(bad, baselines, bars, same).tolist() == first_alarms(bad, baselines, bars).tolist()
    rows = degradation.tried(argparse.Namespace(seed=1, goal_runs=40))
    assert [row["design"] for row in rows] == list(degradation.DESIGNS)
    assert "20 points alone" in "\n".join(degradation.show_tried(rows))
    assert degradation.show_tried([]) == []


def test_verdicts_change_at_most_twice_for_each_real_change() -> None:
    assert degradation_lasting.turn_back_and_forth(1, 0.05, 1)["changes_for_each"] <= 2.0


def test_lasting_slip_recovers_falsely_less_often_where_each_recovery_needs_more() -> None:
    row = degradation_lasting.row_of(0.3, 0.6, 2, 8_000, 0.05, 1)
    more, same = row["asks_more"], row["asks_the_same"]
    assert more["false_recoveries_a_run"] < same["false_recoveries_a_run"]
    assert more["false_recoveries_most"] <= same["false_recoveries_most"]
    assert 0 <= more["labels_to_recover"]["median"] < 400
    assert "30% to 60%" in degradation_lasting.show_lasting([row])


def test_files_of_labels_are_counted_as_replay_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labels.jsonl"
    draw, degraded = np.random.default_rng(3), np.repeat([False, True], 600)
    wrong = draw.random(1_200) < np.where(degraded, 0.4, 0.05)
    rows = [{"right": not bad, "change_point": int(worse)} for bad, worse in zip(wrong.tolist(), degraded, strict=True)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert replay.main([str(file), "--json"]) == 0
    replayed = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = degradation_flaps.flap_on_streams({"labels": read_rows(file)})
    assert found[0]["changes"] == replayed["figures"]["verdict_changes"] > 0
    assert (found[0]["labels"], found[0]["real_changes"]) == (1_200, 1)
    assert degradation_flaps.list_figures({"sea": SEA, "streams": found, "elec2": []})["flaps_streams_for_each"] >= 1
    goals = degradation_flaps.list_goals([read_rows(file)], False)
    assert [goal.figure for goal in goals] == ["flaps_sea_for_each", "flaps_streams_for_each"]


def test_a_file_that_is_no_stream_is_refused_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("outcome\n0\n7\n")
    with pytest.raises(SystemExit):
        degradation.main(["--stream", str(file)])
    assert "--stream: Line 3" in capsys.readouterr().err


def test_streams_of_elec2_are_the_errors_of_classifiers_that_learned_its_first_rows(tmp_path: Path) -> None:
    draw, file = np.random.default_rng(4), tmp_path / "elec.csv"
    values = draw.random((6_400, 2))
    rises = (values[:, 0] > 0.5) ^ (np.arange(6_400) >= 5_800)
    lines = [f"{x:.4f},{y:.4f},{int(up)}" for (x, y), up in zip(values.tolist(), rises, strict=True)]
    file.write_text("\n".join(["period,price,class", *lines]))
    drawn = dict(degradation_flaps.draw_elec2(*degradation_flaps.read_elec2(file), 1))
    assert len(drawn) == 12
    tree = drawn["recorded, tree"]
    assert len(tree) == 6_400 - degradation_flaps.ELEC2_LEARNED
    assert tree[: 5_800 - degradation_flaps.ELEC2_LEARNED].mean() < 0.01 < 0.99 < tree[-600:].mean()
    assert drawn["recorded, naive Bayes, learns daily"][-600:].mean() < 1.0
    assert degradation_flaps.count_flaps(degradation_flaps.make_rows(tree[1_000:]), None).changes == 1
    file.write_text("\n".join(lines[:50]))
    with pytest.raises(Unmeasurable, match="rows of two classes"):
        degradation_flaps.read_elec2(file)


SEA = [{"changes_for_each": 3.0}]


def test_a_slip_on_sea_is_found_and_its_end_too() -> None:
    found = degradation_flaps.flap_on_sea(2, 3_000, 1)
    assert [row["baseline"] for row in found] == ["evaluation", "own"]
    assert found[0]["changes_for_each"] >= 1.0
    assert 0 < found[0]["labels_to_recovery"]["median"] < 2_000
    assert "own" in degradation_flaps.show_flaps({"sea": found, "streams": [], "elec2": []})
