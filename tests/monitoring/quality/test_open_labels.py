"""Labels that leave one answer open beside a judge that says of both answers whether they are right: whose word counts
for the advantage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.quality.signals import arms
from monitoring.quality.signals.arms import Arm, ArmComparison
from monitoring.quality.signals.noted_pairs import Right
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.traffic import MORNING, V3, Traffic, at, said, served, shadow, step

PAIRS = 1_000
Both = tuple[float, float]


def drawn(seed: int, rates: Both, pairs: int = PAIRS) -> list[Both]:
    """Of how many pairs the version and the other arm are right."""
    draw = random.Random(seed)
    return [(float(draw.random() < rates[0]), float(draw.random() < rates[1])) for _ in range(pairs)]


def found(
    words: Sequence[Both], labels: dict[int, Right], callers: Sequence[str] = (), outright: bool = True
) -> ArmComparison:
    """Estimates of judged pairs, some of which get labels then, by reviewers or by these callers."""
    arm, begins = Arm(other="general"), []
    for number, word in enumerate(words):
        arm = arms.add_pair(arm, float(number), word, outright)
        begins.append(arm.blocks[-1].begins)
    for number, right in labels.items():
        givers = (callers[number % len(callers)],) if callers else ()
        arm = arms.add_label(arm, begins[number], right, words[number], givers)
    one = arms.compare(msgspec.json.decode(msgspec.json.encode(arm), type=Arm), None)
    assert one is not None
    return one


def half_open(rights: Sequence[Both], count: int, seed: int, own: float = 0.5) -> dict[int, Right]:
    """Labels of what callers got, each of which leaves the other answer open; so many of them are the version's."""
    draw, labels = random.Random(seed), dict[int, Right]()
    for number in draw.sample(range(len(rights)), count):
        version, other = rights[number]
        labels[number] = (version, None) if draw.random() < own else (None, other)
    return labels


def bounds(one: ArmComparison) -> Both:
    return one.advantage_low, one.advantage_high


# ---- labels that leave answers open ----------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    own=st.sampled_from([0.0, 0.5, 1.0]),
    callers=st.sampled_from([(), ("one",), ("one", "two", "three")]),
)
@pytest.mark.parametrize("count", [0, 19, 20, 200, 1000])
def test_labels_that_leave_an_answer_open_take_no_shown_advantage_away(
    count: int, seed: int, own: float, callers: tuple[str, ...]
) -> None:
    rights = drawn(seed, (0.7, 0.95))
    without = found(rights, {})
    labelled = found(rights, half_open(rights, count, seed, own), callers)
    assert bounds(labelled) == bounds(without)
    assert labelled.advantage_low > 0.1
    assert labelled.words == PAIRS


def test_labels_of_the_same_answers_make_no_others_complete() -> None:
    """Reviewers label 300 answers: two in three are the same as general's, the others leave general's open."""
    rights = drawn(1, (0.7, 0.95))
    labels: dict[int, Right] = {
        number: own if own[0] == own[1] else (own[0], None) for number, own in enumerate(rights[:300])
    }
    assert sum(None not in right for right in labels.values()) > 150
    assert bounds(found(rights, labels)) == bounds(found(rights, {}))


def test_the_quality_of_an_arm_still_rests_on_labels_of_its_own_answers() -> None:
    words = drawn(1, (0.9, 0.95))
    labels: dict[int, Right] = {number: (float(number % 2), None) for number in range(100)}
    one = found(words, labels)
    assert one.version is not None
    assert (one.version.labels, one.labels, one.pairs, one.other) == (100, 100, 900, None)
    assert one.version.mean < 0.75, "and not 0.9, as the judge says"


def test_without_such_a_judge_they_bound_the_advantage() -> None:
    rights = drawn(1, (0.7, 0.95))
    one = found(rights, half_open(rights, 200, 1), outright=False)
    assert (one.labels, one.words) == (200, 0)
    assert one.advantage_low < -0.4
    assert one.advantage_high > 0.5


def test_a_judge_that_has_judged_fewer_than_20_pairs_is_none() -> None:
    rights = drawn(1, (0.0, 1.0), 40)
    arm = Arm(other="general")
    for number, right in enumerate(rights):
        word = right if number < 19 else None
        arm = arms.add_pair(arm, float(number), word, True)
        arm = arms.add_label(arm, arm.blocks[-1].begins, (right[0], None), word)
    one = arms.compare(arm, None)
    assert one is not None
    assert (one.words, one.labels) == (0, 40)
    assert one.advantage_low < 0.0


def test_contracts_that_both_break_make_no_such_judge_of_one_that_compares_texts() -> None:
    arm = Arm(other="general")
    for number in range(400):
        broken = number % 10 == 0
        arm = arms.add_pair(arm, float(number), (0.0, 0.0) if broken else (1.0, 1.0), says_right=broken)
        arm = arms.add_label(arm, arm.blocks[-1].begins, (1.0, None), None)
    one = arms.compare(arm, None)
    assert one is not None
    assert one.words == 0
    assert one.advantage_low < -0.8


# ---- complete labels -------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), callers=st.sampled_from([(), ("one",)]))
def test_complete_labels_correct_a_judge_that_is_wrong(seed: int, callers: tuple[str, ...]) -> None:
    words, rights = drawn(seed, (0.7, 0.95)), drawn(seed + 1, (0.9, 0.6))
    assert found(words, {}).advantage_low > 0.1
    complete: dict[int, Right] = dict(enumerate(rights[:600]))
    assert found(words, complete, callers).advantage_high < 0.0


@pytest.mark.parametrize(
    ("complete", "opened", "by_judge"), [(19, 0, True), (20, 0, False), (90, 10, False), (89, 11, True)]
)
def test_labels_take_the_place_of_the_judge_once_20_are_complete_and_few_are_open(
    complete: int, opened: int, by_judge: bool
) -> None:
    words, count = drawn(1, (0.7, 0.95)), complete + opened
    labels: dict[int, Right] = {
        number: (1.0, 0.0) if number < complete else (1.0, None) for number in range(max(20, count))
    }
    one = found(words, labels)
    assert (one.words > 0, one.advantage_low > 0.0) == (by_judge, by_judge)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rates=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    complete=st.integers(0, 200),
    opened=st.integers(0, 60),
)
def test_whose_word_counts_does_not_depend_on_which_arm_is_better(
    seed: int, rates: Both, complete: int, opened: int
) -> None:
    """The same pairs with both arms in each other's place give the same bounds, the other way round."""
    words, rights = drawn(seed, rates), drawn(seed + 1, rates)
    labels = half_open(rights, complete + opened, seed)
    labels |= {number: rights[number] for number in list(labels)[:complete]}
    one = found(words, labels)
    turned = found([(b, a) for a, b in words], {number: (b, a) for number, (a, b) in labels.items()})
    assert one.words == turned.words
    assert bounds(one) == pytest.approx((-turned.advantage_high, -turned.advantage_low), abs=1e-9)


# ---- as the streams tell it -----------------------------------------------------------------------


def judged_pairs(count: int, labels: int, **given_too: Any) -> Traffic:
    """Pairs that a model judges: general is always right, the version in two of three. Reviewers label some."""
    records, feedback = [], []
    for number in range(count):
        name, wrong = f"q{number}", number % 3 == 0
        word: dict[str, Any] = {"judge": "model", "right": True, "served_right": not wrong, "digest": f"g{number}"}
        records.append((at(number * 60.0), served(name)))
        records.append((at(number * 60.0 + 1), shadow(name, pair={**word, "served_digest": "v"})))
        if number < labels:
            feedback.append((at(number * 60.0 + 30), said(name, not wrong, "desk", reviewed=True, **given_too)))
    return records, feedback


def test_reviews_leave_a_shift_possible() -> None:
    for labels in (0, 19, 20, 200):
        found = replay(*judged_pairs(300, labels), step(), MORNING + 86_400)[V3]
        general = {one.arm: one for one in found.arms}["general"]
        assert general.advantage_low is not None
        assert general.advantage_low > 0.2
        assert general.advantage_words == 300
    demonstrated = judged_pairs(300, 200, demonstration_digests={"model": "v"})
    general = {one.arm: one for one in replay(*demonstrated, step(), MORNING + 86_400)[V3].arms}["general"]
    assert general.advantage_high is not None
    assert general.advantage_high < 0.0, "the version's answers were right all along"
    assert general.advantage_words == 0
