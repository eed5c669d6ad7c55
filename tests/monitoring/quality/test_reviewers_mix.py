"""The mix of reviewers: one who is away is not a degradation, and a degradation is found whoever reviews."""

from __future__ import annotations

import random
from typing import get_args

import msgspec
import pytest

from monitoring.quality.detectors import guards, leave_one_out, reviewers_mix
from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.detectors.reviewers_mix import ReviewersMix
from monitoring.quality.explanations import doubt_steps
from monitoring.quality.signals import label_signal
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.verdicts.quality import Doubt, SignalReport
from monitoring.quality.verdicts.verdict import DOUBTS

V3 = "returns@v3"
ROLL = leave_one_out.add_request(guards.start_roll(V3), "shop")
STRICTNESS = {"mild": 0.2, "anna": 1.4, "ben": 1.4}


def review(signal: LabelSignal, names: str, error: float, count: int, trusted: bool = True) -> LabelSignal:
    """The signal after labels by these reviewers, by turns, who see their own part of the errors."""
    draw, given = random.Random(count), names.split()
    for number in range(count):
        name = given[number % len(given)]
        badness = float(draw.random() < STRICTNESS[name] * error)
        label = Label(badness=badness, caller="desk" if trusted else name, rater=name, trusted=trusted)
        signal = signal.take(label, 600.0 * signal.labels, ROLL, False)
    return signal


@pytest.fixture
def usual() -> LabelSignal:
    """A signal of three reviewers, compared with their error."""
    start = label_signal.start(100, V3).hold_against(declare_rate(0.1, 1.0, "admin", "known"))
    return review(start, "mild anna ben", 0.1, 1_200)


def test_mild_reviewer_on_holiday_makes_a_version_suspect(usual: LabelSignal) -> None:
    assert not usual.alarms(0, 10_000, 0.05)
    away = review(usual, "anna ben", 0.1, 3_000)
    assert away.alarms(0, 10_000, 0.05)
    assert away.find_doubt(0, 10_000, 0.05) == "reviewers"
    assert 1.2 < away.find_strictness() < 1.6


def test_a_slip_is_found_whoever_reviews(usual: LabelSignal) -> None:
    for names in ("mild anna ben", "anna ben"):
        degraded = review(usual, names, 0.3, 800)
        assert degraded.alarms(0, 10_000, 0.05)
        assert degraded.find_doubt(0, 10_000, 0.05) is None


def test_givers_who_are_not_trusted_change_no_mix() -> None:
    start = label_signal.start(100, V3).hold_against(declare_rate(0.1, 1.0, "admin", "known"))
    signal = review(start, "mild anna ben", 0.1, 400, trusted=False)
    assert signal.mix == ReviewersMix()


def counted(*given: tuple[str, int, int]) -> ReviewersMix:
    """The mix after labels of which each reviewer has given so many, and called so many wrong."""
    mix, at = ReviewersMix(), 0
    for name, labels, wrong in given:
        for number in range(labels):
            at += 1
            mix = reviewers_mix.add_label(mix, name, float(number < wrong), at, at)
    return mix


def test_new_reviewers_count_as_the_mean_of_all() -> None:
    mix = counted(("mild", 100, 2), ("anna", 100, 18), ("mild", 50, 1), ("anna", 50, 9))
    change = mix.now.at
    for number in range(200):
        mix = reviewers_mix.add_label(mix, f"new {number % 3}", 1.0, change + 1 + number, change)
    assert reviewers_mix.find_times(mix) == pytest.approx(1.0, abs=0.1)


def test_a_mix_of_many_reviewers_has_a_fixed_size_and_goes_through_json() -> None:
    mix = counted(*[(f"reviewer {number % 40}", 10, 1) for number in range(80)])
    assert len(mix.now.labels) == reviewers_mix.REVIEWERS_MAX + 1
    assert sum(mix.now.labels) == 800
    assert msgspec.json.decode(msgspec.json.encode(mix), type=ReviewersMix) == mix


@pytest.mark.parametrize("doubt", get_args(Doubt))
def test_each_doubt_has_a_reason_and_a_next_step(doubt: Doubt) -> None:
    assert DOUBTS[doubt]
    report = SignalReport(signal="reviewed", labelled=True, observed=900, doubt=doubt, stricter=1.4)
    steps = [*doubt_steps.list_steps("returns", V3, [report])]
    assert all(V3 in step for step in steps)
    assert steps
    assert doubt != "reviewers" or "1.4 times" in steps[0]
