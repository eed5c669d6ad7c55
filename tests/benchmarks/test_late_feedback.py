"""Parts of the benchmark of late feedback: many versions at once are the detectors one by one; its report."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import complaint_worlds, late_feedback
from benchmarks.complaint_runs import Events, Many, in_order_of_arrival, through
from benchmarks.complaint_worlds import FIRST_TICK, TICKS_PER_DAY, Drawn, World, drawn
from monitoring.quality.detectors import complaint_delays, complaints, rising_errors
from monitoring.quality.detectors.complaint_delays import TICK_SECONDS
from monitoring.time_units import DAY_SECONDS


@pytest.mark.parametrize("shape", ["steady", "day/night", "outage", "office hours"])
def test_many_versions_at_once_are_the_detector_of_each(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complaints, "REFERENCE_SEEN", 150)
    monkeypatch.setattr(complaints, "REFERENCE_SECONDS_MIN", DAY_SECONDS)
    monkeypatch.setattr(complaint_worlds, "OUTAGE_DAYS", 2)
    world = World(shape=shape, complain=1.0, doubled_from=int(2.5 * TICKS_PER_DAY))
    events, _, _ = drawn(world, 3 * TICKS_PER_DAY, 2, 1)
    many = Many(FIRST_TICK, [None, None])
    singly = [complaints.start(FIRST_TICK * TICK_SECONDS) for _ in range(2)]
    largest = [-math.inf] * 2
    for at in through(many, events):
        now = (FIRST_TICK + at) * TICK_SECONDS
        for versions, requests in events.rounds.get(at, ()):
            for version, request in zip(versions, requests, strict=True):
                about = float((FIRST_TICK + request) * TICK_SECONDS)
                seen = singly[version].seen
                singly[version] = complaints.take_complaint(singly[version], about, now)
                if singly[version].seen > seen:
                    largest[version] = max(largest[version], complaints.log_e(singly[version]))
        for version, count in enumerate(events.requests[at]):
            one = complaints.advance(singly[version], now)
            singly[version] = complaints.take_requests(one, now, int(count)) if count else one
    assert not many.learns.any()
    for version, one in enumerate(singly):
        assert one.seen == many.seen[version] > 100
        assert one.expected == pytest.approx(many.expected[version])
        assert largest[version] == pytest.approx(many.log_max[version], abs=1e-6)
        assert one.learned is not None
        assert one.learned.hazards == pytest.approx(many.hazards[:, version])
        assert one.learned.day_variance == pytest.approx(1.0 / many.shape[version], rel=0.5)
        assert complaints.log_e(one) == pytest.approx(many.log_e(np.array([version]))[0], abs=1e-6)
        assert [cohort.requests for cohort in one.cohorts] == pytest.approx(many.requests[:, version])


def test_labels_in_order_of_arrival_are_those_of_slip() -> None:
    draw = np.random.default_rng(2)
    bad = [(draw.random(300) < rate).astype(float) for rate in (0.1, 0.3, 0.5)]
    found = in_order_of_arrival(bad, np.array([0.1, 0.15, 0.2]), np.full(3, rising_errors.find_threshold(100, 0.1)))
    for labels, baseline, at in zip(bad, (0.1, 0.15, 0.2), found, strict=True):
        one, wanted = rising_errors.start(baseline), math.inf
        for number, label in enumerate(labels):
            one = rising_errors.observe(one, float(label))
            if rising_errors.log_e(one) >= rising_errors.find_threshold(100, 0.1):
                wanted = number + 1
                break
        assert at == wanted


def test_complaints_of_a_tick_come_in_rounds_with_each_version_once() -> None:
    version, request, comes = (np.array(one) for one in ([0, 1, 0, 0, 1], [3, 2, 1, 2, 9], [5, 5, 5, 6, 99]))
    events = Events.of(10, np.zeros((20, 2), np.int64), version, request, comes)
    told = {at: [(v.tolist(), r.tolist()) for v, r in rounds] for at, rounds in events.rounds.items()}
    assert told == {5: [([0, 1], [1, 2]), ([0], [3])], 6: [([0], [2])]}


def test_in_an_outage_nothing_comes_and_within_the_hour_after_it_all_does() -> None:
    world = World(shape="outage")
    counts = np.full((9 * TICKS_PER_DAY, 1), 5)
    comes = Drawn.of(world, counts, 2.0, np.random.default_rng(1)).comes / TICKS_PER_DAY
    held = np.sum((comes > 8) & (comes <= 8 + 1 / 23))
    assert not np.any((comes >= 7.01) & (comes < 8))
    assert held > 4 * TICKS_PER_DAY


def test_at_night_nobody_complains() -> None:
    world = World(shape="day/night")
    comes = Drawn.of(world, np.full((4 * TICKS_PER_DAY, 1), 5), 2.0, np.random.default_rng(1)).comes
    hours = comes / 12 % 24
    assert np.mean((hours < 6.9) | (hours > 22.1)) < 0.01


def test_nobody_complains_while_the_office_is_closed() -> None:
    world = World(shape="quiet weekends")
    comes = Drawn.of(world, np.full((7 * TICKS_PER_DAY, 1), 3), 2.0, np.random.default_rng(1)).comes
    assert complaint_worlds.is_open(world, comes).all()
    hours = comes / 12 % 24
    assert np.mean((hours >= 9) & (hours < 11)) > 0.4


@pytest.mark.parametrize("name", ["ready by day", "ten callers", "pairs", "fives"])
def test_complaints_that_depend_on_each_other_are_as_many_in_all(name: str) -> None:
    world = World(**complaint_worlds.STILL[name])
    _, bad, _ = drawn(world, 40 * TICKS_PER_DAY, 12, 1)
    per_day = np.bincount(bad.version * 40 + bad.request // TICKS_PER_DAY, minlength=480)
    assert per_day.mean() == pytest.approx(24 * world.complaint_rate * world.per_hour, rel=0.08)
    assert per_day.var() / per_day.mean() > 1.5


def test_errors_double_on_a_working_day() -> None:
    for shape, day in (("steady", 8), ("quiet weekends", 9)):
        assert late_feedback.change_day(World(shape=shape)) == day, "the eighth day is a Sunday"


def test_delays_of_the_version_before_are_about_those_of_the_world() -> None:
    world = World(per_hour=400)
    found = late_feedback.taught(world, 1)
    assert complaint_delays.get_complaint_rate(found) == pytest.approx(world.complaint_rate, rel=0.2)
    median = complaint_delays.find_delay_quantile(found, 0.5)
    assert median is not None
    assert median == pytest.approx(world.delay_hours * 3600, rel=0.3)


def test_what_can_not_be_simulated_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--runs", "1"], ["--error", "0.7"], ["--complain", "0"], ["--per-hour", "0"], ["--alpha", "1"]):
        with pytest.raises(SystemExit):
            late_feedback.main(wrong)
    assert capsys.readouterr().out == ""


def test_worlds_come_from_a_file_instead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, days in (("MONTH_DAYS", 1), ("LEARNING_DAYS", 2), ("SEEN_DAYS", 1)):
        monkeypatch.setattr(late_feedback, name, days)
    monkeypatch.setattr(complaints, "REFERENCE_SECONDS_MIN", DAY_SECONDS)
    monkeypatch.setattr(complaints, "REFERENCE_SEEN", 150)
    file = tmp_path / "worlds.json"
    file.write_text('{"threes": {"cluster": 3}}')
    asked = ["--json", "--runs", "3", "--per-hour", "600", "--worlds", str(file)]
    assert late_feedback.main(asked) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (set(told["still"]), len(told["doubled"])) == ({"threes"}, 2)
    for wrong in ('{"threes": {"clusters": 3}}', '{"threes": {"cluster": "three"}}', "[]"):
        file.write_text(wrong)
        assert late_feedback.main(asked) == 1
        assert "worlds.json" in json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"][0]


def test_the_report_is_one_line_of_json_with_its_goals(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(complaints, "REFERENCE_SECONDS_MIN", DAY_SECONDS)
    for name, days in (("MONTH_DAYS", 1), ("LEARNING_DAYS", 2), ("SEEN_DAYS", 1)):
        monkeypatch.setattr(late_feedback, name, days)
    few = {name: late_feedback.STILL[name] for name in ("steady", "new version", "fives")}
    monkeypatch.setattr(late_feedback, "STILL", few)
    monkeypatch.setattr(late_feedback, "DOUBLED", (*late_feedback.DOUBLED[:1] * 4, {"callers": 2}, {"cluster": 2}))
    monkeypatch.setattr(complaints, "REFERENCE_SEEN", 150)
    assert late_feedback.main(["--json", "--runs", "3", "--per-hour", "600", "--alpha", "0.05"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["goal"] == {"false_alarms_a_month_low": "<= 0.05", "worst_world_low": "<= 0.05"}
    assert set(told["still"]) == set(few)
    assert told["doubled"][0]["hours"]["median"] < 14
