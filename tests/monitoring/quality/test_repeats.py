"""Repeats of an input, a session or a subject: they add no more evidence than their first."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import leave_one_out, raters
from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.signals import label_signal, repeats
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal
from tests.monitoring.quality.reckoned import HELD, Told
from tests.monitoring.quality.traffic import V3, Traffic, errors, labelled_traffic, served

ROLL = leave_one_out.add_request(raters.start_roll(V3), "shop")


def take(signal: LabelSignal, badness: float, weight: float, at: float) -> LabelSignal:
    return signal.take(Label(badness=badness, caller="shop", weight=weight), at, ROLL, False)


def find_evidence(signal: LabelSignal) -> float:
    assert signal.guard is not None
    return sum(signal.guard.detectors.whole.logs)


@given(st.lists(st.floats(0, 1), max_size=30), st.integers(1, 70))
def test_a_repeat_never_adds_more_evidence_than_a_label_of_its_own(before: list[float], times: int) -> None:
    signal = label_signal.start(100, V3).hold_against(declare_rate(0.05, 1.0, "admin", "known"))
    for number, badness in enumerate(before):
        signal = take(signal, badness, 1.0, 600.0 * number)
    latest, keys = (), ("an-input",)
    for number in range(times):
        weight = repeats.find_weight(latest, keys)
        latest = repeats.add_keys(latest, keys)
        at = 600.0 * (len(before) + number)
        of_its_own = take(signal, 1.0, 1.0, at)
        signal = take(signal, 1.0, weight, at)
        assert find_evidence(signal) <= find_evidence(of_its_own) + 1e-9


def test_requests_have_a_key_in_common_by_input_session_or_subject() -> None:
    first = repeats.find_keys(served("a", request_digest="11112222aaaa", handles=["session1-x", "subject1-x"]))
    assert repeats.find_weight((), first) == 1.0
    for other in ({"request_digest": "11112222aaaa"}, {"handles": ["session1-x"]}, {"handles": ["subject1-x"]}):
        assert repeats.find_weight((first,), repeats.find_keys(served("b", **other))) == 0.5
    assert repeats.find_weight((first,), repeats.find_keys(served("c", request_digest="3333"))) == 1.0
    assert repeats.find_weight((first,), repeats.find_keys(served("d"))) == 1.0
    latest: repeats.Latest = ()
    for _ in range(200):
        latest = repeats.add_keys(latest, first)
    assert (len(latest), repeats.find_weight(latest, first)) == (repeats.LATEST, repeats.INPUT_WEIGHT_MIN)


def with_one_input(traffic: Traffic, of: int) -> Traffic:
    """The traffic with `of` requests in a row that have one input."""
    for number, (_, seen) in enumerate(traffic[0]):
        seen.request_digest = f"{number // of:08d}"
    return traffic


def test_an_answer_that_is_labelled_wrong_five_times_counts_about_twice() -> None:
    evidence = []
    for of in (1, 5):
        told = Told(HELD)
        told.take(with_one_input(labelled_traffic(errors(0.04, 300)), 1))
        told.take(with_one_input(labelled_traffic([True] * 5), of))
        evidence.append(told.stream("feedback").e_value)
    assert evidence[1] < 0.5 * evidence[0]


def test_a_slip_is_found_where_all_callers_send_one_input() -> None:
    told = Told(HELD)
    told.take(with_one_input(labelled_traffic(errors(0.04, 300)), 1_000))
    told.take(with_one_input(labelled_traffic(errors(0.9, 100)), 1_000))
    assert told.stream("feedback").alarming


def test_wrong_answers_that_are_asked_for_again_and_again_are_no_slip() -> None:
    asked = [(number, bad) for number, bad in enumerate(errors(0.04, 1_000)) for _ in range(5 if bad else 1)]
    traffic = labelled_traffic(bad for _, bad in asked)
    for (number, _), (_, seen) in zip(asked, traffic[0], strict=True):
        seen.request_digest, seen.handles = f"{number:08d}", [f"s{number:07d}"]
    told = Told(HELD)
    told.take(traffic)
    report = told.stream("feedback")
    assert (report.alarming, report.doubt) == (False, None)
    assert report.wrong > 0.15 * report.observed, "each wrong one was judged five times"


def test_a_slip_is_found_where_one_session_sends_one_input() -> None:
    told = Told(HELD)
    for rate, count in ((0.04, 300), (0.9, 200)):
        traffic = with_one_input(labelled_traffic(errors(rate, count)), 1_000)
        for _, seen in traffic[0]:
            seen.handles = ["the-session"]
        told.take(traffic)
    assert told.stream("feedback").alarming


def test_a_slip_is_found_where_one_session_sends_ten_inputs_in_turn() -> None:
    told = Told(HELD)
    told.take(labelled_traffic(errors(0.04, 300)))
    traffic = labelled_traffic(errors(0.3, 100))
    for number, (_, seen) in enumerate(traffic[0]):
        seen.request_digest, seen.handles = f"{number % 10:08d}", ["the-session"]
    told.take(traffic)
    assert told.stream("feedback").alarming


def test_repeats_weigh_as_little_in_a_baseline_of_first_labels_as_in_evidence() -> None:
    draw, signal, latest = random.Random(1), label_signal.start(200, V3), ()
    for number in range(3_000):
        is_popular = draw.random() < 0.6
        keys = ("popular" if is_popular else f"input-{number}",)
        weight, latest = repeats.find_weight(latest, keys), repeats.add_keys(latest, keys)
        badness = float(not is_popular and draw.random() < 0.2)
        signal = take(signal, badness, weight, 600.0 * number)
    assert signal.baseline is not None
    assert signal.baseline.of < signal.labels
    assert 0.1 < signal.baseline.wrong / signal.baseline.of < 0.19, "8% of all labels are wrong, and 15% by weight"
    assert not signal.alarms(0, 10_000, 0.05)
