"""The monitor's signals in numpy: they are the monitor's to the last digits, and raise few false alarms."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    degradation_clusters,
    degradation_pairs,
    degradation_signals,
)
from benchmarks.degradation_clusters import ClusteredWorld
from benchmarks.degradation_reviewers import ReviewedSignals
from benchmarks.degradation_sessions import SessionSignals, renumber
from benchmarks.degradation_signals import Signals, find_alarms, hold
from benchmarks.degradation_worlds import drawing
from benchmarks.harness import Unmeasurable
from monitoring.quality.detectors import guards, leave_one_out, sessions
from monitoring.quality.detectors.baselines import Baseline, declare_rate
from monitoring.quality.detectors.shiryaev_roberts import LOG_FLOOR
from monitoring.quality.signals import entries, label_signal, pair_signal, repeats
from monitoring.quality.verdicts.monitor_plan import MonitorPlan

PLAIN = [world for world in degradation_clusters.WORLDS if not world.sessions_known]
KNOWN = [
    *[world for world in degradation_clusters.WORLDS if world.sessions_known],
    *degradation_clusters.read_worlds(degradation_clusters.HARDER.with_name("known_sessions.json")),
]
KINDS = ("known", "gate", "own")


def each_with_a_kind(worlds: list[ClusteredWorld]) -> list[Any]:
    """Each world with one kind of baseline, and each kind in several worlds: neither knows of the other."""
    pairs = zip(worlds, cycle(KINDS), strict=False)
    return [pytest.param(world, kind, id=f"{world.name}-{kind}") for world, kind in pairs]


@pytest.mark.parametrize(("world", "kind"), each_with_a_kind(PLAIN))
def test_signals_in_numpy_are_the_monitors(world: ClusteredWorld, kind: degradation_signals.Kind) -> None:
    bad, times = degradation_clusters.draw_labels(world, drawing(6, world.name), 2, 1_500)
    bad[:, 1_000:] |= drawing(7, world.name).random((2, 500)) < 0.1
    many = Signals(hold(kind, np.full(2, 0.05)), 2)
    signals = [label_signal.start(200, "returns@v3")] * 2
    if kind != "own":
        held = Baseline(kind="gate" if kind == "gate" else "admin", wrong=0, of=0, upper=0.05, at=1, by="", source="")
        signals = [signal.hold_against(held) for signal in signals]
    roll = leave_one_out.add_request(guards.start_roll("returns@v3"), "shop")
    labels = 1_000.0
    for n in range(bad.shape[1]):
        many.take(bad[:, n], times[:, n])
        enough = many.most >= labels
        doubtful = many.find_doubtful(enough, labels)
        for run in range(2):
            label = entries.Label(badness=float(bad[run, n]), caller="shop", trusted=True)
            signal = signals[run] = signals[run].take(label, float(times[run, n]), roll, False)
            if signal.guard is not None and n % 25 == 0:
                e_value = float((degradation_signals.WEIGHTS @ many.sums)[run])
                assert signal.log_e() == pytest.approx(math.log(e_value) if e_value else LOG_FLOOR, abs=1e-9)
                assert signal.alarms(0, labels * 0.05, 0.05) == enough[run]
                assert (signal.find_doubt(0, labels * 0.05, 0.05) is not None) == doubtful[run]
    assert [signal.dispersion for signal in signals] == pytest.approx(many.dispersion.tolist())


@pytest.mark.parametrize(("world", "kind"), each_with_a_kind(KNOWN))
def test_signals_of_known_sessions_in_numpy_are_the_monitors(
    world: ClusteredWorld, kind: degradation_signals.Kind
) -> None:
    bad, times, numbers = degradation_clusters.draw_known(world, drawing(3, world.name), 2, 1_500)
    bad[:, 1_000:] |= drawing(7, world.name).random((2, 500)) < 0.1
    many = SessionSignals(hold(kind, np.full(2, 0.05)), 2, renumber(numbers))
    held = Baseline(kind="gate" if kind == "gate" else "admin", wrong=0, of=0, upper=0.05, at=1, by="", source="")
    signals = [label_signal.start(200, "returns@v3") for _ in range(2)]
    signals = signals if kind == "own" else [signal.hold_against(held) for signal in signals]
    roll = leave_one_out.add_request(guards.start_roll("returns@v3"), "shop")
    latest, kept = [dict[str, repeats.Latest]()] * 2, [dict[str, repeats.Sessions]()] * 2
    for n in range(bad.shape[1]):
        many.take(bad[:, n], times[:, n])
        enough = many.most >= 1_000.0
        doubtful = many.find_doubtful(enough, 1_000.0)
        for run in range(2):
            seen = entries.RecordEntry(id=f"{n}", request_digest=f"{n:08d}", handles=[f"{numbers[run, n]:08d}"])
            label = entries.Label(badness=float(bad[run, n]), caller="shop", trusted=True)
            label, latest[run], kept[run] = repeats.weigh(latest[run], kept[run], "feedback", label, seen)
            signal = signals[run] = signals[run].take(label, float(times[run, n]), roll, False)
            if signal.guard is not None and n % 25 == 0:
                e_value = float((degradation_signals.WEIGHTS @ many.sums)[run])
                assert signal.log_e() == pytest.approx(math.log(e_value) if e_value else LOG_FLOOR, abs=1e-9)
                assert signal.alarms(0, 50.0, 0.05) == enough[run]
                assert (signal.find_doubt(0, 50.0, 0.05) is not None) == doubtful[run]
    assert [signal.dispersion for signal in signals] == pytest.approx(many.dispersion.tolist())
    shown = [sessions.find_correlation(signal.likeness) for signal in signals]
    assert shown == pytest.approx(many.correlation.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_signals_of_known_reviewers_in_numpy_are_the_monitors(kind: degradation_signals.Kind) -> None:
    world = ClusteredWorld(name="away", mild_away=True, error=0.1)
    bad, times, reviewers = degradation_clusters.draw_reviewed(world, drawing(3, kind), 3, 2_000)
    bad[:, 1_200:] |= drawing(7, kind).random((3, 800)) < 0.1
    many = ReviewedSignals(hold(kind, np.full(3, 0.1)), 3, reviewers)
    held = Baseline(kind="gate" if kind == "gate" else "admin", wrong=0, of=0, upper=0.1, at=1, by="", source="")
    signals = [label_signal.start(200, "returns@v3") for _ in range(3)]
    signals = signals if kind == "own" else [signal.hold_against(held) for signal in signals]
    roll, doubts = leave_one_out.add_request(guards.start_roll("returns@v3"), "shop"), set[str | None]()
    for n in range(bad.shape[1]):
        many.take(bad[:, n], times[:, n])
        enough = many.most >= 1_000.0
        doubtful = many.find_doubtful(enough, 1_000.0)
        for run in range(3):
            giver = f"reviewer {reviewers[run, n]}"
            label = entries.Label(badness=float(bad[run, n]), caller="desk", rater=giver, trusted=True)
            signal = signals[run] = signals[run].take(label, float(times[run, n]), roll, False)
            if signal.guard is not None and n % 25 == 0:
                doubt = signal.find_doubt(0, 50.0, 0.05)
                assert signal.alarms(0, 50.0, 0.05) == enough[run]
                assert (doubt is not None) == doubtful[run]
                doubts.add(doubt)
    assert "reviewers" in doubts or kind == "own"


@pytest.mark.parametrize("name", ["spells_20_varying", "spells_50"])
def test_spells_of_any_length_raise_few_false_alarms(name: str) -> None:
    worlds = {world.name: world for world in degradation_clusters.read_worlds(degradation_clusters.HARDER)}
    bad, times = degradation_clusters.draw_labels(worlds[name], drawing(9, name), 200, 10_000)
    assert np.isfinite(find_alarms(bad, times, hold("known", np.full(200, 0.05)), 200_000.0).degraded).mean() < 0.17


@pytest.mark.parametrize("kind", degradation_pairs.KINDS)
@pytest.mark.parametrize("world", degradation_pairs.WORLDS)
def test_pairs_in_numpy_are_the_monitors(world: str, kind: str) -> None:
    differences = degradation_pairs.draw_differences(world, drawing(8, world), 2, 1_200, 0.2)
    many = degradation_pairs.PairSignals(kind, 2)
    signals = [pair_signal.start("returns@v3")] * 2
    if kind == "known":
        signals = [signal.hold_against(declare_rate(1e-12, 0.0, "admin", "known")) for signal in signals]
    for n in range(differences.shape[1]):
        many.take(differences[:, n])
        for run, difference in enumerate(differences[:, n].tolist()):
            wrong = max(0.0, difference)
            signal = signals[run] = signals[run].take_pair(wrong, wrong - difference, (), 600.0 * n, None)
            if signal.detectors is not None and n % 25 == 0:
                assert signal.alarms(MonitorPlan().labels_min, 20.0, 0.05) == many.find_alarms(20.0, 0.05)[run]
                e_value = float((degradation_pairs.WEIGHTS @ many.sums)[run])
                assert signal.log_e() == pytest.approx(math.log(e_value) if e_value else LOG_FLOOR, abs=1e-9)
    assert [signal.dispersion for signal in signals] == pytest.approx(many.dispersion.tolist())


@pytest.mark.parametrize("kind", degradation_pairs.KINDS)
@pytest.mark.parametrize("world", degradation_pairs.WORLDS)
def test_pairs_in_clusters_raise_few_false_alarms_from_the_first_on(world: str, kind: str) -> None:
    differences = degradation_pairs.draw_differences(world, drawing(4, world), 400, degradation_pairs.PAIRS)
    alarms = degradation_pairs.find_alarms(differences, kind, 0.05)
    assert np.isfinite(alarms).mean() < 0.07


def test_repeated_answers_raise_no_false_alarm_and_a_slip_is_still_found() -> None:
    (repeated,) = [world for world in degradation_clusters.WORLDS if world.name == "repeated"]
    bad, times = degradation_clusters.draw_labels(repeated, drawing(1, "repeated"), 60, 4_000)
    assert (bad[:, ::2] == bad[:, 1::2]).all()
    steady = find_alarms(bad, times, hold("known", np.full(60, 0.05)), 80_000.0)
    assert np.isfinite(steady.degraded).mean() <= 0.05
    assert np.median(steady.dispersion) > 1.5
    bad[:, 1_000:] |= drawing(2, "repeated").random((60, 3_000)) < 0.15
    assert np.median(find_alarms(bad, times, hold("known", np.full(60, 0.05)), 80_000.0).degraded) < 1_300


def test_worlds_come_from_a_file_or_are_refused_with_the_reason(tmp_path: Path) -> None:
    file = tmp_path / "worlds.json"
    file.write_text('[{"name": "mine", "error": 0.1, "repeats": 3, "goal": 0.2}]')
    (world,) = degradation_clusters.read_worlds(file)
    assert (world.name, world.error, world.repeats, world.goal) == ("mine", 0.1, 3, 0.2)
    for text, reason in (
        ('[{"name": "x", "odd": 1}]', "odd"),
        ('[{"name": "x", "error": 2}]', "error of"),
        ("{", "list"),
    ):
        file.write_text(text)
        with pytest.raises(Unmeasurable, match=reason):
            degradation_clusters.read_worlds(file)


HARDER = {world.name: world for world in degradation_clusters.read_worlds(degradation_clusters.HARDER)}
SHIPPED = {**HARDER, **{world.name: world for world in PLAIN if world.spell_times == 1.0}}


def test_labellers_stricter_than_the_evaluations_make_it_suspect() -> None:
    bad, times = degradation_clusters.draw_labels(HARDER["flipped_5"], drawing(1, "flipped"), 100, 6_000)
    assert 0.08 < bad.mean() < 0.11
    found = find_alarms(bad, times, hold("gate", np.full(100, 0.063)), 120_000.0)
    assert np.isfinite(found.suspect).mean() > 0.9
    assert np.isfinite(found.degraded).mean() < 0.35


def test_a_slip_after_good_labels_is_degraded_over_an_evaluation() -> None:
    draw = drawing(1, "degradations")
    bad = draw.random((100, 3_000)) < np.where(np.arange(3_000) < 1_000, 0.05, 0.15)
    found = find_alarms(bad, np.arange(3_000) * 170.0, hold("gate", np.full(100, 0.063)), 200_000.0)
    assert (found.degraded < 1_600).mean() > 0.95
    assert (found.degraded - found.suspect < 100).mean() > 0.95


@pytest.mark.parametrize("world", SHIPPED.values(), ids=SHIPPED)
def test_worlds_have_the_errors_that_they_say(world: ClusteredWorld) -> None:
    bad, _ = degradation_clusters.draw_labels(world, drawing(1, world.name), 100, 5_000)
    expected = world.error * (1.0 - 2.0 * world.flipped) + world.flipped
    expected *= 1.1 if world.mild_away else 1.0  # of a quarter the errors are 1.4 times as frequent
    assert bad.mean() == pytest.approx(expected, rel=0.06)


def test_spells_that_vary_last_as_long_on_average_as_they_say() -> None:
    world = ClusteredWorld(name="spells", spell_labels=20, spells_vary=True, spell_times=4.0)
    inside = degradation_clusters.draw_spells(world, drawing(1, "spells"), 200, 5_000)
    begun = (inside[:, 1:] & ~inside[:, :-1]).sum()
    assert inside.mean() == pytest.approx(0.1, rel=0.1)
    assert inside[:, 1:].sum() / begun == pytest.approx(20.0, rel=0.1)
