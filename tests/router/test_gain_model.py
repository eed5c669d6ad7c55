"""The predicted gain: bytes and back, thresholds, damaged models, any text, and what a text's shape is."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.gain_model import GainError, GainModel, MeasuredGain
from router.model_bytes import MODEL_BYTES_MAX
from router.ngrams import BUCKETS
from router.text_shape import FEATURES, compute_shape


def made(constant: float | None = None) -> GainModel:
    """A model of random weights."""
    draw = np.random.default_rng(1)
    return GainModel(
        constant=constant,
        base=0.1,
        width=4.0,
        measured=MeasuredGain(300, 0.6, 0.8, 0.02, 0.01, 0.6, 0.55),
        idf=np.ones(BUCKETS, np.float16),
        lexical=draw.normal(size=(BUCKETS, 2)).astype(np.float16),
        bias=np.array([1.0, 0.5], np.float32),
        shape_mean=np.zeros(FEATURES, np.float32),
        shape_scale=np.ones(FEATURES, np.float32),
        centres=draw.normal(size=(20, FEATURES)).astype(np.float32),
        heights=draw.normal(size=20).astype(np.float32),
        quantiles=np.linspace(-0.2, 0.6, 201).astype(np.float32),
    )


MODEL = made()


def test_a_model_comes_back_from_its_bytes_with_the_same_scores() -> None:
    data = MODEL.to_bytes()
    assert len(data) <= MODEL_BYTES_MAX
    again = GainModel.from_bytes(data)
    assert again.measured == MODEL.measured
    assert again.score("How many eggs?") == MODEL.score("How many eggs?")
    assert again.to_bytes() == data


def test_the_threshold_is_over_as_many_scores_as_are_not_sent_to_general() -> None:
    assert MODEL.threshold(0.25) == pytest.approx(0.4, abs=1e-6)
    assert MODEL.threshold(0.0) == math.inf
    assert MODEL.threshold(1.0) == -math.inf
    for share in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="between 0 and 1"):
            MODEL.threshold(share)


def test_a_constant_model_sends_nothing_to_general_at_any_share_but_all() -> None:
    constant = dataclasses.replace(made(0.25), quantiles=np.full(201, 0.25, np.float32))
    assert constant.score("anything") == 0.25
    assert not any(constant.score("anything") > constant.threshold(share) for share in (0.0, 0.1, 0.5, 0.99))


def test_a_model_helps_only_if_its_lower_bound_says_so() -> None:
    assert MODEL.shown_to_help
    unsure = dataclasses.replace(MODEL, measured=MeasuredGain(300, 0.6, 0.8, 0.02, -0.001, 0.6, 0.49))
    assert not unsure.shown_to_help


def test_damaged_bytes_are_refused_wherever_they_are_damaged() -> None:
    data = MODEL.to_bytes()
    for cut in (0, 5, 20, len(data) // 2, len(data) - 1):
        with pytest.raises(GainError, match="fit it again"):
            GainModel.from_bytes(data[:cut])
    for at in range(0, len(data), max(1, len(data) // 50)):
        changed = bytearray(data)
        changed[at] ^= 0x55
        with pytest.raises(GainError, match="fit it again"):
            GainModel.from_bytes(bytes(changed))


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    for wrong in (
        dataclasses.replace(MODEL, bias=np.zeros(3, np.float32)),
        dataclasses.replace(MODEL, heights=np.zeros(19, np.float32)),
        dataclasses.replace(MODEL, bias=np.array([np.nan, 0.0], np.float32)),
        dataclasses.replace(MODEL, width=0.0),
        dataclasses.replace(MODEL, quantiles=np.zeros(1, np.float32)),
    ):
        with pytest.raises(GainError, match="do not fit each other"):
            GainModel.from_bytes(wrong.to_bytes())


@given(st.text(max_size=2000))
@settings(max_examples=150, deadline=None)
def test_any_text_has_a_score_from_minus_one_to_one_and_finite_features(text: str) -> None:
    assert -1.0 <= MODEL.score(text) <= 1.0
    shape = compute_shape(text)
    assert shape.shape == (FEATURES,)
    assert np.isfinite(shape).all()


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n", "9" * 900, "٣٤٥ x ²", "\ud800", "好" * 5000, "A. \nB. ", "1e999 1,,,.5"]
)
def test_odd_texts_are_scored_too(text: str) -> None:
    assert -1.0 <= MODEL.score(text) <= 1.0


def test_of_a_long_text_only_its_ends_count_but_for_its_length() -> None:
    start, end = "a b " * 100, "c d " * 100
    one, other = compute_shape(f"{start}{'x' * 5000}{end}"), compute_shape(f"{start}{'7' * 5000}{end}")
    assert (one == other).all()


def test_the_shape_tells_choices_numbers_and_negations() -> None:
    plain, asked = compute_shape("What is it"), compute_shape("Which is not 1,200 or 3.5?\nA. this\nB. that")
    assert (plain != asked).sum() > 15
