"""Confidence: total on whatever an engine says, never surer of a less sure answer, thresholds with a known risk."""

from __future__ import annotations

import array
import json
import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import confidence_model
from router.confidence_model import (
    LOGPROB_MIN,
    Calibration,
    ConfidenceError,
    ConfidenceModel,
    bound_wrong_share,
    compute_features,
    count_wrong_allowed,
)

CALIBRATION = Calibration(
    rows=500, delta=0.1, wrong=(0, 1, 5, 18, 60), thresholds=(0.95, 0.9, 0.8, 0.5, 0.0), kept=(0, 120, 250, 400, 500)
)
MODEL = ConfidenceModel((0.5, 0.3, 0.8, -0.2, 1.5, -2.0), 0.4, 0.6, CALIBRATION)

anything = st.one_of(st.floats(), st.integers(), st.none(), st.booleans(), st.text(max_size=3))
logprob = st.floats(min_value=-30.0, max_value=0.0)
scope = st.one_of(st.none(), st.floats())
contract = st.sampled_from([None, True, False])


@given(st.lists(anything, max_size=30), scope, contract, st.sampled_from([None, 1, 5]))
def test_whatever_an_engine_says_the_score_is_a_probability(
    said: list[Any], covered: float | None, kept: bool | None, tokens: int | None
) -> None:
    model = ConfidenceModel(MODEL.weights, MODEL.bias, MODEL.scope_mean, CALIBRATION, tokens)
    for logprobs in (said, said * 20):
        seen = compute_features(logprobs, covered, kept)
        assert LOGPROB_MIN <= seen.minimum <= 0.0
        assert seen.minimum <= seen.quantile_10 + 1e-9
        assert seen.quantile_10 <= 0.0
        assert seen.minimum - 1e-9 <= seen.mean <= 0.0
        assert 0.0 <= model.score(logprobs, covered, kept) <= 1.0


@given(st.lists(logprob, min_size=1, max_size=40), st.data())
def test_a_less_sure_token_never_raises_the_score(logprobs: list[float], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(logprobs) - 1))
    less = [*logprobs[:at], data.draw(st.floats(min_value=-40.0, max_value=logprobs[at])), *logprobs[at + 1 :]]
    assert MODEL.score(less, 0.5, True) <= MODEL.score(logprobs, 0.5, True) + 1e-12


@given(st.lists(logprob, min_size=1, max_size=10), st.floats(-1, 1), st.floats(0, 1))
def test_less_scope_and_a_broken_contract_never_raise_the_score(
    logprobs: list[float], covered: float, less: float
) -> None:
    whole = MODEL.score(logprobs, covered, True)
    assert MODEL.score(logprobs, covered - less, True) <= whole
    assert MODEL.score(logprobs, covered, False) <= whole


def test_an_answer_without_logprobs_scores_nothing() -> None:
    assert MODEL.score([], 0.9, True) == 0.0


def test_what_is_no_number_counts_as_the_least_sure() -> None:
    for odd in (math.nan, -math.inf, -9999.0):
        seen = compute_features([-0.1, odd, -0.2], None, None)
        assert seen.minimum == LOGPROB_MIN
        assert seen.mean == pytest.approx((-0.3 + LOGPROB_MIN) / 3)
    assert compute_features([math.inf, 0.5], math.nan, None) == (0.0, 0.0, 0.0, 2, None, None)


def test_one_token_is_its_own_minimum_quantile_and_mean() -> None:
    assert compute_features([-0.7], 0.5, True) == (-0.7, -0.7, -0.7, 1, 0.5, True)


@pytest.mark.parametrize("count", [2, 11, 512, 513, 100_000])
def test_features_are_those_of_numpy_for_a_list_and_for_an_array(count: int) -> None:
    values = -np.random.default_rng(count).exponential(0.5, count)
    for logprobs in (values.tolist(), array.array("d", values), values):
        seen = compute_features(logprobs, None, None)  # type: ignore[arg-type]
        assert seen.minimum == values.min()
        assert seen.quantile_10 == pytest.approx(np.quantile(values, 0.1))
        assert seen.mean == pytest.approx(values.mean())
        assert seen.length == count


def test_many_tokens_with_odd_ones_among_them_count_the_same_as_few() -> None:
    few = [-0.5, math.nan, 0.1, -math.inf, None]
    many: list[Any] = few * 200
    assert compute_features(many, None, None).mean == pytest.approx(compute_features(few, None, None).mean)  # type: ignore[arg-type]
    assert compute_features(many, None, None).minimum == LOGPROB_MIN


def test_only_the_first_tokens_are_judged_where_the_model_was_calibrated_on_them() -> None:
    model = ConfidenceModel(MODEL.weights, MODEL.bias, MODEL.scope_mean, CALIBRATION, tokens=2)
    assert model.score([-0.1, -0.2, -9.0], 0.5, None) == MODEL.score([-0.1, -0.2], 0.5, None)


def test_scope_that_is_not_known_counts_as_the_mean() -> None:
    assert MODEL.score([-0.1], None, None) == MODEL.score([-0.1], 0.6, None)


@given(st.floats(), st.floats())
def test_a_higher_target_never_has_a_higher_threshold(one: float, other: float) -> None:
    low, high = min(one, other), max(one, other)
    strict, lax = MODEL.threshold(low), MODEL.threshold(high)
    if strict is not None and low <= high:
        assert lax is not None
        assert lax <= strict


def test_thresholds_stand_where_clopper_and_pearson_allow_their_errors() -> None:
    # 18 of 500 have a 90% upper bound of 4.92%, and 5 one of 1.85%.
    assert count_wrong_allowed(500, 0.05, 0.1) == 18
    assert bound_wrong_share(18, 500, 0.1) == pytest.approx(0.04918, abs=1e-4)
    assert MODEL.threshold(0.05) == 0.5
    assert MODEL.threshold(0.02) == 0.8
    found = MODEL.certificate(0.05)
    assert found is not None
    assert (found.kept, found.wrong, found.rows) == (400, 18, 500)
    assert found.wrong_share_max == pytest.approx(0.04918, abs=1e-4)


def test_there_is_no_threshold_for_what_so_few_rows_can_not_certify() -> None:
    assert count_wrong_allowed(44, 0.05, 0.1) == -1
    assert count_wrong_allowed(45, 0.05, 0.1) == 0
    assert MODEL.threshold(0.004) is None
    assert MODEL.certificate(0.004) is None
    assert MODEL.threshold(0.0) is None
    assert MODEL.threshold(math.nan) is None
    assert MODEL.threshold(0.005) is None, "certified, but it keeps nothing"


def test_whoever_allows_every_error_keeps_all() -> None:
    assert MODEL.threshold(1.0) == 0.0


@given(st.integers(1, 3_000), st.floats(0.001, 0.999), st.floats(0.01, 0.5))
def test_the_errors_allowed_are_the_most_that_certify(rows: int, target: float, delta: float) -> None:
    allowed = count_wrong_allowed(rows, target, delta)
    if allowed >= 0:
        assert bound_wrong_share(allowed, rows, delta) <= target + 1e-6
    if allowed < rows:
        assert bound_wrong_share(allowed + 1, rows, delta) > target - 1e-6


def test_probabilities_of_few_and_of_many_are_exact() -> None:
    assert confidence_model.compute_probability_at_most(0, 10, 0.5) == pytest.approx(0.5**10)
    assert confidence_model.compute_probability_at_most(9, 10, 0.5) == pytest.approx(1 - 0.5**10)
    assert confidence_model.compute_probability_at_most(10, 10, 0.999) == 1.0
    assert confidence_model.compute_probability_at_most(99_000, 100_000, 0.5) == pytest.approx(1.0)
    assert confidence_model.compute_probability_at_most(49_800, 100_000, 0.5) == pytest.approx(0.1035, abs=5e-4)


def test_the_curve_goes_from_the_strictest_threshold_to_the_one_that_keeps_all() -> None:
    points = MODEL.curve()
    assert [point.kept for point in points] == [0, 120, 250, 400, 500]
    assert all(point.wrong / point.rows < point.wrong_share_max for point in points)


def test_a_model_comes_back_from_its_json_as_it_was() -> None:
    model = ConfidenceModel((0.1, 1 / 3, 2e-17, 0.0, 1.0, -3.0), -1 / 7, 0.1, CALIBRATION, tokens=16)
    assert ConfidenceModel.from_json(model.to_json()) == model
    assert ConfidenceModel.from_json(model.to_json().decode()) == model


@given(st.one_of(st.binary(max_size=40), st.text(max_size=40)))
def test_no_bytes_break_the_reading_of_a_model(data: bytes | str) -> None:
    with pytest.raises(ConfidenceError):
        ConfidenceModel.from_json(data)


@pytest.mark.parametrize(
    "change",
    [
        {"form": 2},
        {"names": ["minimum"]},
        {"weights": [1.0]},
        {"bias": "much"},
        {"bias": None},
        {"tokens": 0},
        {"coverage_mean": 1e999},
    ],
)
def test_a_damaged_model_is_refused(change: dict[str, Any]) -> None:
    whole = json.loads(MODEL.to_json())
    with pytest.raises(ConfidenceError, match="calibrate"):
        ConfidenceModel.from_json(json.dumps(whole | change))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 0},
        {"delta": 0.0},
        {"wrong": [0, 5, 1, 18, 60]},
        {"wrong": []},
        {"kept": [0, 120, 250]},
        {"thresholds": [0.95, 0.9, 0.8, 0.85, 0.0]},
        {"thresholds": [0.95, 0.9, 0.8, 0.5, 0.4]},
        {"kept": [0, 120, 250, 400, 501]},
    ],
)
def test_a_damaged_calibration_is_refused(change: dict[str, Any]) -> None:
    whole = json.loads(MODEL.to_json())
    whole["calibration"] |= change
    with pytest.raises(ConfidenceError, match="calibrate"):
        ConfidenceModel.from_json(json.dumps(whole))


def test_an_answer_of_200_tokens_is_judged_in_at_most_50_microseconds() -> None:
    logprobs = (-np.random.default_rng(1).exponential(0.5, 200)).tolist()
    rounds = []
    for _ in range(50):
        began = time.perf_counter()
        for _ in range(20):
            MODEL.score(logprobs, 0.5, True)
        rounds.append((time.perf_counter() - began) / 20)
    assert min(rounds) <= 50e-6
