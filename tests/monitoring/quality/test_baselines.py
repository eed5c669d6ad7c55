"""Baselines and the exact bounds of a rate: against scipy's, and against the binomial sums that they are defined by."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import beta, binom

from monitoring.quality.detectors import baselines
from monitoring.quality.detectors.baselines import Baseline


@pytest.mark.parametrize(("wrong", "of"), [(0, 1), (0, 1000), (3, 10), (50, 1000), (15, 300), (999, 1000), (7e5, 1e6)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_bounds_are_those_of_clopper_and_pearson(wrong: float, of: float, confidence: float) -> None:
    upper = beta.ppf(confidence, wrong + 1, of - wrong)
    lower = beta.ppf(1 - confidence, wrong, of - wrong + 1) if wrong else 0.0
    assert baselines.find_upper_bound(wrong, of, confidence) == pytest.approx(upper, abs=1e-9)
    assert baselines.find_lower_bound(wrong, of, confidence) == pytest.approx(lower, abs=1e-9)


def test_as_few_wrong_as_these_are_seen_with_five_percent_at_the_upper_bound() -> None:
    upper = baselines.find_upper_bound(50, 1000)
    assert binom.cdf(50, 1000, upper) == pytest.approx(0.05, abs=1e-9)
    assert upper == pytest.approx(0.0628, abs=1e-4)


@pytest.mark.parametrize("true", [0.01, 0.05, 0.3])
def test_the_upper_bound_is_under_the_true_rate_no_more_often_than_stated(true: float) -> None:
    under = sum(
        float(binom.pmf(wrong, 300, true)) for wrong in range(301) if baselines.find_upper_bound(wrong, 300) < true
    )
    assert under <= 0.05


@given(st.floats(0.5, 2000), st.floats(0.5, 2000), st.floats(0, 1))
def test_the_incomplete_beta_function_is_scipys(a: float, b: float, x: float) -> None:
    assert baselines.compute_incomplete_beta(a, b, x) == pytest.approx(float(betainc(a, b, x)), abs=1e-9)


@given(st.floats(0, 500), st.floats(0, 500))
def test_bounds_hold_the_share_between_them_also_for_fractions(wrong: float, right: float) -> None:
    of = wrong + right
    if of:
        assert baselines.find_lower_bound(wrong, of) <= wrong / of + 1e-12
        assert baselines.find_upper_bound(wrong, of) >= wrong / of - 1e-12


def test_without_labels_nothing_is_known() -> None:
    assert baselines.find_upper_bound(0, 0) == 1.0
    assert baselines.find_upper_bound(5, 5) == 1.0
    assert baselines.find_lower_bound(0, 0) == 0.0


def test_counts_that_can_not_be_are_refused() -> None:
    for wrong, of in ((-1, 5), (6, 5), (1, math.inf), (math.nan, 5)):
        with pytest.raises(ValueError, match="at most all of them"):
            baselines.find_upper_bound(wrong, of)
    with pytest.raises(ValueError, match="confidence"):
        baselines.find_upper_bound(1, 5, 1.0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        baselines.declare_rate(1.0, at=0.0, by="sk-app-1", source="")


def test_a_baseline_carries_its_evidence_and_goes_through_json_unchanged() -> None:
    baseline = baselines.measure("gate", 50, 1000, at=1.5, by="gate", source="returns@v3/evaluation-1")
    assert baselines.get_rate(baseline) == 0.05
    assert baseline.upper == baselines.find_upper_bound(50, 1000)
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
