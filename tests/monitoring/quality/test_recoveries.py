"""Recoveries, and what is none: old requests, an admin's verdict, an older verdict, another baseline."""

from __future__ import annotations

import heapq
import random

import msgspec
import pytest

from monitoring.quality.detectors import recoveries
from monitoring.quality.detectors.baselines import declare_rate, measure
from monitoring.quality.phases import Judged, Phase, Verdict, next_phase
from monitoring.quality.signals import complaint_signal, pair_signal, signal_changes, version_watch
from monitoring.quality.signals.entries import RecordEntry
from monitoring.quality.signals.saved_watches import read_watch
from monitoring.quality.signals.version_watch import Watch
from tests.monitoring.quality.reckoned import (
    DAY,
    GATE,
    HELD,
    Told,
    beside_general,
    complained,
    shadowed,
    task_step,
    together,
)
from tests.monitoring.quality.traffic import MORNING, PLAN, V3, errors, labelled_traffic, said, served, step

HOUR = 3600.0

# ---- requests from before the verdict ---------------------------------------------------------------


def _heard(told: Told, days: range, bad: bool, placed_day: float) -> None:
    """50 labels a day, of requests that were all placed on that day."""
    for day in days:
        for number in range(50):
            name, at = f"q{placed_day}-{day}-{number}", MORNING + day * DAY + number * 60.0
            one = msgspec.structs.replace(served(name, f"shop{number % 3}"), placed_at=MORNING + placed_day * DAY)
            told.watches.take_record(one, one.placed_at)
            told.watches.take_feedback(said(name, not bad, f"shop{number % 3}", tags={"kind": "toys"}), one, at)


def test_late_praise_of_requests_from_before_the_verdict_is_no_recovery() -> None:
    told = Told()
    _heard(told, range(4), True, 0.0)
    told.day = 4.0
    told.tell("degraded")
    _heard(told, range(5, 13), False, 3.0)
    found = told.stream("feedback")
    assert (found.observed, found.recovered) == (600.0, False)
    track = told.watches.by_version[V3].feedback
    assert track.guard is not None
    assert track.guard.detectors.whole.observed == 600, "its detector goes on"
    _heard(told, range(13, 17), False, 5.0)
    assert told.stream("feedback").recovered


def test_late_praise_after_shifted_traffic_is_no_recovery_of_a_lasting_slip() -> None:
    """Errors are told after an hour, praise after a day; once the version has a share only, old praise outweighs."""
    draw, told, due, found = random.Random(1), Told(), list[tuple[float, int, str, bool]](), []
    placed = {}
    for hour in range(24 * 12):
        now, bad_from = MORNING + hour * HOUR, 24 * 6
        kept = 1.0 if hour < bad_from + 6 else 0.1
        if hour == bad_from + 6:
            told.day = hour / 24
            told.tell("degraded")
        for number in range(40):
            if draw.random() > kept:
                continue
            name, at = f"s{hour}-{number}", now + number * 90.0
            placed[name] = msgspec.structs.replace(served(name, f"shop{number % 5}"), placed_at=at)
            bad = draw.random() < (0.05 if hour < bad_from else 0.25)
            delay = draw.expovariate(1 / ((1.0 if bad else 24.0) * HOUR))
            heapq.heappush(due, (at + delay, len(placed), name, bad))
        for one in list(placed.values())[-40:]:
            if one.placed_at >= now:
                told.watches.take_record(one, one.placed_at)
        while due and due[0][0] <= now + HOUR:
            at, _, name, bad = heapq.heappop(due)
            told.watches.take_feedback(said(name, not bad, placed[name].caller), placed[name], at)
        if hour >= bad_from + 6:
            told.day = (hour + 1) / 24
            found.append(told.stream("feedback").recovered)
    assert not any(found)


def test_late_praise_from_before_the_last_step_of_the_share_is_no_recovery() -> None:
    told = Told()
    _heard(told, range(4), True, 0.0)
    told.day = 4.0
    told.tell("degraded")
    since = told.now
    told.step = msgspec.structs.replace(
        told.step, versions={V3: msgspec.structs.replace(told.step.versions[V3], stepped_at=since + DAY)}
    )
    told.watches.begin(told.step, told.baselines)
    _heard(told, range(6, 12), False, 4.5)
    assert not told.stream("feedback").recovered
    _heard(told, range(12, 18), False, 5.5)
    assert told.stream("feedback").recovered


def test_pairs_about_requests_from_before_the_verdict_are_no_recovery() -> None:
    for early, recovered in ((True, False), (False, True)):
        track = pair_signal.start("v").hold_against(declare_rate(0.05, 1.0, "admin", "word"))
        for number in range(60):
            track = track.take_pair(1.0, 0.0, (f"shop{number % 3}",), float(number), None)
        track = track.begin_reverse_test()
        for number in range(60, 260):
            shop = f"shop{number % 3}"
            track = track.take_pair(0.0, 0.0, (shop,), float(number), None, is_degraded=True, predates_test=early)
        assert track.detectors is not None
        assert track.detectors.whole.observed == 260
        assert track.has_recovered is recovered


def test_a_pair_of_two_labels_is_as_old_as_its_older_request() -> None:
    track = pair_signal.start("v").hold_against(declare_rate(0.05, 1.0, "admin", "word"))
    track = track.take_label(True, 0.0, "a", 1.0, None, placed_at=1.0)
    track = track.begin_reverse_test()
    track = track.take_label(False, 0.0, "b", 20.0, None, is_degraded=True, placed_at=15.0, tested_from=10.0)
    assert track.reverse is not None
    assert (track.pairs, track.reverse.whole.observed) == (1, 0)
    track = track.take_label(True, 0.0, "a", 21.0, None, is_degraded=True, placed_at=16.0, tested_from=10.0)
    track = track.take_label(False, 0.0, "b", 22.0, None, is_degraded=True, placed_at=17.0, tested_from=10.0)
    assert track.reverse is not None
    assert (track.pairs, track.reverse.whole.observed) == (2, 1)
    assert (track.waiting, track.other_waiting, track.placed, track.other_placed) == ((), (), (), ())


def test_labels_that_wait_are_dropped_with_a_recovery() -> None:
    track = pair_signal.start("v").hold_against(declare_rate(0.05, 1.0, "admin", "word"))
    for _ in range(6):
        track = track.take_label(True, 1.0, "a", 1.0, None, is_degraded=True)
    assert len(track.waiting) == pair_signal.WAITING_MAX
    assert track.restart().waiting == ()
    assert pair_signal.start("v").take_label(False, 1.0, "a", 1.0, None).restart().other_waiting == ()


# ---- what is not a recovery ----------------------------------------------------------------------------


def _counts(told: Told) -> tuple[int, int, int]:
    of = told.watches.by_version[V3]
    assert of.complaints is not None
    return of.feedback.recoveries, of.shadow.recoveries, of.complaints.recoveries


def _bad(told: Told) -> None:
    told.take(together(labelled_traffic(errors(0.5, 200)), shadowed(0.1), complained(0.3)))


def test_an_admins_word_is_no_recovery_and_throws_no_evidence_away() -> None:
    told = Told(step=step(PLAN))
    _bad(told)
    told.tell("degraded")
    before = told.stream("feedback")
    told.tell("healthy", pinned=True)
    assert _counts(told) == (0, 0, 0)
    assert told.stream("feedback") == before
    assert told.watches.by_version[V3].course.restarted_at == 0.0
    told.tell("degraded")
    assert _counts(told) == (0, 0, 0)


@pytest.mark.parametrize("verdict", ["healthy", "suspect"])
def test_once_a_pin_is_over_what_has_not_recovered_still_speaks_against_it(verdict: str) -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    told.tell("degraded")
    told.tell(verdict, pinned=True)
    told.take(labelled_traffic(errors(0.5, 100, 2)))
    _release(told)
    found = told.stream("feedback")
    assert (found.alarming, found.recovered) == (True, False)
    assert told.watches.by_version[V3].feedback.reverse is None


def test_labels_from_before_an_ended_pin_are_evidence_where_nothing_recovered() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 100)))
    told.tell("degraded")
    told.day += 1.0
    told.tell("healthy", pinned=True)
    _release(told)
    assert told.watches.by_version[V3].course.restarted_at == 0.0
    _heard(told, range(3, 4), True, 1.5)
    track = told.watches.by_version[V3].feedback
    assert track.guard is not None
    assert track.guard.detectors.whole.observed == 150


def test_once_a_pin_is_over_what_has_recovered_meanwhile_begins_anew() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    told.tell("degraded")
    told.tell("healthy", pinned=True)
    told.take(labelled_traffic(errors(0.03, 300, 2)))
    assert told.stream("feedback").recovered
    _release(told)
    found = told.stream("feedback")
    assert (found.alarming, found.recovered, found.e_value) == (False, False, 0.0)
    known = told.watches.by_version[V3]
    assert (known.feedback.recoveries, known.course.restarted_at) == (1, told.step.versions[V3].since)


def test_the_end_of_an_admins_degraded_is_no_recovery_and_throws_no_evidence_away() -> None:
    told = Told(step=step(PLAN))
    told.take(together(labelled_traffic(errors(0.08, 300)), shadowed(0.05), complained(0.3)))
    before, watched = told.judged().reports, told.watches.by_version[V3]
    for _ in range(3):
        told.tell("degraded", pinned=True)
        assert told.watches.by_version[V3].feedback.reverse is not None
        told.tell("healthy")
    assert told.judged().reports == before
    known = told.watches.by_version[V3]
    assert (_counts(told), known.course.restarted_at, known.course.phase.verdict) == ((0, 0, 0), 0.0, "healthy")
    assert (known.feedback, known.shadow) == (watched.feedback, watched.shadow)


def test_an_admins_degraded_that_the_monitor_takes_over_ends_with_a_recovery() -> None:
    told = Told()
    told.tell("degraded", pinned=True)
    told.take(labelled_traffic(errors(0.5, 200)))
    assert told.stream("feedback").alarming
    _release(told)
    told.take(labelled_traffic(errors(0.03, 300, 2)))
    assert told.stream("feedback").recovered
    told.tell("healthy")
    assert told.stream("feedback").e_value == 0.0
    assert told.watches.by_version[V3].feedback.recoveries == 1


def test_an_admins_degraded_of_which_streams_have_alarmed_is_the_monitors_too() -> None:
    """A pin that is over once these have recovered: it is healthy at once, and that is a recovery."""
    told = Told()
    told.tell("degraded", pinned=True)
    since = told.now
    told.take(labelled_traffic(errors(0.5, 200)))
    assert told.stream("feedback").alarming
    told.move(phase=next_phase(told.step.versions[V3].phase, Judged("degraded")))
    assert told.watches.by_version[V3].course.since == since
    told.take(labelled_traffic(errors(0.03, 300, 2)))
    assert told.stream("feedback").recovered
    told.tell("healthy")
    assert told.stream("feedback").e_value == 0.0
    assert told.watches.by_version[V3].feedback.recoveries == 1


def test_repeated_admin_verdicts_leave_evidence_and_reverse_tests_unchanged() -> None:
    """Degraded by the monitor, pinned as healthy, as degraded, and released."""
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.5, 20, 2)))
    before = told.watches.by_version[V3].feedback
    for verdict in ("healthy", "degraded", "healthy", "degraded"):
        told.tell(verdict, pinned=True)
        assert told.watches.by_version[V3].feedback == before
    told.tell("healthy")
    assert told.stream("feedback").alarming
    assert told.watches.by_version[V3].feedback == msgspec.structs.replace(before, reverse=None, reverse_bound=0.0)


def test_complaints_that_were_being_learned_are_learned_on_after_an_admins_degraded() -> None:
    """As if the time between had not been: nothing of it is learned, and no request waits for complaints in it."""
    told, other = Told({V3: {}}, step(PLAN)), Told({V3: {}}, step(PLAN))
    for one in (told, other):
        _complained_in_turn(one, 0.2)
    told.tell("degraded", pinned=True)
    told.judged()
    _complained_in_turn(told, 0.9)
    told.tell("healthy")
    track = told.watches.by_version[V3].complaints
    assert track is not None
    reference = track.detectors.whole.learning
    assert reference is not None
    assert 250 < reference.complaints < 330
    assert reference.ended - reference.began < DAY + HOUR
    for one in (told, other):
        for _ in range(7):
            _complained_in_turn(one, 0.2)
    found, usual = told.stream("complaints").baseline["rate"], other.stream("complaints").baseline["rate"]
    assert found == pytest.approx(usual, rel=0.05)


def _complained_in_turn(told: Told, rate: float) -> None:
    """A day of requests of which so many are complained about after some minutes, each entry at its time."""
    draw, due = random.Random(4), list[RecordEntry]()
    for number in range(1440):
        one = msgspec.structs.replace(served(f"c{number}-{told.day}", f"shop{number % 3}"), placed_at=told.now)
        told.watches.take_record(one, told.now)
        due.append(one)
        if number >= 10 and draw.random() < rate:
            told.watches.take_feedback(said(due[-11].id, True, due[-11].caller, metric="complaint"), due[-11], told.now)
        told.day += 1 / 1440


def test_labels_of_the_degraded_time_before_an_admin_verdict_add_no_recovery() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    _recover(told)
    told.take(labelled_traffic(errors(0.5, 100, 2)))
    told.tell("degraded")
    for day in range(5):
        told.take(labelled_traffic(errors(0.5, 400, day)))
    told.tell("healthy", pinned=True)
    told.take(labelled_traffic(errors(0.5, 400, 6)))
    _release(told)
    told.day += 0.1
    told.tell("degraded")
    assert told.watches.by_version[V3].feedback.recoveries == 1


def test_pairs_of_while_it_was_degraded_are_none_for_which_a_recovery_stood() -> None:
    track = pair_signal.start("v").hold_against(declare_rate(0.05, 1.0, "admin", "word"))
    track = msgspec.structs.replace(track, recoveries=1)
    for count, of_these, is_degraded in ((1, 100, False), (1, 1000, True), (1, 600, False), (0, 100, False)):
        track = track.end_reverse_test()
        for number in range(of_these):
            track = track.take_pair(1.0, 0.0, ("shop",), float(number), None, is_degraded=is_degraded)
        track = track.begin_reverse_test(recoveries.HOLDS_SECONDS)
        assert track.recoveries == count


def test_a_reverse_test_that_begins_again_forgives_no_second_recovery() -> None:
    told = Told({V3: {"feedback": GATE}})
    told.take(together(labelled_traffic(errors(0.1, 300)), shadowed(0.1)))
    watch = told.watches.by_version[V3]
    for track in (watch.feedback, watch.shadow):
        stood = msgspec.structs.replace(track, recoveries=2, apart=-10_000)  # it has held for long
        first = stood.begin_reverse_test(recoveries.HOLDS_SECONDS)
        assert (first.recoveries, first.begin_reverse_test(recoveries.HOLDS_SECONDS).recoveries) == (1, 1)


def test_complaints_of_while_it_was_degraded_are_none_for_which_a_recovery_stood() -> None:
    told = Told({V3: {}}, step(PLAN))
    for _ in range(8):
        _complained_in_turn(told, 0.3)
    before = told.watches.by_version[V3]
    assert before.complaints is not None
    track = complaint_signal.start(V3, told.now, before.complaints.detectors.whole.learned)
    known = msgspec.structs.replace(before, complaints=msgspec.structs.replace(track, recoveries=1))
    told.watches.by_version[V3] = known
    told.tell("degraded")
    for _ in range(4):
        _complained_in_turn(told, 0.6)
    told.tell("healthy", pinned=True)
    _release(told)
    told.day += 0.1
    told.tell("degraded")
    track = told.watches.by_version[V3].complaints or track
    assert (track.recoveries, track.detectors.whole.expected > 800) == (1, True)
    told.tell("healthy", pinned=True)
    _release(told)
    for _ in range(14):
        _complained_in_turn(told, 0.3)
    told.tell("degraded")
    assert (told.watches.by_version[V3].complaints or track).recoveries == 0


def test_recovery_of_complaints_is_forgiven_by_time_and_not_by_one_busy_day() -> None:
    told = Told({V3: {}}, step(PLAN))
    for _ in range(8):
        _complained_in_turn(told, 0.3)
    known = told.watches.by_version[V3].complaints
    assert known is not None
    learned = known.detectors.whole.learned
    track = complaint_signal.start(V3, told.now, learned)
    enough = msgspec.structs.replace(track.detectors.whole, expected=1e6)
    detectors = msgspec.structs.replace(track.detectors, whole=enough)
    track = msgspec.structs.replace(track, recoveries=1, recovered_at=told.now, detectors=detectors)
    for days, count in ((1.0, 1), (29.0, 1), (30.0, 0)):
        assert track.begin_reverse_test(told.now + days * DAY).recoveries == count
    few = msgspec.structs.replace(track.detectors.whole, expected=recoveries.count_asked(1))
    detectors = msgspec.structs.replace(track.detectors, whole=few)
    track = msgspec.structs.replace(track, detectors=detectors)
    assert track.begin_reverse_test(told.now + 30.0 * DAY).recoveries == 1, "days differ: more are asked for"


def test_a_stream_that_has_shown_no_recovery_counts_none() -> None:
    told = Told({V3: {"feedback": GATE, "reviewed": GATE}})
    told.take(together(labelled_traffic(errors(0.5, 200)), shadowed(0.1)))
    told.take(labelled_traffic(errors(0.5, 60), reviewed=True))
    _recover(told)
    of = told.watches.by_version[V3]
    assert (of.feedback.recoveries, of.shadow.recoveries, of.reviewed.recoveries) == (1, 0, 0)
    assert told.stream("reviewed").e_value == 0.0, "it has begun anew all the same"


def _recover(told: Told) -> None:
    """Degraded, with good labels of callers, and healthy."""
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.03, 300, 5)))
    assert told.stream("feedback").recovered
    told.tell("healthy")


def _release(told: Told) -> None:
    """The verdict stays as it is pinned, since then, and is the monitor's again."""
    told.move(phase=Phase(own=told.step.versions[V3].phase.verdict))


def test_an_older_word_is_passed_over() -> None:
    told = signal_changes.hold_against(version_watch.start(V3, "returns", "e"), HELD[V3])
    words: list[tuple[Verdict, float]] = [("degraded", 100.0), ("healthy", 200.0), ("degraded", 300.0)]
    for verdict, since in words:
        told = signal_changes.follow(told, Phase(own=verdict), since)
    known = told
    older: list[tuple[Verdict, float]] = [("healthy", 200.0), ("degraded", 100.0), ("suspect", 0.0)]
    for verdict, since in older:
        told = signal_changes.follow(told, Phase(own=verdict), since)
    assert told is known
    assert (told.course.phase.verdict, told.course.restarted_at) == ("degraded", 200.0)


def test_baseline_of_an_unlabelled_signal_leaves_reverse_tests_and_their_count() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    _recover(told)
    told.take(labelled_traffic(errors(0.5, 200, 2)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.03, 100, 3)))
    before = told.watches.by_version[V3].feedback
    told.baselines = {V3: {"feedback": GATE, "latency": measure("admin", 1, 100, 5.0, "key", "accepted")}}
    told.tell("degraded")
    assert told.watches.by_version[V3].feedback == before
    assert before.recoveries == 1


def test_labels_while_degraded_are_none_for_which_a_recovery_stood() -> None:
    told = Told({V3: {"feedback": GATE, "reviewed": GATE}})
    told.take(labelled_traffic(errors(0.5, 200)))
    _recover(told)
    told.take(labelled_traffic(errors(0.5, 200, 2)))
    told.tell("degraded")
    for day in range(3):
        told.take(labelled_traffic(errors(0.5, 400, day)))
    assert told.watches.by_version[V3].feedback.guard is not None
    told.baselines = {V3: {"feedback": GATE, "reviewed": measure("gate", 30, 1000, 2.0, "gate", "evaluation-2")}}
    told.tell("degraded")
    assert told.watches.by_version[V3].feedback.recoveries == 1
    assert recoveries.count_left(1, 1_400.0, recoveries.HOLDS_SECONDS) == 0, "if they counted it would be forgotten"


def test_another_baseline_of_a_labelled_stream_begins_all_reverse_tests_anew() -> None:
    told = Told({V3: {"feedback": GATE, "reviewed": GATE}})
    told.take(labelled_traffic(errors(0.5, 200)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.03, 50, 3)))
    told.baselines = {V3: {"feedback": GATE, "reviewed": measure("gate", 30, 1000, 2.0, "gate", "evaluation-2")}}
    told.tell("degraded")
    track = told.watches.by_version[V3].feedback
    assert track.reverse is not None
    assert track.reverse.detectors.whole.observed == 0


def test_a_watch_of_before_is_read_and_goes_on() -> None:
    """Without what is kept since: of no label that waits it is known to be old."""
    told = Told({V3: {}}, task_step())
    told.take(beside_general(0.05, 300))
    told.tell("degraded")
    state = msgspec.to_builtins(told.watches.by_version[V3])
    del state["course"]
    for field in ("placed", "other_placed"):
        del state["holdout"][field]
    found = msgspec.convert(state, Watch)
    assert found.course.tested_from == 0.0
    told.watches.by_version[V3] = found
    told.take(beside_general(0.05, 50))
    assert told.watches.by_version[V3].holdout.pairs > found.holdout.pairs


def test_a_degraded_watch_of_before_goes_by_requests_from_after_its_verdict() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    told.tell("degraded")
    since = told.now
    state = msgspec.to_builtins(told.watches.by_version[V3])
    del state["course"]
    before, dropped = read_watch(msgspec.json.encode({**state, "told": "degraded", "told_since": since}))
    assert dropped == []
    told.watches.by_version[V3] = before
    told.watches.begin(told.step, told.baselines)
    assert told.watches.by_version[V3].course.tested_from == since
    told.watches.by_version[V3] = before
    told.move(stepped_at=since + HOUR)
    assert told.watches.by_version[V3].course.tested_from == since + HOUR
