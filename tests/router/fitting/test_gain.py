"""Fitting the predicted gain: what can be learned is found, what can't is said, and nothing is learned from noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from router.fitting.errors import FittingError
from router.fitting.gain import GainRow, fit_gain, fit_unmeasured, predict_gains, read
from router.gain_model import GainModel
from router.model_bytes import MODEL_BYTES_MAX

HARD = ("derivative", "integral", "theorem", "matrix")
EASY = ("parcel", "refund", "invoice", "delivery")


def rows_of(count: int, hard_gain: float, seed: int, fraction: bool = False) -> list[GainRow]:
    """Half of the rows are hard: there general is right so much more often than the adapter."""
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        hard = number % 2 == 0
        words = draw.choice(HARD if hard else EASY, 3)
        text = f"Tell me about {' and '.join(words)}, case {draw.integers(10**6)}"
        adapter = float(draw.random() < (0.8 - hard_gain * hard))
        general = float(draw.random() < 0.85)
        found.append(GainRow(text, adapter * 0.9 if fraction else adapter, general))
    return found


def labelled(pairs: Sequence[tuple[float, float]]) -> list[GainRow]:
    return [GainRow(f"question {number}", *pair) for number, pair in enumerate(pairs)]


def test_what_can_be_learned_is_found_and_shown_to_help() -> None:
    model = fit_gain(rows_of(600, 0.5, 1), 1)
    assert model.shown_to_help
    assert model.measured.rows == 600
    assert model.measured.apgr is not None
    assert model.measured.apgr > 0.6
    assert model.score("Tell me about theorem and matrix") > model.score("Tell me about refund and parcel") + 0.05


def test_the_threshold_sends_the_share_that_was_asked_for() -> None:
    model = fit_gain(rows_of(600, 0.5, 1), 1)
    fresh = [model.score(row.text) for row in rows_of(1_000, 0.5, 2)]
    assert np.mean([score > model.threshold(0.3) for score in fresh]) == pytest.approx(0.3, abs=0.12)


def test_the_same_rows_and_seed_give_the_same_bytes() -> None:
    rows = rows_of(300, 0.4, 3)
    assert fit_gain(rows, 5).to_bytes() == fit_gain(rows, 5).to_bytes()


def test_labels_without_signal_rarely_seem_to_help_and_cost_no_more_than_chance() -> None:
    models = [fit_gain(rows_of(200, 0.0, seed), seed) for seed in range(10)]
    assert sum(model.shown_to_help for model in models) <= 2
    assert all(model.constant is not None for model in models if model.measured.lift <= 0.0)


def test_a_model_is_as_small_as_it_may_be_and_scores_as_it_was_measured() -> None:
    rows = rows_of(400, 0.5, 4)
    known = read(rows)
    model = fit_unmeasured(known, 1)
    data = model.to_bytes()
    assert len(data) <= MODEL_BYTES_MAX
    again = GainModel.from_bytes(data)
    assert [again.score(row.text) for row in rows] == pytest.approx(predict_gains(model, known).tolist(), abs=1e-4)


def test_labels_between_right_and_wrong_count_in_part() -> None:
    assert fit_gain(rows_of(400, 0.5, 6, fraction=True), 1).shown_to_help


def test_adapter_better_overall_can_still_be_routed_around_where_it_is_worse() -> None:
    draw = np.random.default_rng(7)
    rows = [
        GainRow(row.text, float(draw.random() < (0.4 if "theorem" in row.text or "matrix" in row.text else 0.98)), 0.6)
        for row in rows_of(800, 0.0, 7)
    ]
    model = fit_gain(rows, 1)
    assert model.measured.adapter_right > model.measured.general_right
    assert model.shown_to_help
    assert model.measured.apgr is None


def test_equal_texts_are_never_both_learned_from_and_measured_on() -> None:
    draw = np.random.default_rng(8)
    once = [GainRow(f"{draw.integers(10**9)}", float(draw.random() < 0.5), 1.0) for _ in range(100)]
    assert not fit_gain(once * 4, 1).measured.lift > 0.05


def test_copies_do_not_show_that_noise_helps() -> None:
    claims = 0
    for seed in range(12):
        draw = np.random.default_rng([8, seed])
        once = [
            GainRow(
                f"{draw.integers(10**9)} {draw.integers(10**9)}", float(draw.random() < 0.6), float(draw.random() < 0.7)
            )
            for _ in range(100)
        ]
        claims += fit_gain(once * 4, seed).shown_to_help
    assert claims <= 2, "2.5% may; with each copy drawn for itself it is every fourth"


def test_rows_of_one_group_are_in_one_fold_whatever_their_texts() -> None:
    rows = [GainRow(f"question {number // 2}", 1.0, 0.0, number % 3) for number in range(40)]
    assert set(read(rows).groups.tolist()) == {0}, "texts and groups join each other"
    apart = [GainRow(f"question {number}", 1.0, 0.0, number // 4) for number in range(40)]
    assert len(set(read(apart).groups.tolist())) == 10


def test_general_that_is_always_right_leaves_the_adapter_to_learn() -> None:
    rows = [GainRow(row.text, row.adapter_right, 1.0) for row in rows_of(400, 0.5, 9)]
    assert fit_gain(rows, 1).shown_to_help


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no rows"),
        (labelled([(0.0, 1.0)] * 50), "too few"),
        (labelled([(1.0, 1.0), (1.0, 0.0)] * 150), "adapter is right in every row"),
        (labelled([(0.0, 0.0), (1.0, 0.0)] * 150), "right in no row"),
        (labelled([(0.0, 0.0), (1.0, 1.0)] * 150), "differ in 0 rows"),
        (labelled([(0.0, 2.0)] * 300), "outside 0 to 1"),
        (labelled([(float("nan"), 1.0)] * 300), "outside 0 to 1"),
        ([GainRow("the same", number % 2, 1.0) for number in range(300)], "same text"),
        ([GainRow("", number % 2, 1.0) for number in range(300)], "same text"),
    ],
)
def test_nothing_is_fitted_where_there_is_nothing_to_learn_and_the_sentence_says_why(
    rows: list[GainRow], says: str
) -> None:
    with pytest.raises(FittingError, match=says):
        fit_gain(rows, 1)


def test_foreign_alphabets_long_prompts_and_empty_ones_are_fitted_as_any() -> None:
    draw = np.random.default_rng(10)
    kinds = ("好的问题 {}", "Сколько стоит {}?", "", "كم {}", "x" * 100_000 + "{}")
    rows = [
        GainRow(kinds[number % 5].format(draw.integers(10**6)), float(draw.random() < 0.5), 1.0)
        for number in range(250)
    ]
    model = fit_gain(rows, 1)
    assert all(np.isfinite(model.score(row.text)) for row in rows[:10])
