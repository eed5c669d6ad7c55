"""Repeats of an input, a session or a subject: they add no more evidence than their first."""

from __future__ import annotations

import math
import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.detectors import dependence, guards, leave_one_out, sessions
from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.detectors.sessions import NO_PAST
from monitoring.quality.signals import label_evidence, label_signal, repeats
from monitoring.quality.signals.entries import Label
from monitoring.quality.signals.label_signal import LabelSignal
from tests.monitoring.quality.reckoned import HELD, Told
from tests.monitoring.quality.traffic import V3, Traffic, errors, labelled_traffic, served

ROLL = leave_one_out.add_request(guards.start_roll(V3), "shop")


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


@pytest.mark.parametrize("fields", [{"purpose": "reported"}, {"answer_id": "an-engine's-own"}])
def test_the_name_of_one_request_alone_is_no_session_and_displaces_none(fields: dict[str, str]) -> None:
    latest: dict[str, repeats.Latest] = {}
    known: dict[str, repeats.Sessions] = {}
    for number in range(200):
        session, own = f"s{number % 100:07d}", [f"a{number:07d}", f"b{number:07d}"]
        handles = [*own, session] if "purpose" in fields else [session, own[0]]
        seen = served(f"r{number}", request_digest=f"{number:08d}", handles=handles, **fields)
        label, latest, known = repeats.weigh(latest, known, "reviewed", Label(badness=1.0), seen)
        assert label.session == (NO_PAST if number < 100 else sessions.Past(1.0, 1.0))
    alone = served("r", handles=handles[:2] if "purpose" in fields else handles[1:], **fields)
    assert repeats.weigh({}, {}, "reviewed", Label(badness=1.0), alone)[0].session is None


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
    for share, count in ((0.04, 300), (0.3, 100)):
        traffic = labelled_traffic(errors(share, count))
        for number, (_, seen) in enumerate(traffic[0]):
            seen.handles = ["the-session"]
            if count == 100:
                seen.request_digest = f"{number % 10:08d}"
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


def judge_sessions(alike: float, seed: int, rate: float = 0.05, count: int = 2_000) -> tuple[LabelSignal, float]:
    """A signal after sessions of 25 labels whose errors have this correlation, and its largest evidence."""
    draw, signal = (
        random.Random(seed),
        label_signal.start(100, V3).hold_against(declare_rate(0.05, 1.0, "admin", "known")),
    )
    past, error = NO_PAST, 0.0
    for number in range(count):
        if number % 25 == 0:
            certainty = 1.0 / alike - 1.0 if alike else 1e9
            past, error = NO_PAST, draw.betavariate(rate * certainty, (1.0 - rate) * certainty)
        badness = float(draw.random() < error)
        label = Label(badness=badness, trusted=True, weight=0.5 if past.labels else 1.0, session=past)
        signal, past = signal.take(label, 600.0 * number, ROLL, False), past.add(badness)
    assert signal.guard is not None
    return signal, signal.guard.detectors.log_max


def test_bad_sessions_are_no_slip_however_long_they_are() -> None:
    ends = [judge_sessions(0.25, seed) for seed in range(12)]
    assert sum(log_max >= math.log(200_000) for _, log_max in ends) <= 1
    assert 0.1 < statistics.median(sessions.find_correlation(signal.likeness) for signal, _ in ends) < 0.4


def test_sessions_of_independent_labels_are_not_alike_and_a_slip_in_them_is_found() -> None:
    steady = [sessions.find_correlation(judge_sessions(0.0, seed)[0].likeness) for seed in range(12)]
    assert statistics.median(steady) < 0.005
    assert all(judge_sessions(0.0, seed, rate=0.15)[1] >= math.log(200_000) for seed in range(12))


def liken(labels: list[list[float]]) -> sessions.Alike:
    """The likeness after these labels, session by session."""
    likeness = sessions.Likeness()
    for session in labels:
        past = NO_PAST
        for badness in session:
            likeness, past = sessions.observe(likeness, badness, past, (), guards.GROUPS), past.add(badness)
    return likeness.whole


@pytest.mark.parametrize(("sessions_each", "labels_each"), [(1, 400), (100, 4), (4, 100)])
def test_independent_labels_show_no_likeness_on_average_in_one_session_and_in_many(
    sessions_each: int, labels_each: int
) -> None:
    draw, ends = random.Random(4), list[sessions.Alike]()
    for _ in range(300):
        ends.append(liken([[float(draw.random() < 0.2) for _ in range(labels_each)] for _ in range(sessions_each)]))
    together = [(end.products - end.wrong * end.before / end.labels) / 0.16 for end in ends]
    assert abs(statistics.fmean(together)) < 1.0 + 3.0 * math.sqrt(ends[0].chance / 300)
    assert statistics.stdev(together) < 1.1 * math.sqrt(ends[0].chance)
    assert statistics.fmean(end.find_correlation() for end in ends) < 0.006


def test_likeness_is_the_correlation_of_two_labels_of_a_session() -> None:
    draw, found = random.Random(5), list[float]()
    for _ in range(20):
        errors = [draw.betavariate(0.05 * 9.0, 0.95 * 9.0) for _ in range(800)]
        found.append(liken([[float(draw.random() < error) for _ in range(10)] for error in errors]).find_correlation())
    assert 0.08 < statistics.fmean(found) < 0.105


def test_many_labels_fade_and_keep_their_correlation() -> None:
    alike = liken([[1.0] * 4, [0.0] * 36] * 1_000)
    assert sessions.COUNTED_MAX / 2 < alike.labels <= sessions.COUNTED_MAX
    assert alike.find_correlation() == pytest.approx(liken([[1.0] * 4, [0.0] * 36] * 800).find_correlation(), rel=0.03)


def test_next_label_of_a_session_is_held_against_its_past() -> None:
    assert sessions.find_times(0.1, sessions.Past(1.0, 1.0), 0.05) == (9.0 + 20.0) / 10.0
    assert sessions.find_times(0.1, None, 0.05) == sessions.find_times(0.1, NO_PAST, 0.05) == 1.0


@pytest.mark.parametrize(("past", "is_under"), [(sessions.Past(100.0, 0.0), True), (sessions.Past(10.0, 1.0), False)])
def test_label_of_a_good_session_is_held_against_a_little_less(past: sessions.Past, is_under: bool) -> None:
    likeness = sessions.Likeness(sessions.Alike(2_000.0, 200.0, 200.0, 200.0, 50.0))
    guard, label = guards.start(0.05, V3), Label(badness=1.0, trusted=True, session=past)
    found = label_evidence.observe_label(guard, label, 0.0, ROLL, dependence.PLAIN, likeness)
    times = max(0.7, sessions.find_times(sessions.find_correlation(likeness), past, 0.05))
    assert (times < 1.0) == is_under
    expected = guards.observe(guard, 1.0, "", True, terms=dependence.PLAIN._replace(times=times))
    assert found.detectors.log_now == expected.detectors.log_now


def test_nobody_makes_sessions_alike_for_others() -> None:
    likeness = sessions.Likeness()
    for session in range(40):
        for own in (0, 1):
            past = NO_PAST
            for number in range(10):
                badness = float(session % 2 if own == 0 else number == 4)
                likeness = sessions.observe(likeness, badness, past, (own,), guards.GROUPS)
                past = past.add(badness)
    assert likeness.whole.find_correlation() > 0.1
    assert sessions.find_correlation(likeness) < 0.01


def test_a_watch_keeps_the_labels_of_the_latest_sessions() -> None:
    kept: repeats.Sessions = {}
    for number in range(300):
        kept = repeats.add_badness(kept, ("input", f"session{number // 2}", "tenant"), 1.0)
    assert len(kept) == repeats.SESSIONS
    assert kept["tenant"].labels == sessions.LABELS_MAX
    assert repeats.find_past(kept, ("input", "session0")) == NO_PAST
    assert repeats.find_past(kept, ("input", "session149")) == sessions.Past(2.0, 2.0)
    assert repeats.find_past(kept, ("input",)) is None


def judge_each(labels: list[tuple[str, float]], before: LabelSignal | None = None) -> LabelSignal:
    """A signal compared with 5% after these labels, each of a session by its name."""
    signal = before or label_signal.start(100, V3).hold_against(declare_rate(0.05, 1.0, "admin", "known"))
    pasts: repeats.Sessions = {}
    for number, (session, badness) in enumerate(labels):
        past = pasts.get(session, NO_PAST)
        label = Label(badness=badness, trusted=True, weight=0.5 if past.labels else 1.0, session=past)
        signal = signal.take(label, 90_000.0 * (signal.labels + 1 + number / 1e6), ROLL, False)
        pasts[session] = past.add(badness)
    return signal


def test_evidence_of_one_session_is_a_doubt_until_another_shows_it_too() -> None:
    steady = [(f"s{number}", float(number % 20 == 7)) for number in range(80)]
    signal = judge_each(steady)
    assert signal.find_doubt(0, 200.0, 0.05) is None
    signal = judge_each([("bad", 1.0)] * 40, signal)
    assert signal.alarms(0, 200.0, 0.05)
    assert signal.find_doubt(0, 200.0, 0.05) == "one_session"
    signal = judge_each([("good", 0.0)] * 8, signal)
    assert signal.find_doubt(0, 200.0, 0.05) == "one_session", "the evidence was largest before"
    signal = judge_each([("worse", 1.0)] * 25, signal)
    assert signal.alarms(0, 200.0, 0.05)
    assert signal.find_doubt(0, 200.0, 0.05) is None


@pytest.mark.parametrize("named", ["all", "of 100"])
def test_sessions_that_are_shown_to_be_unlike_raise_no_doubt(named: str) -> None:
    draw, found = random.Random(8), 0
    for _ in range(12):
        labels = [
            (named if named == "all" else f"s{number // 100}", float(draw.random() < 0.05)) for number in range(800)
        ]
        signal = judge_each([*labels, *[(labels[-1][0], float(draw.random() < 0.5)) for _ in range(60)]])
        found += signal.alarms(0, 10_000.0, 0.05) and signal.find_doubt(0, 10_000.0, 0.05) is None
    assert found >= 11
