"""No caller and no rater moves a verdict alone, and what that costs where everybody says the same."""

from __future__ import annotations

import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import guards, leave_one_out, rising_errors
from monitoring.quality.detectors.baselines import declare_rate, measure
from monitoring.quality.detectors.guards import Guarded
from monitoring.quality.signals import label_signal, pair_signal
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal

LABELS, ALPHA = 10_000, 0.05
names = st.sampled_from([f"caller-{n}" for n in range(20)])


def served(found: Guarded, caller: str) -> Guarded:
    """The detector once a request of this caller was answered."""
    return guards.set_callers(found, leave_one_out.add_request(found.callers, caller))


def guarded(*callers: str) -> Guarded:
    found = guards.start(0.05, "returns@v3")
    for caller in callers:
        found = served(found, caller)
    return found


def alarms(found: Guarded) -> bool:
    return leave_one_out.has_alarmed(found.detectors, LABELS, ALPHA)


def degradations(found: Guarded) -> bool:
    """Return whether all labels are evidence enough now, whoever gave them."""
    return rising_errors.log_e(found.detectors.whole) >= rising_errors.find_threshold(LABELS, ALPHA)


def poisoned(share: float, seed: str, field: str = "caller", trusted: bool = False, count: int = 600) -> Guarded:
    """Healthy labels of five others, and one who sends `share` of all labels, all of them bad."""
    draw, found = random.Random(seed), guarded("attacker", *(f"caller-{n}" for n in range(5)))
    for n in range(count):
        attacks = draw.random() < share
        who = "attacker" if attacks else f"caller-{n % 5}"
        bad = 1.0 if attacks or draw.random() < 0.04 else 0.0
        caller, rater = (who, None) if field == "caller" else ("caller-0", who)
        found = guards.observe(found, bad, caller, trusted=trusted and attacks, rater=rater)
    return found


@pytest.mark.invariant("No caller and no rater decides alone.")
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("field", ["caller", "rater"])
def test_one_caller_or_one_rater_who_sends_only_bad_labels_moves_no_verdict(share: float, field: str) -> None:
    for n in range(4):
        found = poisoned(share, f"{share} {n}", field)
        assert not alarms(found)
        assert guards.rests_on_one(found, LABELS, ALPHA) == degradations(found)
    assert guards.rests_on_one(poisoned(0.5, "told", field), LABELS, ALPHA)


@pytest.mark.parametrize("field", ["caller", "rater"])
def test_a_burst_of_bad_labels_that_drowns_all_others_moves_no_verdict(field: str) -> None:
    """After 232 labels of others, 1,950 bad ones of one caller or rater: it has nearly all of the latest."""
    draw, found = random.Random(1), guarded(*(f"caller-{n}" for n in range(5)))
    for n in range(232 + 1950):
        who, bad = (f"caller-{n % 5}", float(draw.random() < 0.04)) if n < 232 else ("burst", 1.0)
        caller, rater = (who, None) if field == "caller" else ("caller-0", who)
        found = guards.observe(served(found, caller), bad, caller, rater=rater)
    assert not alarms(found)
    assert guards.rests_on_most(found, LABELS, ALPHA)


@pytest.mark.invariant("No caller and no rater decides alone.")
@pytest.mark.parametrize("wrong", [1.0, 0.3])
@pytest.mark.parametrize("history", [0, 300])
def test_a_caller_of_95_percent_of_the_traffic_moves_no_verdict_alone(history: int, wrong: float) -> None:
    """It sends nearly all requests and labels, from the first on or after a time without fault."""
    for seed in range(5):
        draw, found = random.Random(seed), guarded()
        for n in range(history + 400):
            is_most = draw.random() < 0.95
            who, rate = ("most", wrong if n >= history else 0.04) if is_most else (f"caller-{n % 3}", 0.04)
            found = guards.observe(served(found, who), float(draw.random() < rate), who)
            assert n < 30 or not alarms(found)


def test_evidence_that_is_gone_rests_on_nobody() -> None:
    found = poisoned(0.5, "told")
    assert guards.rests_on_one(found, LABELS, ALPHA)
    for n in range(3000):
        found = guards.observe(found, 0.0, f"caller-{n % 5}")
    assert not guards.rests_on_one(found, LABELS, ALPHA)


def test_who_gives_the_lesser_part_of_the_labels_is_told_of_alone() -> None:
    assert guards.rests_on_one(poisoned(0.3, "told"), LABELS, ALPHA)
    assert not guards.rests_on_most(poisoned(0.3, "told"), LABELS, ALPHA)
    assert guards.rests_on_most(poisoned(0.7, "told"), LABELS, ALPHA)


def test_evidence_of_several_that_is_not_enough_yet_rests_on_nobody() -> None:
    """Three equal callers and one real degradation: without any one of them it is too little."""
    draw, found = random.Random(2), guarded("a", "b", "c")
    for n in range(600):
        found = guards.observe(found, float(draw.random() < 0.2), "abc"[n % 3])
        if degradations(found):
            break
    assert not alarms(found)
    assert not guards.rests_on_one(found, LABELS, ALPHA)


def test_of_a_caller_who_alone_uses_the_version_the_word_counts() -> None:
    found = guarded("only")
    for _ in range(80):
        found = guards.observe(found, 1.0, "only")
    assert alarms(found)
    assert guards.log_e(found) == rising_errors.log_e(found.detectors.whole)


def test_it_counts_no_longer_alone_once_another_caller_is_served() -> None:
    found = served(guarded("only"), "another")
    for _ in range(40):
        found = guards.observe(found, 1.0, "only")
    assert not alarms(found)
    assert guards.rests_on_one(found, LABELS, ALPHA)


def test_a_request_or_two_of_somebody_else_silence_nobody() -> None:
    """One caller's word counts while all others together have less than a twentieth of requests and of labels."""
    found = guarded("only")
    for _ in range(150):
        found = served(found, "only")
    found = served(found, "another")
    for _ in range(80):
        found = guards.observe(found, 1.0, "only")
    assert alarms(found)
    assert leave_one_out.find_alone(found.callers) == leave_one_out.make_digest(found.callers, "only")


def test_of_raters_of_one_caller_a_single_label_silences_nobody_either() -> None:
    found = guards.observe(guarded("app"), 0.0, "app", rater="passer-by")
    for _ in range(200):
        found = guards.observe(found, 1.0, "app", rater="only")
    assert alarms(found)


def test_who_uses_a_version_little_moves_no_verdict_by_much_feedback() -> None:
    """It has a fiftieth of the requests, and gives nearly all labels: the others' requests ask for theirs."""
    found = guarded()
    for n in range(500):
        found = served(found, "attacker" if n % 50 == 0 else "shop")
    for _ in range(300):
        found = guards.observe(found, 1.0, "attacker")
    assert not alarms(found)
    assert leave_one_out.find_alone(found.callers) is None


def test_many_small_callers_together_ask_for_their_labels() -> None:
    found = guarded()
    for n in range(1_000):
        found = served(found, "large" if n % 10 else f"small-{n % 130}")
    for _ in range(300):
        found = guards.observe(found, 1.0, "large")
    assert not alarms(found)


def test_labels_of_trusted_givers_count_in_all() -> None:
    found = guarded("one", "other")
    for _ in range(40):
        found = guards.observe(found, 1.0, "reviewer", trusted=True)
    assert alarms(found)
    assert alarms(poisoned(0.5, "trusted", trusted=True))


def test_slip_seen_by_all_callers_is_found_nearly_as_soon_as_without_the_guard() -> None:
    took_with, took_without = [], []
    for n in range(15):
        draw, found = random.Random(n), guarded(*(f"caller-{n}" for n in range(5)))
        at_with = at_without = 0
        for at in range(1, 2_000):
            found = guards.observe(found, float(draw.random() < 0.25), f"caller-{draw.randrange(5)}")
            at_without = at_without or at * degradations(found)
            at_with = at_with or at * alarms(found)
            if at_with:
                break
        took_with.append(at_with)
        took_without.append(at_without)
    assert sorted(took_with)[7] <= 2 * sorted(took_without)[7]


@given(st.lists(st.tuples(names, st.floats(0, 1), st.booleans()), max_size=40))
def test_a_detector_without_a_group_is_the_detector_over_the_labels_of_all_others(
    seen: list[tuple[str, float, bool]],
) -> None:
    found = guarded(*(caller for caller, _, _ in seen))
    share = guards.start(0.05, "returns@v3", rater_share_max=1.0)
    found = msgspec.structs.replace(found, share_max=share.share_max)
    for caller, bad, trusted in seen:
        found = guards.observe(found, bad, caller, trusted=trusted)
    for at, without in enumerate(found.detectors.without[: guards.GROUPS]):
        plain = rising_errors.start(0.05)
        for caller, bad, trusted in seen:
            group = leave_one_out.get_group(found.callers, caller)
            if trusted or group != at:
                plain = rising_errors.advance(
                    plain, bad, 1.0, rising_errors.find_gains(0.05, "above", bad), crowds=True
                )
        assert without is None or without == plain


@given(st.lists(st.tuples(names, st.floats(0, 1), st.none() | names), max_size=60))
def test_json_gives_back_the_same_to_the_last_bit_and_its_size_is_bounded(
    seen: list[tuple[str, float, str | None]],
) -> None:
    found = guarded()
    for caller, bad, rater in seen:
        found = guards.observe(served(found, caller), bad, caller, rater=rater)
    stored = msgspec.json.encode(found)
    assert msgspec.json.decode(stored, type=Guarded, strict=True) == found
    assert len(stored) < 12_000


def test_a_rater_among_many_weighs_no_more_than_a_fifth_of_the_latest_labels() -> None:
    draw, found, weighed = random.Random(3), guarded("app"), []
    for n in range(1_500):
        rater = "loud" if draw.random() < 0.6 else f"rater-{n % 40}"
        before = found.detectors.whole.weight
        found = guards.observe(found, 0.0, "app", rater=rater)
        weighed.append((rater, found.detectors.whole.weight - before))
    latest = weighed[-200:]
    loud = sum(weight for rater, weight in latest if rater == "loud")
    assert loud <= 0.2 * 200 * 1.2
    assert all(weight == pytest.approx(1.0) for rater, weight in latest if rater != "loud")


def test_two_raters_are_not_weighed_down_and_three_share_equally() -> None:
    for count, least in ((2, 1.0), (3, 0.95)):
        found = guarded("app")
        for n in range(600):
            found = guards.observe(found, 0.0, "app", rater=f"rater-{n % count}")
        assert found.detectors.whole.weight / 600 >= least


def test_at_the_baseline_the_guarded_detector_alarms_no_more_often_than_alpha() -> None:
    alarms = 0
    for n in range(150):
        draw, found = random.Random(f"healthy {n}"), guarded("a", "b", "c")
        for _ in range(200):
            found = guards.observe(found, float(draw.random() < 0.05), draw.choice("abc"))
        alarms += leave_one_out.has_alarmed(found.detectors, 200, 0.2)
    assert alarms <= 150 * 0.2 + 3.1 * math.sqrt(150 * 0.2 * 0.8)


def test_shares_that_can_not_be_are_refused() -> None:
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="largest share"):
            guards.start(0.05, "returns@v3", rater_share_max=share)


# ---- one who is first ---------------------------------------------------------------------------------


def _labels(track: LabelSignal, count: int, seed: int, rater: str | None = None, rate: float = 0.05) -> LabelSignal:
    """Labels of one caller's eight raters, or of one of them alone."""
    draw, who = (
        random.Random(seed),
        leave_one_out.add_label(leave_one_out.add_request(guards.start_roll("v"), "app", 1.0), "app"),
    )
    for number in range(count):
        named = rater or f"r{draw.randrange(8)}"
        label = Label(badness=float(draw.random() < rate), caller="app", rater=named)
        track = track.take(label, float(number), who, False)
    return track


def _alarmed(track: LabelSignal) -> bool:
    return track.alarms(30, 26_000 * ALPHA, ALPHA)


def test_first_rater_of_eight_after_the_baseline_moves_no_verdict_alone() -> None:
    for seed in range(5):
        track = _labels(label_signal.start(200, "v"), 200, seed)
        assert track.guard is not None
        assert not _alarmed(_labels(track, 60, seed, "r0", 1.0))


def test_nor_does_it_once_the_version_has_recovered_or_gets_another_baseline() -> None:
    track = _labels(label_signal.start(200, "v"), 300, 1)
    other = measure("admin", 50, 1000, 2.0, "key", "counted")
    for anew in (track.restart(), track.hold_against(other)):
        assert anew.observed == 0
        assert not _alarmed(_labels(anew, 60, 2, "r0", 1.0))


def test_nor_does_its_praise_show_a_recovery() -> None:
    track = _labels(_labels(label_signal.start(200, "v"), 300, 1), 100, 2, rate=0.5).begin_reverse_test()
    assert not _labels(track, 200, 3, "r0", 0.0).has_recovered
    assert _labels(track, 200, 3, rate=0.0).has_recovered


def test_evidence_of_a_sole_rater_is_void_once_there_are_others() -> None:
    """The stream of a gate: nothing is known of its raters when the first of them speaks."""
    track = label_signal.start(200, "v").hold_against(measure("gate", 50, 1000, 1.0, "gate", "evaluation-1"))
    burst = _labels(track, 80, 1, "r0", 1.0)
    assert _alarmed(burst)
    others = _labels(burst, 100, 2)
    assert not _alarmed(others)
    assert _alarmed(_labels(others, 100, 3, rate=0.6)), "a degradation that all of them see is found"


def test_one_rater_alone_is_still_believed() -> None:
    track = label_signal.start(200, "v").hold_against(measure("gate", 50, 1000, 1.0, "gate", "evaluation-1"))
    for _ in range(3):
        track = _labels(track, 80, 1, "r0", 1.0)
        assert _alarmed(track)
        track = track.restart()


def test_pairs_of_one_caller_who_was_there_alone_are_void_once_there_are_others() -> None:
    track = pair_signal.start("v").hold_against(declare_rate(0.05, 1.0, "admin", "word"))
    alone = leave_one_out.make_digest(track.givers, "a")
    for number in range(60):
        track = track.take_pair(1.0, 0.0, ("a",), float(number), alone)
    assert track.alarms(30, 1_000.0, ALPHA)
    for number in range(60):
        track = track.take_pair(0.0, 0.0, ("bcdef"[number % 5],), float(number), None)
    assert not track.alarms(30, 1_000.0, ALPHA)


def test_shares_go_through_json_unchanged() -> None:
    track = _labels(label_signal.start(200, "v"), 50, 1)
    assert track.shares is not None
    assert msgspec.json.decode(msgspec.json.encode(track), type=LabelSignal) == track
