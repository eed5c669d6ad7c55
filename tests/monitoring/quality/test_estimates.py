"""PPI++: the estimate by hand, what a judge is worth, honest intervals with few labels; JSON changes nothing."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from monitoring.quality.detectors import estimates
from monitoring.quality.detectors.estimates import Estimate, Sums

unit = st.floats(0, 1)


def summed(rows: list[tuple[float, float]], others: list[float]) -> Sums:
    sums = Sums()
    for y, f in rows:
        sums = estimates.add_label(sums, y, f)
    for f in others:
        sums = estimates.add_guess(sums, f)
    return sums


def found(sums: Sums) -> Estimate:
    one = estimates.estimate(sums)
    assert one is not None
    return one


def test_without_labels_there_is_no_estimate() -> None:
    assert estimates.estimate(summed([], [0.5] * 100)) is None
    assert estimates.estimate(summed([(1, 1)], [0.5] * 100)) is None
    assert estimates.estimate_difference(Sums()) is None


def test_a_judge_that_is_right_takes_the_mean_of_all_rows() -> None:
    rows = [(float(at % 2), float(at % 2)) for at in range(40)]
    one = found(summed(rows, [1.0] * 2_400 + [0.0] * 1_600))
    assert one.lam == pytest.approx(1.0, abs=0.06)
    assert one.mean == pytest.approx(0.6, abs=0.01)
    assert (one.labels, one.pairs) == (40, 4_000)


def test_a_judge_that_tells_nothing_or_the_contrary_is_not_listened_to() -> None:
    rows = [(float(at % 2), float(at % 4 < 2)) for at in range(40)]
    assert found(summed(rows, [1.0] * 100 + [0.0] * 100)).lam == pytest.approx(0.0)
    contrary = found(summed([(y, 1 - y) for y, _ in rows], [1.0] * 300 + [0.0] * 100))
    assert (contrary.lam, contrary.mean) == (0.0, 0.5)
    assert found(summed([(1.0, 0.5), (0.0, 0.5)], [0.5] * 10)).lam == 0.0


def test_the_estimate_is_that_of_the_paper() -> None:
    draw = random.Random(2)
    rows = [(float(y), 0.2 + 0.5 * y + 0.1 * draw.random()) for y in (draw.random() < 0.7 for _ in range(50))]
    others = [0.2 + 0.5 * (draw.random() < 0.6) for _ in range(400)]
    one = found(summed(rows, others))
    y, f = [a for a, _ in rows], [b for _, b in rows]
    both = sum((a - sum(y) / 50) * (b - sum(f) / 50) for a, b in rows) / 49
    whole = [*f, *others]
    variance = sum((b - sum(whole) / 450) ** 2 for b in whole) / 450
    lam = min(1.0, both / ((1 + 50 / 400) * variance))
    assert one.lam == pytest.approx(lam)
    assert one.mean == pytest.approx(sum(y) / 50 + lam * (sum(others) / 400 - sum(f) / 50))


@given(st.lists(st.tuples(unit, unit), min_size=2, max_size=40), st.lists(unit, max_size=40), st.floats(0.5, 0.999))
def test_an_interval_holds_its_estimate_and_stays_in_range(
    rows: list[tuple[float, float]], others: list[float], confidence: float
) -> None:
    one = estimates.estimate(summed(rows, others), confidence)
    assert one is not None
    assert 0 <= one.low <= one.mean <= one.high <= 1
    assert one.low < one.high
    assert 0 <= one.lam <= 1
    signed = estimates.estimate_difference(summed([(y - f, f - y) for y, f in rows], others), confidence)
    assert signed is not None
    assert -1 <= signed.low <= signed.mean <= signed.high <= 1


@pytest.mark.parametrize("labels", [60, 240])
@pytest.mark.parametrize(("rate", "mistakes"), [(0.9, 0.05), (0.8, 0.1), (0.95, 0.5), (0.5, 0.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(labels: int, rate: float, mistakes: float) -> None:
    draw, held, runs = random.Random(f"{labels} {rate}"), 0, 400
    told = rate * (1 - mistakes) + (1 - rate) * mistakes
    for _ in range(runs):
        rows = []
        for _ in range(labels):
            y = draw.random() < rate
            rows.append((float(y), float(y != (draw.random() < mistakes))))
        many = int(draw.gauss(2_000 * told, math.sqrt(2_000 * told * (1 - told))))
        sums = msgspec.structs.replace(summed(rows, []), unlabelled=2_000, other_f=float(many), other_ff=float(many))
        one = found(sums)
        held += one.low <= rate <= one.high
    assert held / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("silent", [0.0, 0.3, 0.7])
def test_a_judge_that_says_nothing_of_some_rows_biases_no_estimate(silent: float) -> None:
    draw, held, shown, runs = random.Random(f"silent {silent}"), 0, 0, 300
    for _ in range(runs):
        quality, advantage = Sums(), Sums()
        for at in range(600):
            own, other = (float(draw.random() < 0.7) for _ in range(2))
            too_well = 1.0 if draw.random() < 0.7 else other  # the judge thinks too well of the other arm
            words = None if draw.random() < silent else (own, too_well - own)
            if at % 5 == 0:
                quality = estimates.add_label(quality, own, words and words[0])
                advantage = estimates.add_label(advantage, other - own, words and words[1])
            elif words is not None:
                quality = estimates.add_guess(quality, words[0])
                advantage = estimates.add_guess(advantage, words[1])
        one, bounds = found(quality), estimates.bound_always(advantage, 0.025)
        assert bounds is not None
        held += one.low <= 0.7 <= one.high
        shown += bounds[0] > 0.0 or bounds[1] < 0.0
    assert held / runs >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / runs)
    assert shown / runs <= 0.05


def test_where_all_labels_agree_the_interval_still_has_a_width() -> None:
    one = found(summed([(1.0, 1.0)] * 60, [1.0] * 1_000))
    assert one.mean == 1.0
    assert 0.9 < one.low < 0.99


def test_a_row_that_is_labelled_later_counts_once() -> None:
    early = estimates.replace_guess(summed([(1, 1), (0, 0)], [0.25, 1.0]), 1.0, 0.25)
    assert early == summed([(1, 1), (0, 0), (1.0, 0.25)], [1.0])


def test_values_out_of_range_are_refused() -> None:
    for wrong in (1.5, -2.0, math.nan):
        with pytest.raises(ValueError, match="within -1 and 1"):
            estimates.add_label(Sums(), wrong, 0.0)
        with pytest.raises(ValueError, match="within -1 and 1"):
            estimates.add_guess(Sums(), wrong)
    with pytest.raises(ValueError, match="between 0 and 1"):
        estimates.find_two_sided_quantile(10, 1.0)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 20, 59, 239, 5_000])
@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.95, 0.99])
def test_students_quantiles_are_close(degrees: int, confidence: float) -> None:
    exact = float(stats.t.ppf(0.5 + confidence / 2, degrees))
    rel = 0.034 if confidence == 0.99 and degrees < 5 else 0.01
    assert estimates.find_two_sided_quantile(degrees, confidence) == pytest.approx(exact, rel=rel)


def test_json_gives_back_the_same() -> None:
    sums = summed([(0.1, 0.7), (1.0, 1 / 3)], [0.1, 0.2])
    assert msgspec.json.decode(msgspec.json.encode(sums), type=Sums) == sums
    one = found(sums)
    assert msgspec.json.decode(msgspec.json.encode(one), type=Estimate) == one
