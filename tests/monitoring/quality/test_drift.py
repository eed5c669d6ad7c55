"""Signals that nobody labels: their reference, both sides, the rate of false alarms, and that JSON changes nothing."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import drift
from monitoring.quality.detectors.drift import REFERENCE, Signal


def learned(kind: drift.ValueKind, draw: random.Random, sides: drift.Sides = "both", rate: float = 0.1) -> Signal:
    signal = drift.start(kind, sides)
    for _ in range(REFERENCE):
        signal = drift.observe(signal, draw.random() < rate if kind == "rate" else draw.lognormvariate(3.0, 0.5))
    return signal


def until_alarm(signal: Signal, values: list[float], labels: float = 1_000) -> int | None:
    for at, value in enumerate(values):
        signal = drift.observe(signal, value)
        if drift.has_alarmed(signal, labels, 0.05):
            return at + 1
    return None


def test_while_it_learns_it_says_nothing_and_afterwards_keeps_two_quantiles() -> None:
    signal = drift.start("value")
    for value in range(REFERENCE - 1):
        signal = drift.observe(signal, value)
    assert drift.learns(signal)
    assert drift.log_e(signal) == -700.0
    assert (drift.find_change(signal), drift.find_direction(signal)) == (None, None)
    signal = drift.observe(signal, REFERENCE - 1)
    assert not drift.learns(signal)
    assert signal.sorted_values == ()
    assert (signal.low, signal.high) == (25.0, 474.0)
    told = drift.describe_reference(signal)
    assert told["values"] == REFERENCE
    bound = told["above_at_most"]
    assert isinstance(bound, float)
    assert 0.05 < bound < 0.08


@pytest.mark.parametrize("kind", ["rate", "value"])
def test_what_does_not_change_alarms_as_rarely_as_stated(kind: drift.ValueKind) -> None:
    alarmed = 0
    for seed in range(25):
        draw = random.Random(seed)
        signal = learned(kind, draw)
        later = [float(draw.random() < 0.1) if kind == "rate" else draw.lognormvariate(3.0, 0.5) for _ in range(1_000)]
        alarmed += until_alarm(signal, later) is not None
    assert alarmed <= 4


def test_longer_and_shorter_answers_are_both_found_and_it_is_told_which() -> None:
    draw = random.Random(4)
    signal = learned("value", draw)
    for more, side in ((1.0, "above"), (-1.0, "below")):
        changed = [draw.lognormvariate(3.0 + more, 0.5) for _ in range(300)]
        found = until_alarm(signal, changed)
        assert found is not None
        assert found < 60
        late = signal
        for value in changed:
            late = drift.observe(late, value)
        assert drift.find_direction(late) == side
        since = drift.find_change(late)
        assert since is not None
        assert since <= REFERENCE + 10


def test_a_rate_that_falls_is_found_too() -> None:
    draw = random.Random(5)
    signal = learned("rate", draw, rate=0.5)
    assert until_alarm(signal, [float(draw.random() < 0.2) for _ in range(300)]) is not None
    assert until_alarm(signal, [float(draw.random() < 0.8) for _ in range(300)]) is not None


def test_a_side_that_is_not_looked_at_never_alarms() -> None:
    draw = random.Random(6)
    signal = learned("value", draw, sides="above")
    assert signal.below is None
    assert until_alarm(signal, [0.001] * 500) is None
    assert until_alarm(learned("rate", draw, sides="below", rate=0.5), [1.0] * 500) is None


def test_what_never_happened_in_the_reference_can_only_rise() -> None:
    signal = drift.start("rate")
    for _ in range(REFERENCE):
        signal = drift.observe(signal, False)
    assert signal.below is None
    assert drift.describe_reference(signal)["rate"] == 0.0
    assert until_alarm(signal, [0.0] * 1_000) is None
    assert until_alarm(signal, [float(at % 10 == 0) for at in range(300)]) is not None


def test_what_always_happened_can_only_fall() -> None:
    signal = drift.start("rate")
    for _ in range(REFERENCE):
        signal = drift.observe(signal, True)
    assert signal.above is None
    assert until_alarm(signal, [float(at % 10 != 0) for at in range(300)]) is not None


def test_values_that_are_all_the_same_alarm_only_once_they_differ() -> None:
    signal = drift.start("value")
    for _ in range(REFERENCE):
        signal = drift.observe(signal, 1 / 3)
    assert until_alarm(signal, [1 / 3] * 500) is None
    assert until_alarm(signal, [0.34] * 200) is not None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_none_are_refused(value: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        drift.observe(drift.start("value"), value)
    with pytest.raises(ValueError, match="within 0 and 1"):
        drift.observe(drift.start("rate"), 1.5)


@given(st.integers(0, 700), st.sampled_from(["rate", "value"]), st.sampled_from(["both", "above", "below"]))
def test_json_gives_back_the_same(count: int, kind: drift.ValueKind, sides: drift.Sides) -> None:
    draw, signal = random.Random(count), drift.start(kind, sides)
    for _ in range(count):
        signal = drift.observe(signal, draw.random())
    encoded = msgspec.json.encode(signal)
    assert msgspec.json.decode(encoded, type=Signal) == signal
    assert len(encoded) < 7_000
