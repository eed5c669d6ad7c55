"""The exact bounds of a rate: against scipy's, and against the binomial sums that they are defined by."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import betainc, stdtrit
from scipy.stats import beta, binom

from monitoring import intervals


@pytest.mark.parametrize(("wrong", "of"), [(0, 1), (0, 1000), (3, 10), (50, 1000), (15, 300), (999, 1000), (7e5, 1e6)])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_bounds_are_those_of_clopper_and_pearson(wrong: float, of: float, confidence: float) -> None:
    upper = beta.ppf(confidence, wrong + 1, of - wrong)
    lower = beta.ppf(1 - confidence, wrong, of - wrong + 1) if wrong else 0.0
    assert intervals.find_upper_bound(wrong, of, confidence) == pytest.approx(upper, abs=1e-9)
    assert intervals.find_lower_bound(wrong, of, confidence) == pytest.approx(lower, abs=1e-9)


def test_as_few_wrong_as_these_are_seen_with_five_percent_at_the_upper_bound() -> None:
    upper = intervals.find_upper_bound(50, 1000)
    assert binom.cdf(50, 1000, upper) == pytest.approx(0.05, abs=1e-9)
    assert upper == pytest.approx(0.0628, abs=1e-4)


@pytest.mark.parametrize("true", [0.01, 0.05, 0.3])
def test_the_upper_bound_is_under_the_true_rate_no_more_often_than_stated(true: float) -> None:
    under = sum(
        float(binom.pmf(wrong, 300, true)) for wrong in range(301) if intervals.find_upper_bound(wrong, 300) < true
    )
    assert under <= 0.05


@given(st.floats(0.5, 2000), st.floats(0.5, 2000), st.floats(0, 1))
def test_the_incomplete_beta_function_is_scipys(a: float, b: float, x: float) -> None:
    assert intervals.compute_incomplete_beta(a, b, x) == pytest.approx(float(betainc(a, b, x)), abs=1e-9)


@given(st.floats(0.05, 1e5), st.floats(0.501, 0.999999))
def test_the_quantile_of_students_t_is_scipys(degrees: float, confidence: float) -> None:
    quantile = intervals.find_student_quantile(degrees, confidence)
    assert quantile == pytest.approx(float(stdtrit(degrees, confidence)), rel=1e-8)


@pytest.mark.parametrize(("degrees", "confidence"), [(0, 0.95), (math.inf, 0.95), (5, 0.5), (5, 1), (5, math.nan)])
def test_students_t_that_can_not_be_is_refused(degrees: float, confidence: float) -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        intervals.find_student_quantile(degrees, confidence)


@given(st.floats(0, 500), st.floats(0, 500))
def test_bounds_hold_the_share_between_them_also_for_fractions(wrong: float, right: float) -> None:
    of = wrong + right
    if of:
        assert intervals.find_lower_bound(wrong, of) <= wrong / of + 1e-12
        assert intervals.find_upper_bound(wrong, of) >= wrong / of - 1e-12


def test_without_labels_nothing_is_known() -> None:
    assert intervals.find_upper_bound(0, 0) == 1.0
    assert intervals.find_upper_bound(5, 5) == 1.0
    assert intervals.find_lower_bound(0, 0) == 0.0


def test_counts_that_can_not_be_are_refused() -> None:
    for wrong, of in ((-1, 5), (6, 5), (1, math.inf), (math.nan, 5)):
        with pytest.raises(ValueError, match="at most all of them"):
            intervals.find_upper_bound(wrong, of)
    with pytest.raises(ValueError, match="confidence"):
        intervals.find_upper_bound(1, 5, 1.0)
