"""Unlabelled streams: what their reference is, and when they alarm."""

from __future__ import annotations

from monitoring.quality.detectors import drift
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.signals import unlabelled
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import TaskQuality
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.traffic import MORNING, PLAN, V3, at, served, step

START = 1_800_000_000.0
DAY = 86_400.0


def after(values: int, seconds_apart: float) -> Signal:
    known: dict[str, Signal] = {}
    for number in range(values):
        known["latency"] = unlabelled.add_value(known, "latency", 0.1 + number % 10, START + number * seconds_apart)
    return known["latency"]


def test_a_reference_spans_an_hour_however_many_values_come() -> None:
    assert drift.learns(after(5_000, 0.01))
    busy = after(int(3600 / 0.5), 0.5)
    assert drift.learns(busy)
    assert not drift.learns(after(int(3600 / 0.5) + 600, 0.5))


def test_a_slow_version_learns_from_each_of_its_values() -> None:
    assert not drift.learns(after(drift.REFERENCE, 60.0))


def test_a_burst_after_the_start_is_no_change_while_the_reference_is_learned() -> None:
    known: dict[str, Signal] = {}
    for number in range(3_000):
        slow = number > 1_000
        known["latency"] = unlabelled.add_value(known, "latency", 5.0 if slow else 0.1, START + number * 0.02)
    assert known["latency"].log_max < unlabelled.ALARM_MIN


def test_a_version_without_requests_stays_suspect_no_longer_than_its_quiet_time() -> None:
    """Such as the previous version: nobody could go back to it else."""
    records = [(at(n * 60), served(f"r{n}", completion_tokens=60 if n > 800 else 10 + n % 20)) for n in range(900)]
    task, verdicts = TaskQuality(), list[str]()
    for days in (0.7, 3.0, 4.0, 5.0):
        now = MORNING + days * DAY
        task, _ = respond(task, replay(records, [], step(), now), Roles(active="returns@v4"), PLAN, now)
        verdicts.append(task.versions[V3].verdict)
    assert verdicts == ["suspect", "suspect", "suspect", "healthy"]


def test_answers_that_callers_gave_up_on_make_a_version_slow() -> None:
    records = [(at(n * 60), served(f"r{n}")) for n in range(700)]
    given_up = {"outcome": "cancelled", "version": None, "duration_seconds": 30.0}
    records += [(at(n * 60), served(f"r{n}", **given_up if n % 2 else {})) for n in range(700, 900)]
    reports = replay(records, [], step(), MORNING + DAY)[V3].reports
    assert [one.signal for one in reports if one.alarming] == ["latency"]
