"""Thresholds that do not come down to old evidence, labels that count since a detector began, and the way back."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from monitoring.quality.detectors import guards, leave_one_out
from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.detectors.recent_values import Rate
from monitoring.quality.signals import entries, label_signal, version_watch
from monitoring.quality.signals.noted_pairs import NotedPair
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.version_judgement import Budget, judge
from tests.monitoring.quality.reckoned import DAY, GATE, HELD, Told, beside_general, shadowed, task_step
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.traffic import (
    MORNING,
    PLAN,
    V2,
    V3,
    at,
    errors,
    held_out,
    labelled_traffic,
    said,
    served,
    shadow,
    step,
)

# ---- thresholds ----------------------------------------------------------------------------------


def test_once_labels_stop_old_evidence_alarms_in_no_healthy_version() -> None:
    """At the bound itself, which is the worst that counts as healthy; and then eight days without a label."""
    held = {V3: {"feedback": declare_rate(0.05, 1.0, "admin", "known")}}
    for seed in range(6):
        told = Told(held)
        told.take(labelled_traffic(errors(0.05, 1000, seed), every_seconds=86.4, caller=lambda _: "only"))
        busy = told.stream("feedback")
        told.day += 40.0
        silent = told.stream("feedback")
        assert silent.threshold == busy.threshold > 10_000
        assert not silent.alarming


def test_a_real_alarm_stands_when_labels_stop() -> None:
    traffic = labelled_traffic(errors(0.04, 600) + errors(0.3, 150, 2))
    for days in (1.0, 30.0):
        found = replay(*traffic, step(), MORNING + days * DAY, HELD)[V3]
        assert next(one for one in found.reports if one.signal == "feedback").alarming


def test_complaints_that_stop_bring_the_threshold_no_nearer() -> None:
    draw, records, feedback = random.Random(5), [], []
    for number in range(6000):
        name, when = f"c{number}", number * 30.0
        records.append((at(when), served(name, f"shop{number % 4}")))
        if draw.random() < 0.1:
            feedback.append((at(when + 60), said(name, True, f"shop{number % 4}", metric="complaint")))
    thresholds = [
        next(one.threshold for one in replay(records, feedback, step(), MORNING + days * DAY)[V3].reports)
        for days in (2.1, 30.0)
    ]
    assert thresholds[0] > 200
    assert thresholds[1] == thresholds[0]


# ---- labels since the detector began ---------------------------------------------------------------


def test_labels_from_before_the_detector_began_are_not_labels_enough() -> None:
    """Its own first labels are not evidence against it: twenty more have to come."""
    first = labelled_traffic(errors(0.0, 200))
    for more, alarming in ((19, False), (20, True)):
        bad = labelled_traffic([True] * more, begin=200)
        found = replay(first[0] + bad[0], first[1] + bad[1], task_step(), MORNING + DAY)[V3]
        assert next(one for one in found.reports if one.signal == "feedback").alarming is alarming


def test_after_a_recovery_labels_have_to_come_anew() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.4, 200)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.02, 200, 2)))
    told.tell("healthy")
    told.take(labelled_traffic([True] * 19))
    assert not told.stream("feedback").alarming
    told.take(labelled_traffic([True] * 20))
    assert told.stream("feedback").alarming


# ---- what else is not evidence ----------------------------------------------------------------------


def test_late_labels_of_the_bad_time_are_no_evidence_after_the_recovery() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.4, 200)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.02, 200, 2)))
    old = [msgspec.structs.replace(served(f"late-{n}", f"shop{n % 3}"), placed_at=MORNING) for n in range(100)]
    told.tell("healthy")
    before = told.judged().labels
    for number, seen in enumerate(old):
        tags = {"kind": "toys"}
        given = said(seen.id, False, seen.caller, tags=tags)
        told.watches.take_feedback(given, seen, told.now + number)
    assert told.judged().labels == before + 100
    assert not any(one.alarming or one.e_value for one in told.judged().reports if one.signal == "feedback")
    told.take(labelled_traffic([True] * 40))
    found = told.stream("feedback")
    assert found.alarming
    assert found.since is not None
    assert found.since >= told.now - DAY


def test_one_caller_who_spoils_the_first_labels_hides_no_slip() -> None:
    """It gives half of them, all bad; the baseline is what the others say, for this version and for the next."""

    def caller(number: int) -> str:
        return "spoiler" if number % 2 else f"shop{number % 8}"

    first = labelled_traffic([bad or number % 2 == 1 for number, bad in enumerate(errors(0.05, 200))], caller=caller)
    told = Told({V3: {}})
    told.take(first)
    assert told.stream("feedback").baseline["upper"] < 0.21
    previous = told.watches.by_version[V3].feedback.make_baseline(1.0, "monitor", V3)
    assert previous is not None
    assert previous.upper < 0.21
    told.take(labelled_traffic(errors(0.4, 250, 2)))
    assert told.stream("feedback").alarming


def test_bound_of_first_labels_is_too_low_once_in_100_at_most_whoever_is_left_out() -> None:
    """The least of nine bounds of 99% was so in more than two of a hundred."""
    under, runs, roll = 0, 700, guards.start_roll(V3)
    for number in range(8):
        roll = leave_one_out.add_request(roll, f"shop{number}")
    for run in range(runs):
        draw = random.Random(f"first {run}")
        parts = [[float(draw.random() < 0.15) for _ in range(25 - (place == 7))] for place in range(8)]
        track = msgspec.structs.replace(
            label_signal.start(200, V3),
            first=199,
            first_wrong=sum(sum(part) for part in parts),
            firsts=tuple((len(part), sum(part)) for part in parts),
        )
        last = entries.Label(badness=float(draw.random() < 0.15), caller="shop7")
        track = track.take(last, 0.0, roll, False)
        assert track.baseline is not None
        under += track.baseline.upper < 0.15
    assert under <= 0.01 * runs + 3.1 * math.sqrt(0.01 * runs)


def test_a_caller_who_reports_only_what_went_wrong_loses_no_label_and_no_baseline() -> None:
    """Repeats weigh a third or a fifth: what is left without the other callers is rounded, and all of it is wrong."""
    roll, draw = guards.start_roll(V3), random.Random(1)
    for number in range(160):
        roll = leave_one_out.add_request(roll, ("complainer", "shop")[number % 2], float(number))
    track = label_signal.start(100, V3)
    for number in range(600):
        caller, weight = ("complainer", "shop")[number % 2], 1.0 / draw.randint(1, 5)
        bad = caller == "complainer" or draw.random() < 0.1
        label = entries.Label(badness=float(bad), caller=caller, weight=weight)
        track = track.take(label, 60.0 * number, roll, False)
        if number % 20 == 0:
            assert track.make_baseline(1.0, "monitor", V2) is not None
    assert track.labels == 600
    assert track.baseline is not None


def test_a_version_whose_every_answer_is_wrong_is_judged_whatever_its_labels_weigh() -> None:
    fresh, first = version_watch.start(V3, "returns", "e"), 0.0
    for count in range(300):
        first += 1.0 / (1 + count % 5)
        wrong = msgspec.structs.replace(
            fresh.feedback,
            labels=count + 1,
            wrong=count + 1.0,
            first=first,
            first_wrong=first,
            rate=Rate(0.0, 60.0, 40.0),
        )
        budget = Budget(false_alarms_per_month=1.0, labelled=1, unlabelled=0)
        judgement = judge(msgspec.structs.replace(fresh, feedback=wrong), PLAN, budget, 3600.0)
        assert judgement.seconds_to_detect == {"5": None, "10": None}


def test_the_mix_of_who_answers_makes_no_difference_between_arms() -> None:
    """Both arms are wrong equally often; later the version answers more. Labels are of the answer that was given."""
    draw, records, feedback = random.Random(2), [], []
    for number in range(800):
        name, when = f"p{number}", number * 60.0
        ours = draw.random() < (0.1 if number < 300 else 0.9)
        who = served(name, f"shop{number % 3}") if ours else held_out(name, f"shop{number % 3}")
        pair = {"digest": f"a{draw.random()}", "served_digest": f"b{draw.random()}"}
        pair |= {"version": V3, "arm": "general"} if ours else {"version": "", "arm": "version"}
        other = shadow(name, pair=pair, version=None if ours else V3)
        records += [(at(when), who), (at(when + 1), other)]
        feedback.append((at(when + 30), said(name, draw.random() >= 0.3, f"shop{number % 3}")))
    found = replay(records, feedback, task_step(), MORNING + DAY)[V3]
    assert not any(one.signal == "shadow" for one in found.reports)
    judged = [
        (name, msgspec.structs.replace(one, demonstration_digests={"normal": f"c{name}"})) for name, one in feedback
    ]
    (both,) = [one for one in replay(records, judged, task_step(), MORNING + DAY)[V3].reports if one.signal == "shadow"]
    assert (both.observed, both.estimate, both.alarming) == (800, 0.0, False)


def test_a_feedback_moves_all_its_watches_or_none() -> None:
    """The second version's state is damaged: the first has not counted what its note does not know."""
    told = Told()
    told.take(labelled_traffic([False] * 3))
    seen = served("r9", placed_at=told.now)
    noted = NotedPair(shadow=V2, served=V3, counted={V2: 0.0})
    told.watches.notes["r9"] = Note(epoch="e", pairs=(noted,))
    damaged = version_watch.start(V2, "returns", "e")
    told.watches.by_version[V2] = msgspec.structs.replace(damaged, previous_version="damaged")
    with pytest.raises(AttributeError):
        told.watches.take_feedback(said("r9", True), seen, told.now)
    assert told.watches.by_version[V3].labels == 3
    assert not told.watches.notes["r9"].given


# ---- answers -----------------------------------------------------------------------------------------


def test_while_a_stream_alarms_its_estimate_is_of_the_time_since_its_evidence_began() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.04, 600)))
    told.take(labelled_traffic([number % 20 < 7 for number in range(120)]))
    found = told.stream("feedback")
    assert found.alarming
    assert found.estimate == pytest.approx(0.35, abs=0.06), "42 of the last 120"
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.35 < found.high
    assert found.high - found.low < 0.25


def test_the_estimate_is_of_the_latest_again_once_the_evidence_is_gone() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.04, 300)))
    told.take(labelled_traffic(errors(0.5, 100)))
    told.take(labelled_traffic(errors(0.02, 1500, 2)))
    found = told.stream("feedback")
    assert found.alarming
    assert found.estimate == pytest.approx(0.02, abs=0.02)


def test_what_was_held_out_is_told_no_more_once_nothing_is() -> None:
    told = Told()
    told.take(beside_general(0.05, 300))
    assert told.stream("holdout").observed > 100
    told.take(labelled_traffic(errors(0.04, 150)))
    assert told.stream("holdout").observed > 100, "it is as new as the labels of which feedback's share lately is"
    told.take(labelled_traffic(errors(0.04, 150)))
    assert not any(one.signal == "holdout" for one in told.judged().reports)


def test_shadows_are_counted_whether_they_cost_anything_or_not() -> None:
    told = Told()
    told.take(shadowed(0.05))
    assert told.judged().shadows == 150
    records, _ = shadowed(0.05)
    told.take(([(name, msgspec.structs.replace(one, cost_usd=None)) for name, one in records], []))
    found = told.judged()
    assert found.shadows == 300
    assert found.shadow_usd == pytest.approx(0.3)


def test_the_upper_end_without_one_is_that_of_what_the_others_say() -> None:
    """One of five gives half of the labels, all good; the others find a fifth wrong."""

    def caller(number: int) -> str:
        return "praises" if number % 2 else f"shop{number % 8}"

    told = Told()
    told.take(labelled_traffic([n % 2 == 0 and n % 5 == 0 for n in range(400)], caller=caller))
    found = told.stream("feedback")
    assert found.high is not None
    assert found.high_without_one is not None
    assert found.high < 0.16 < 0.2 < found.high_without_one < 0.35
    alone = Told()
    alone.take(labelled_traffic(errors(0.05, 200), caller=lambda _: "only"))
    assert alone.stream("feedback").high_without_one == alone.stream("feedback").high
    reviewed = Told({V3: {"reviewed": GATE}})
    reviewed.take(labelled_traffic(errors(0.05, 200), reviewed=True))
    assert reviewed.stream("reviewed").high_without_one == reviewed.stream("reviewed").high
    quiet = Told()
    quiet.take(labelled_traffic(errors(0.05, 200), caller=lambda _: "labels"))
    quiet.take((labelled_traffic(errors(0.05, 200), caller=lambda _: "only asks")[0], []))
    assert quiet.stream("feedback").high_without_one == 1.0
