"""Labels that depend on each other: whose bursts count, and what a rhythm that comes and goes does to evidence."""

from __future__ import annotations

import itertools
import random

import msgspec
import pytest
from msgspec.structs import replace

from monitoring.quality.detectors import dependence, guards, leave_one_out, recoveries
from monitoring.quality.detectors.baselines import Baseline, declare_rate
from monitoring.quality.detectors.dependence import Dependence
from monitoring.quality.signals import label_signal, pair_signal
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal
from tests.monitoring.quality.traffic import V3

GROUPS = guards.GROUPS
BATCH = 40
LABELS, ALPHA, LABELS_MIN = 10_000, 0.05, 20


def judge_bursts(
    share: float, seed: int, before: int, after: int
) -> tuple[LabelSignal, int | None, list[tuple[bool, str | None]]]:
    """A signal after labels of several callers, of which 5% are wrong, and 10 points more `after` the first ones.

    One caller has so large a share, and gives batches of right answers, or of wrong ones. Returns also the number of
    labels until the first alarm after the change, and at every tenth label before it whether its evidence would rest on
    one who gives most labels, and the doubt.
    """
    draw, roll, batch = random.Random(seed), guards.start_roll(V3), list[float]()
    signal = label_signal.start(200, V3).hold_against(declare_rate(0.05, 0.0, "admin", "known"))
    looks = list[tuple[bool, str | None]]()
    for number in range(before + after):
        if not batch and draw.random() < share / (1.0 - share) / BATCH:
            batch = [0.9 * (draw.random() < 0.055)] * BATCH
        caller, rate = ("bursty", batch.pop()) if batch else (f"shop{draw.randrange(3)}", 0.05)
        badness, at = float(draw.random() < rate + 0.1 * (number >= before)), 1e6 + 86.4 * number
        roll = leave_one_out.add_label(leave_one_out.add_request(roll, caller, at), caller, at=at)
        signal = signal.take(Label(badness=badness, caller=caller), at, roll, False)
        if number % 10 == 0 and 500 < number < before:
            assert signal.guard is not None
            rests = guards.rests_on_most(signal.guard, LABELS, ALPHA)
            looks.append((rests, signal.find_doubt(LABELS_MIN, LABELS, ALPHA)))
        if number >= before and signal.alarms(LABELS_MIN, LABELS, ALPHA):
            return signal, number - before, looks
    return signal, None, looks


@pytest.mark.parametrize(("share", "seeds", "most"), [(0.3, (0, 3, 4), 500), (0.6, (1, 2, 3), 600)])
def test_one_callers_bursts_do_not_hide_a_slip_that_others_see(share: float, seeds: tuple[int, ...], most: int) -> None:
    delays = [judge_bursts(share, seed, 2_500, 1_200)[1] for seed in seeds]
    assert sorted(LABELS if delay is None else delay for delay in delays)[1] < most


def test_bursts_of_one_who_gives_most_labels_make_a_version_suspect_less_often() -> None:
    signal, _, looks = judge_bursts(0.8, 1, 3_000, 0)
    assert signal.dependence.whole.find_dispersion() > 1.3 > signal.dispersion
    assert sum(rests for rests, _ in looks) > 2 * sum(doubt is not None for _, doubt in looks)


@pytest.mark.parametrize("of", [2, 8])
def test_bursts_of_all_callers_are_a_dispersion_whoever_is_left_out(of: int) -> None:
    draw, seen, is_wrong = random.Random(1), Dependence(), False
    for number in range(4_000):
        is_wrong = draw.random() < 0.05 if number % 20 == 0 else is_wrong
        seen = dependence.observe(seen, float(is_wrong), 600.0 * number, (number % of,), GROUPS)
    assert dependence.find_dispersion(seen) > 2.5


def test_dependence_without_a_caller_is_that_of_the_labels_of_all_others() -> None:
    draw, seen, others = random.Random(1), Dependence(), Dependence()
    for number in range(500):
        own, badness, at = draw.randrange(3), float(draw.random() < 0.2), 600.0 * number
        seen = dependence.observe(seen, badness, at, (own,), GROUPS)
        others = others if own == 1 else dependence.observe(others, badness, at)
    left = seen.without[1]
    assert left is not None
    assert replace(left, days=others.whole.days) == others.whole
    assert left.days.counted == others.whole.days.counted > 1
    assert msgspec.json.decode(msgspec.json.encode(seen), type=Dependence) == seen


def observe_days(days: int, spread: float, own: int | None = None) -> Dependence:
    """The dependence of labels of days of 200, whose error of 10% is drawn anew each day: of all, or of one caller."""
    draw, seen = random.Random(2), Dependence()
    for day in range(days):
        rate = 0.1 * (1.0 + spread * draw.choice((-1, 1)))
        for number in range(200):
            place = number % 2
            badness = float(draw.random() < (rate if own in (None, place) else 0.1))
            seen = dependence.observe(seen, badness, 86_400.0 * day + 432.0 * number, (place,), GROUPS)
    return seen


def test_days_that_differ_ask_for_stronger_evidence_and_like_days_do_not() -> None:
    assert dependence.find_times_stronger(observe_days(14, 0.0)) == 1.0
    assert dependence.find_times_stronger(observe_days(14, 0.6)) > 3.0
    assert dependence.find_times_stronger(observe_days(2, 0.6)) == 1.0, "one day is compared with the one before"


def test_days_of_one_caller_alone_ask_for_nothing() -> None:
    seen = observe_days(14, 0.9, own=1)
    assert seen.whole.days.find_dispersion() > 2.0
    assert dependence.find_times_stronger(seen) == 1.0


def test_days_since_a_hint_at_a_slip_ask_for_nothing() -> None:
    settled = dependence.settle(observe_days(10, 0.0))
    seen = settled
    for number in range(600):
        seen = dependence.observe(seen, float(number % 3 == 0), 86_400.0 * 10 + 432.0 * number, (number % 2,), GROUPS)
    assert seen.whole.days.find_dispersion() > 2.0
    assert dependence.find_times_stronger(seen) == 1.0


@pytest.mark.parametrize(
    ("ratios", "count", "low", "high"), [(320.0, 125, 2.2, 2.4), (6.0, 1, 1.1, 1.3), (0.1, 1, 1.0, 1.05)]
)
def test_clusters_that_an_earlier_release_has_seen_are_kept(ratios: float, count: int, low: float, high: float) -> None:
    labels = 32 * count + 35
    sizes = [[1, 2, 700.0, 500], [1, 9, ratios, count], [4, None, 0.0, 0], [9, None, 0.0, 0]]
    seen = msgspec.json.decode(msgspec.json.encode({"whole": [labels, 9, 9, sizes]}), type=Dependence)
    assert low <= dependence.find_dispersion(dependence.pass_over(seen, 0.0)) <= high, "of degraded ones, too"
    seen = dependence.observe(seen, 0.0, 1.0)
    assert low <= dependence.find_dispersion(seen) <= high
    assert seen.whole.labels == labels + 1
    for number in range(4_000):
        seen = dependence.observe(seen, float(number % 20 == 0), 2.0)
    assert dependence.find_dispersion(seen) < 2.0


def test_a_rhythm_that_comes_and_goes_restarts_evidence_once() -> None:
    draw, roll = random.Random(1), guards.start_roll(V3)
    signal = label_signal.start(200, V3).hold_against(declare_rate(0.05, 0.0, "admin", "known"))
    rhythms, begun = list[bool](), set[int]()
    for number in range(40 * 240):
        day, hour = divmod(number / 10.0, 24.0)
        is_worse = (hour < 12.0) == (day // 5 % 2 == 0)  # every five days it is the other half of the day
        label = Label(badness=float(draw.random() < (0.09 if is_worse else 0.01)), caller="shop", trusted=True)
        signal = signal.take(label, 360.0 * number, roll, False)
        rhythms.append(signal.has_rhythm)
        begun.add(signal.begun)
    changes = sum(before != after for before, after in itertools.pairwise(rhythms))
    assert changes >= 3
    assert len(begun) == 2


def judge_pairs(repeats: int, seed: int) -> bool:
    """Return whether pairs alarm that are judged so many times in a row, while both arms are wrong on 15%."""
    draw, wrong = random.Random(seed), (0.0, 0.0)
    signal = pair_signal.start(V3, "general").hold_against(
        Baseline(kind="admin", wrong=0.0, of=0.0, upper=0.0, at=1.0, by="admin", source="")
    )
    for number in range(2_000):
        if number % repeats == 0:
            wrong = (float(draw.random() < 0.15), float(draw.random() < 0.15))
        signal = signal.take_pair(*wrong, (), 60.0 * number, None)
    return signal.alarms(LABELS_MIN, 2_000, ALPHA)


def test_pairs_that_are_judged_several_times_raise_few_false_alarms() -> None:
    alarms = {repeats: sum(judge_pairs(repeats, seed) for seed in range(12)) for repeats in (2, 3, 5)}
    assert alarms[2] <= 1
    assert alarms[3] <= 2
    assert alarms[5] <= 1


def hold_against_known() -> LabelSignal:
    return label_signal.start(200, V3).hold_against(declare_rate(0.06, 0.0, "admin", "known"))


def take_labels(signal: LabelSignal, rate: float, count: int, seed: int, wrong_of_one: int = 0) -> LabelSignal:
    """The signal after labels of four shops, up to its alarm if it has no reverse test yet; behind each label come
    `wrong_of_one` wrong ones of one more caller."""
    draw, roll = random.Random(seed), guards.start_roll(V3)
    for number in range(count):
        callers = [f"shop{number % 4}", *["noisy"] * wrong_of_one]
        for place, caller in enumerate(callers):
            roll = leave_one_out.add_label(leave_one_out.add_request(roll, caller), caller)
            badness = 1.0 if place else float(draw.random() < rate)
            signal = signal.take(Label(badness=badness, caller=caller), 0.0, roll, signal.reverse is not None)
        if signal.reverse is None and signal.alarms(LABELS_MIN, LABELS, ALPHA):
            break
    return signal


@pytest.mark.parametrize("seed", [1, 3, 8])
def test_a_slip_that_was_found_is_no_cluster(seed: int) -> None:
    """The labels until the verdict come near each other in their errors, as those of a cluster do."""
    healthy = take_labels(hold_against_known(), 0.05, 1_000, seed)
    degraded = take_labels(healthy, 0.2, 2_000, seed + 100)
    found = take_labels(degraded.begin_reverse_test(), 0.02, 500, seed + 200).restart()
    assert found.recoveries == 1
    assert healthy.labels < degraded.labels < 3_000
    assert found.dispersion <= min(degraded.dispersion, healthy.dispersion + 0.1)
    assert found.dependence.whole.labels + found.dependence.passed == found.labels


def _bound_of(signal: LabelSignal) -> float:
    assert signal.reverse is not None
    return signal.reverse.detectors.whole.baseline


def test_the_bound_of_a_recovery_follows_what_a_slip_shows_and_no_caller_alone() -> None:
    degraded = take_labels(take_labels(hold_against_known(), 0.05, 400, 1), 0.2, 40, 2).begin_reverse_test()
    longer, flooded = take_labels(degraded, 0.2, 400, 3), take_labels(degraded, 0.2, 400, 3, wrong_of_one=2)
    assert _bound_of(longer) > _bound_of(degraded) + 0.01
    assert _bound_of(flooded) <= _bound_of(longer) + 0.01
    assert longer.count_apart() < degraded.count_apart(), "the rates are told apart by fewer labels"
    assert _bound_of(take_labels(degraded, 0.0, 25, 3)) == _bound_of(degraded), "right labels lower no bound"


def test_pairs_that_have_come_to_none_yet_show_no_recovery() -> None:
    held = pair_signal.start(V3).hold_against(declare_rate(0.05, 0.0, "admin", "known"))
    tested = held.begin_reverse_test()
    assert (tested.reverse is not None, tested.has_recovered) == (True, False)


def test_a_rhythm_that_a_slip_has_made_does_not_come_back_after_it() -> None:
    rhythm = Dependence(rhythm=(1.0, 0.5, 0.0), had_rhythm=True)
    assert not dependence.forget_slip(dependence.forget_rhythm(dependence.settle(rhythm))).has_rhythm


def test_small_slips_ask_for_more_before_a_recovery() -> None:
    small, large = recoveries.count_apart(0.15, 0.02), recoveries.count_apart(0.15, 0.2)
    assert recoveries.count_asked(0, apart=large) == recoveries.count_asked(0) == recoveries.BETWEEN
    assert recoveries.count_asked(1, apart=small) == pytest.approx(4 * 10 * 375.0)
    assert recoveries.count_apart(0.15, 0.0) == 0.0


def test_states_of_an_earlier_release_keep_what_they_know_when_a_slip_is_found() -> None:
    signal = take_labels(hold_against_known(), 0.05, 400, 1)
    before = msgspec.structs.replace(signal.dependence, settled=None)
    after = dependence.forget_slip(before)
    assert (after.whole.products, after.whole.counted) == (before.whole.products, before.whole.counted)
    assert after.whole.mean == pytest.approx(before.whole.wrong / before.whole.labels)
