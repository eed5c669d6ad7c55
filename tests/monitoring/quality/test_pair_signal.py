"""The reference of a stream of pairs: nobody makes it bad alone, neither to hide a degradation nor to make one."""

from __future__ import annotations

import random

import msgspec
import pytest

from monitoring.quality.detectors import estimates
from monitoring.quality.signals import pair_signal
from monitoring.quality.signals.pair_signal import FIRST_PAIRS, DifferenceReference, First, PairSignal

CALLERS = tuple(f"shop{number}" for number in range(5))
SPOILER = CALLERS[0]
RATE = 0.08
LABELS, ALPHA = 10_000.0, 0.05


def after(
    track: PairSignal,
    count: int,
    seed: int,
    degradation: float = 0.0,
    spoilt: tuple[float, float] | None = None,
    callers: tuple[str, ...] = CALLERS,
) -> PairSignal:
    """Pairs of five callers, both arms equally often wrong but for a degradation; the first caller may say what it
    likes."""
    draw = random.Random(seed)
    for number in range(count):
        caller = callers[number % len(callers)] if callers else None
        wrong, other = float(draw.random() < RATE + degradation), float(draw.random() < RATE)
        if spoilt is not None and caller == SPOILER:
            wrong, other = spoilt
        givers = (caller,) if caller is not None else ()
        track = track.take_pair(wrong, other, givers, float(number), None)
    return track


def alarmed(track: PairSignal) -> bool:
    return track.alarms(20, LABELS, ALPHA)


def fresh() -> PairSignal:
    return pair_signal.start("returns@v3")


@pytest.mark.parametrize("seed", range(4))
def test_one_caller_of_five_who_makes_the_reference_too_high_hides_no_slip(seed: int) -> None:
    first = after(fresh(), FIRST_PAIRS, seed, spoilt=(1.0, 0.0))
    assert first.baseline is not None
    assert first.baseline.upper < 0.15
    assert alarmed(after(first, 600, seed + 10, degradation=0.3))


@pytest.mark.parametrize("seed", range(4))
def test_one_of_five_callers_setting_the_reference_too_low_causes_no_alarm(seed: int) -> None:
    first = after(fresh(), FIRST_PAIRS, seed, spoilt=(0.0, 1.0))
    healthy = after(first, 1_500, seed + 10)
    assert healthy.detectors is not None
    assert not alarmed(healthy)


def test_both_ends_hold_for_labels_that_wait_for_one_of_the_other_arm() -> None:
    """Each pair rests on the word of two callers, so that fewer are left without one; mostly these are enough."""
    assert sum(alarmed(met(seed, 1.0, 0.4)) for seed in range(8)) >= 6
    assert sum(alarmed(met(seed, 0.0, 0.0)) for seed in range(8)) <= 1


def met(seed: int, spoilt: float, degradation: float) -> PairSignal:
    """Labels of both arms' answers. One caller of five says so of the version's at first, the contrary of others."""
    track, draw = fresh(), random.Random(seed)
    for number in range(5_000):
        caller, own, first = draw.choice(CALLERS), draw.random() < 0.5, number < 400
        bad = float(draw.random() < (RATE if first or not own else RATE + degradation))
        if caller == SPOILER and first:
            bad = spoilt if own else 1.0 - spoilt
        track = track.take_label(own, bad, caller, float(number), None)
    return track


def test_a_healthy_version_of_five_callers_alarms_as_rarely_as_one_without_them() -> None:
    assert sum(alarmed(after(fresh(), 1_000, seed)) for seed in range(20)) <= 2


def measure(track: PairSignal, dispersion: float | None = None) -> DifferenceReference:
    """The reference of all first pairs, at their dispersion."""
    every = (First(givers=(), sums=track.first),)
    reference = pair_signal.find_reference(every, (), track.dispersion if dispersion is None else dispersion)
    assert reference is not None
    return reference


def test_first_pairs_that_come_in_clusters_count_as_fewer() -> None:
    track, draw = fresh(), random.Random(5)
    for number in range(FIRST_PAIRS):
        if number % 5 == 0:
            pair = (float(draw.random() < 0.25), float(draw.random() < 0.25))
        track = track.take_pair(*pair, (), float(number), None)
    found = estimates.estimate_difference(track.first, 0.9)
    assert track.baseline is not None
    assert found is not None
    assert measure(track, 1.0).upper == found.high
    assert track.dispersion > 1.5
    assert track.baseline.upper - found.mean > 1.3 * (found.high - found.mean)


def test_pairs_that_rest_on_nobodys_word_have_the_reference_of_all_of_them() -> None:
    track = after(fresh(), FIRST_PAIRS, 3, callers=())
    assert track.baseline is not None
    assert track.detectors is not None
    assert track.baseline.upper == track.detectors.whole.margin == measure(track).upper
    assert (track.baseline.wrong, track.baseline.of) == (track.first.y, FIRST_PAIRS)


def test_where_one_caller_gives_all_pairs_they_are_the_reference() -> None:
    track = after(fresh(), FIRST_PAIRS, 3, callers=("only",))
    assert track.baseline is not None
    assert track.baseline.upper == measure(track).upper
    alone = track.take_pair(1.0, 0.0, ("only",), 0.0, None)
    assert alone.detectors is not None
    assert alone.detectors.without[0] is not None, "it began with what all have seen"


def test_a_detector_begins_anew_at_the_references_that_it_had() -> None:
    first = after(fresh(), FIRST_PAIRS, 3, spoilt=(0.0, 1.0))
    anew = after(first, 50, 4).restart()
    assert first.detectors is not None
    assert anew.detectors == first.detectors
    assert len({left.margin for left in anew.detectors.without if left is not None}) > 1


def test_its_state_goes_through_json_unchanged_and_stays_small() -> None:
    many = tuple(f"shop{number}" for number in range(12))
    track = after(fresh(), 99, 3, callers=many)
    for pairs in (99, 300):
        track = after(track, pairs - track.pairs, pairs, callers=many)
        raw = msgspec.json.encode(track)
        assert msgspec.json.decode(raw, type=PairSignal, strict=True) == track
        assert len(raw) < 6_000
    assert len(track.firsts) <= 1 + pair_signal.GROUPS
