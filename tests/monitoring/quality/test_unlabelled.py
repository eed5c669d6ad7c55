"""Unlabelled streams: what their reference is, and when they alarm."""

from __future__ import annotations

from monitoring.quality.detectors import drift
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.signals import unlabelled

START = 1_800_000_000.0


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
