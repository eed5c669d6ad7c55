"""Baselines: their evidence, what may be one, and calibration for other labellers."""

from __future__ import annotations

import random

import msgspec
import pytest

from monitoring import intervals
from monitoring.quality.detectors import baselines
from monitoring.quality.detectors.baselines import Baseline


def test_rate_of_an_admin_lies_between_0_and_1() -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        baselines.declare_rate(1.0, at=0.0, by="sk-app-1", source="")


def test_a_baseline_carries_its_evidence_and_goes_through_json_unchanged() -> None:
    baseline = baselines.measure("gate", 50, 1000, at=1.5, by="gate", source="returns@v3/evaluation-1")
    assert baselines.get_rate(baseline) == 0.05
    assert baseline.upper == intervals.find_upper_bound(50, 1000)
    assert msgspec.json.decode(msgspec.json.encode(baseline), type=Baseline, strict=True) == baseline
    stated = baselines.declare_rate(0.1, at=2.0, by="sk-app-1", source="a promise to the department")
    assert (stated.kind, stated.upper, baselines.get_rate(stated)) == ("admin", 0.1, None)


def test_what_was_counted_is_a_baseline_where_a_stream_could_be_held_against_it() -> None:
    found = baselines.measure_counts("gate", 2, 20, at=1.0, by="system", source="evaluation 1")
    assert found == baselines.measure("gate", 2, 20, at=1.0, by="system", source="evaluation 1")
    with pytest.raises(ValueError, match="19 were judged, and a baseline takes at least 20"):
        baselines.measure_counts("gate", 0, 19, at=1.0, by="system", source="")
    with pytest.raises(ValueError, match="could never alarm"):
        baselines.measure_counts("admin", 40, 40, at=1.0, by="sk-app-1", source="")


def test_calibrated_baseline_holds_for_stricter_labellers() -> None:
    draw, gate = random.Random(3), baselines.measure("gate", 50, 1000, at=1.0, by="system", source="evaluation 1")
    true, failures = 0.05 * 0.9 + 0.95 * 0.06, 0
    for _ in range(200):
        stricter = sum(draw.random() < 0.95 * 0.06 for _ in range(150))
        milder = sum(draw.random() < 0.05 * 0.1 for _ in range(150))
        failures += baselines.calibrate(gate, stricter, milder, 150, 2.0, "sk-app-1", "").upper < true
    assert failures <= 5
    alike = baselines.calibrate(gate, 0, 30, 100, 2.0, "sk-app-1", "")
    assert (alike.kind, alike.upper, alike.of) == ("admin", gate.upper, 1000)
    with pytest.raises(ValueError, match="at least 50"):
        baselines.calibrate(gate, 0, 0, 49, 2.0, "sk-app-1", "")
    with pytest.raises(ValueError, match="could never alarm"):
        baselines.calibrate(gate, 100, 0, 100, 2.0, "sk-app-1", "")
