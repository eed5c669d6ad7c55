from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from monitoring.quality.detectors.baselines import Baseline, declare_rate, measure
from monitoring.quality.phases import Phase
from monitoring.quality.signals import entries, request_notes, signal_changes, version_judgement, version_watch
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.signals.entries import Attempt, RecordedFinding
from monitoring.quality.signals.request_notes import Note
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import Judgement, TaskQuality
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.reckoned import BY_GATE, GATE, judged, stream, together
from tests.monitoring.quality.test_watch_complaints import complaint_traffic
from tests.monitoring.quality.traffic import (
    METRICS,
    MORNING,
    PLAN,
    V2,
    V3,
    Traffic,
    at,
    errors,
    held_out,
    labelled_traffic,
    paired_traffic,
    said,
    served,
    step,
)

# ---- labels --------------------------------------------------------------------------------------


def test_labels_that_get_worse_alarm_and_say_since_when() -> None:
    found = judged(labelled_traffic(errors(0.04, 600) + errors(0.3, 120, 2)))
    feedback = stream(found, "feedback")
    assert feedback.alarming
    assert feedback.e_value >= feedback.threshold
    assert feedback.since is not None
    assert abs(feedback.since - (MORNING + 600 * 60 + 600)) < 3600
    assert feedback.estimate is not None
    assert feedback.low is not None
    assert feedback.high is not None
    assert 0.04 < feedback.low < feedback.estimate < feedback.high < 0.4


def test_labels_that_stay_as_they_are_do_not() -> None:
    for seed in range(5):
        assert not any(one.alarming for one in judged(labelled_traffic(errors(0.04, 800, seed))).reports)


def test_nothing_alarms_below_the_least_number_of_labels() -> None:
    plan = msgspec.structs.replace(PLAN, labels_min=60)
    assert not stream(judged(labelled_traffic([True] * 59), step(plan)), "feedback").alarming
    assert stream(judged(labelled_traffic([True] * 60), step(plan)), "feedback").alarming


def test_without_a_baseline_nothing_is_claimed_until_its_own_first_labels_are_one() -> None:
    before = stream(judged(labelled_traffic(errors(0.5, 199)), baselines={V3: {}}), "feedback")
    assert (before.alarming, before.e_value, before.baseline) == (False, 0.0, {"labels": 199, "wanted": 200})
    after = stream(judged(labelled_traffic(errors(0.05, 200), caller=_only), baselines={V3: {}}), "feedback")
    assert (after.baseline["kind"], after.baseline["of"]) == ("own", 200)
    assert after.baseline["upper"] > after.baseline["rate"]


def test_the_version_before_is_the_baseline_of_feedback_once_it_has_labels_enough() -> None:
    both = step(v2=WatchedVersion(task="returns", state="previous_version"), v3=_next_to_v2())
    for count, kind in ((199, None), (200, "previous")):
        records, feedback = labelled_traffic(errors(0.1, count), caller=_only)
        earlier = [
            (name, msgspec.structs.replace(one, version=V2, led_to=V2, attempts=[Attempt(V2)])) for name, one in records
        ]
        own = labelled_traffic(errors(0.1, 30, 2), begin=1000)
        found = stream(judged(together((earlier, feedback), own), both, {V3: {}}), "feedback")
        assert found.baseline.get("kind") == kind
        if kind:
            assert (found.baseline["source"], found.baseline["of"]) == (V2, 200)


def _only(_: int) -> str:
    return "only"


def _next_to_v2() -> WatchedVersion:
    return WatchedVersion(task="returns", state="active", previous=V2)


def test_an_admins_baseline_starts_the_detector_anew_and_the_same_again_does_not() -> None:
    known = signal_changes.hold_against(version_watch.start(V3, "returns", "e"), BY_GATE[V3])
    assert known.feedback.baseline == GATE
    assert signal_changes.hold_against(known, BY_GATE[V3]) is known
    word = declare_rate(0.3, 5.0, "admin", "they say so")
    moved = signal_changes.hold_against(known, {"feedback": word})
    assert moved.feedback.guard is not None
    assert (moved.feedback.guard.detectors.whole.baseline, moved.feedback.baseline) == (0.3, word)


def test_signals_whose_baselines_are_removed_learn_their_own() -> None:
    watches, held = Watches("e"), {**BY_GATE[V3], "shadow": GATE, "feedback:toys": GATE, "length": GATE}
    watches.begin(step(), {V3: held})
    _moved(watches, labelled_traffic(errors(0.04, 30), caller=_only))
    watches.begin(step(), {})  # it can't be read: nothing was removed
    assert watches.by_version[V3].set_at.keys() == held.keys()
    watches.begin(step(), {V3: {"reviewed": GATE}})
    watch = watches.by_version[V3]
    assert ([*watch.set_at], watch.classes, watch.shadow and watch.shadow.detectors) == (["reviewed"], {}, None)
    assert stream(_judged(watches, MORNING), "feedback").baseline == {"labels": 0, "wanted": 200}
    _moved(watches, labelled_traffic(errors(0.05, 200), begin=100, caller=_only))
    learned = stream(_judged(watches, MORNING), "feedback").baseline
    assert (learned["kind"], learned["of"]) == ("own", 200)
    assert stream(_judged(watches, MORNING), "reviewed").baseline["kind"] == "gate"


def test_signal_whose_baseline_is_removed_keeps_its_own_and_who_labels_it() -> None:
    watches = Watches("e")
    watches.begin(step(), {V3: {}})
    _moved(watches, labelled_traffic(errors(0.05, 250)))
    own = watches.by_version[V3].feedback
    watches.begin(step(), {V3: {"feedback": GATE}})
    assert watches.by_version[V3].feedback.baseline == GATE
    watches.begin(step(), {V3: {}})
    assert watches.by_version[V3].feedback.shares is not None
    _moved(watches, labelled_traffic([False], begin=300))
    after = watches.by_version[V3].feedback
    assert own.baseline is not None
    assert after.baseline is not None
    assert (after.baseline.kind, after.baseline.of) == ("own", pytest.approx(own.baseline.of, abs=60))
    assert after.guard is not None
    assert own.guard is not None
    assert len(after.guard.heavy) == len(own.guard.heavy)


def test_what_reviewers_and_trusted_callers_say_is_a_stream_of_its_own() -> None:
    plan = msgspec.structs.replace(PLAN, trusted_callers=["auditor"])
    reviewed = labelled_traffic(errors(0.04, 50), reviewed=True)
    trusted = labelled_traffic(errors(0.04, 30), begin=100, caller=lambda _: "auditor")
    other = labelled_traffic(errors(0.04, 20), begin=200)
    found = judged(together(reviewed, trusted, other), step(plan))
    assert stream(found, "reviewed").observed == 80
    assert stream(found, "feedback").observed == 20
    assert found.labels == 100


def test_the_first_value_for_a_request_counts_in_each_stream() -> None:
    feedback = [
        (at(10), said("r0", True)),
        (at(20), said("r0", False)),
        (at(30), said("r0", False, rater="other")),
        (at(40), said("r0", False, reviewed=True)),
        (at(50), said("r0", True, reviewed=True)),
    ]
    found = judged(([(at(0), served("r0"))], feedback))
    assert (stream(found, "feedback").observed, stream(found, "feedback").wrong) == (1, 0)
    assert (stream(found, "reviewed").observed, stream(found, "reviewed").wrong) == (1, 1)


def test_a_metric_that_is_not_declared_or_has_no_order_says_nothing() -> None:
    plan = msgspec.structs.replace(PLAN, feedback_metric="mood", complaint_metric=None)
    feedback = [(at(10), said("r0", "sad", metric="mood")), (at(11), said("r0", False, metric="nothing"))]
    assert judged(([(at(0), served("r0"))], feedback), step(plan)).labels == 0


def test_a_value_of_another_kind_than_its_metric_says_nothing() -> None:
    feedback = [(at(10), said("r0", "yes")), (at(11), said("r1", 7.5)), (at(12), said("r2", None))]
    records = [(at(number), served(f"r{number}")) for number in range(3)]
    assert judged((records, feedback)).labels == 0


@pytest.mark.parametrize(
    "chosen",
    [
        {"requested_model": V3},
        {"override_id": "rule-1"},
        {"purpose": "evaluation"},
        {"purpose": "shadow"},
        {"led_to": V2},
    ],
)
def test_what_chance_has_not_led_to_the_version_says_nothing(chosen: dict[str, Any]) -> None:
    records, feedback = labelled_traffic([True] * 50)
    records = [(name, msgspec.structs.replace(one, **chosen)) for name, one in records]
    found = judged((records, feedback))
    assert (found.labels, found.requests) == (0, 0)
    assert not any(one.observed for one in found.reports if one.signal in ("latency", "cost", "contract"))


def test_reported_requests_count_for_labels_and_contract_not_for_time_and_price() -> None:
    records, feedback = labelled_traffic([False] * 10)
    told: dict[str, Any] = {
        "purpose": "reported",
        "reason": None,
        "attempts": [],
        "led_to": None,
        "contract_kept": True,
    }
    scored = [RecordedFinding("out_of_scope", score=0.5, version=V3)]
    records = [(name, msgspec.structs.replace(one, **told, findings=scored)) for name, one in records]
    found = judged((records, feedback))
    assert found.labels == 10
    assert {one.signal for one in found.reports if not one.labelled} == {"coverage", "contract"}
    assert found.saving_usd == 0.0


def test_one_caller_alone_moves_no_verdict() -> None:
    """One of many callers gives thumbs down on all that it asked; nobody else has a complaint."""
    quiet = labelled_traffic(errors(0.04, 900))
    angry = labelled_traffic([True] * 300, begin=1000, caller=lambda _: "angry")
    found = stream(judged(together(quiet, angry)), "feedback")
    assert not found.alarming
    assert found.baseline["rests_on_one"]


@pytest.mark.invariant("No caller and no rater decides alone.")
def test_a_caller_who_sends_nearly_all_labels_makes_it_suspect_and_not_degraded() -> None:
    quiet = labelled_traffic(errors(0.04, 232))
    burst = labelled_traffic([True] * 1950, every_seconds=0.04, caller=lambda _: "angry", begin=400_000)
    found = judged(together(quiet, burst))
    health, _ = respond(TaskQuality(), {V3: found}, Roles(active=V3), PLAN, found.at)
    assert stream(found, "feedback").wrong > 1900
    assert health.versions[V3].verdict == "suspect"


def test_one_rater_alone_moves_no_verdict_either() -> None:
    records, feedback = labelled_traffic(errors(0.04, 900), caller=lambda _: "only")
    raters = [(name, msgspec.structs.replace(one, rater=f"r{at % 5}")) for at, (name, one) in enumerate(feedback)]
    angry = labelled_traffic([True] * 300, begin=1000, caller=lambda _: "only", rater="angry")
    assert not stream(judged(together((records, raters), angry)), "feedback").alarming


def test_where_one_caller_is_the_only_one_its_word_counts() -> None:
    found = judged(labelled_traffic(errors(0.04, 200) + [True] * 60, caller=lambda _: "only"))
    assert stream(found, "feedback").alarming


def test_one_caller_alone_moves_the_stream_of_no_class_and_no_paired_one() -> None:
    """Others use the version and never judge; this one judges by itself one class, and what was held out."""
    records, feedback = [], []
    draw = random.Random(4)
    for number in range(900):
        name, when = f"r{number}", number * 60.0
        angry = number % 3 == 0
        make = held_out if draw.random() < 0.3 else served
        records.append((at(when), make(name, "angry" if angry else f"shop{number % 5}")))
        if angry:
            bad = number > 450 and make is served
            feedback.append((at(when + 5), said(name, not bad, "angry", tags={"kind": "toys"})))
    found = judged((records, feedback))
    assert stream(found, "feedback", "toys").observed > 150
    assert not any(one.alarming for one in found.reports if one.labelled)


def test_a_class_that_is_lost_at_an_unchanged_mean_is_found() -> None:
    """One class in five gets as much worse as the four others get better."""
    draw = random.Random(2)
    records, feedback = [], []
    for number in range(4000):
        name, kind = f"r{number}", draw.choice(("toys", "food", "books", "tools", "paper"))
        late = number >= 2000
        rate = 0.08 if not late else 0.40 if kind == "toys" else 0.0
        caller = f"shop{number % 4}"
        records.append((at(number * 60), served(name, caller)))
        feedback.append((at(number * 60 + 30), said(name, draw.random() >= rate, caller, tags={"kind": kind})))
    held = {V3: {"feedback": measure("gate", 80, 1000, 1.0, "gate", "evaluation-1")}}
    found = judged((records, feedback), baselines=held)
    assert stream(found, "feedback", "toys").alarming
    assert not stream(found, "feedback").alarming
    assert not any(one.alarming for one in found.reports if one.of_class not in (None, "toys"))


def test_classes_beyond_the_twentieth_are_one() -> None:
    records, feedback = labelled_traffic([False] * 60)
    named = [
        (name, msgspec.structs.replace(one, tags={"kind": f"k{place % 30}"}))
        for place, (name, one) in enumerate(feedback)
    ]
    found = judged((records, named))
    classes = [one.of_class for one in found.reports if one.of_class is not None]
    assert len(classes) == version_watch.CLASSES_MAX + 1
    assert stream(found, "feedback", "*").observed == 20


def test_a_class_of_any_name_has_a_stream_that_is_not_that_of_all_others() -> None:
    records, feedback = labelled_traffic([False] * 60)
    kinds = ["other", "*", *[f"k{number}" for number in range(24)]]
    named = [
        (name, msgspec.structs.replace(one, tags={"kind": kinds[place % len(kinds)]}))
        for place, (name, one) in enumerate(feedback)
    ]
    found = judged((records, named))
    assert stream(found, "feedback", "other").observed == 3
    assert stream(found, "feedback", "*").observed == 10


def test_what_was_set_for_another_metric_is_told_until_it_is_set_anew() -> None:
    watches = Watches("e")
    held = {V3: {**BY_GATE[V3], "feedback:toys": GATE, "shadow": GATE}}
    watches.begin(step(), held)
    _moved(watches, labelled_traffic(errors(0.04, 30)))
    assert "set_for_another_metric" not in stream(_judged(watches, MORNING), "feedback").baseline
    stars = step(msgspec.structs.replace(PLAN, feedback_metric="stars"))
    watches.begin(stars, held)
    records, feedback = labelled_traffic([False] * 30, begin=100)
    rated = [(name, msgspec.structs.replace(one, metric="stars", value=5)) for name, one in feedback]
    _moved(watches, (records, rated))
    found = _judged(watches, MORNING)
    assert watches.by_version[V3].outdated == ("feedback", "feedback:toys", "reviewed")
    assert stream(found, "feedback").baseline == {"labels": 30, "wanted": 200, "set_for_another_metric": True}
    assert stream(found, "reviewed").baseline["set_for_another_metric"]
    anew = {V3: {**held[V3], "feedback": msgspec.structs.replace(GATE, at=9.0)}}
    watches.begin(stars, anew)
    found = stream(_judged(watches, MORNING), "feedback")
    assert found.baseline["kind"] == "gate"
    assert "set_for_another_metric" not in found.baseline


# ---- verdicts ------------------------------------------------------------------------------------


def _moved(watches: Watches, traffic: Traffic, seconds: float = 0.0) -> None:
    placed = {}
    for name, one in traffic[0]:
        when = float(name.partition("-")[0]) / 1000 + seconds
        placed[one.id] = msgspec.structs.replace(one, placed_at=when)
        watches.take_record(placed[one.id], when)
    for name, given in traffic[1]:
        watches.take_feedback(given, placed[given.request], float(name.partition("-")[0]) / 1000 + seconds)


def _judged(watches: Watches, when: float) -> Judgement:
    return watches.judged([V3], when)[V3]


def test_recovery_is_found_by_the_reverse_test_and_then_the_detector_begins_anew() -> None:
    watches, when = Watches("e"), MORNING + 86_400
    watches.begin(step(), BY_GATE)
    _moved(watches, labelled_traffic(errors(0.04, 300) + errors(0.4, 80, 2)))
    found = stream(_judged(watches, when), "feedback")
    assert (found.alarming, found.recovered) == (True, False)
    bad = WatchedVersion(task="returns", state="active", phase=Phase(own="degraded"), since=MORNING + 30_000)
    watches.begin(step(v3=bad), BY_GATE)
    _moved(watches, labelled_traffic(errors(0.4, 150, 3), begin=1000))
    still = stream(_judged(watches, when), "feedback")
    assert (still.alarming, still.recovered) == (True, False)
    _moved(watches, labelled_traffic(errors(0.04, 150, 4), begin=2000))
    back = stream(_judged(watches, when), "feedback")
    assert (back.alarming, back.recovered) == (True, True)
    watches.begin(step(v3=msgspec.structs.replace(bad, phase=Phase(), since=when + 1)), BY_GATE)
    anew = stream(_judged(watches, when), "feedback")
    assert (anew.alarming, anew.recovered, anew.e_value) == (False, False, 0.0)


def test_labels_of_a_degraded_version_are_no_baseline_of_the_next() -> None:
    watches = Watches("e")
    watches.begin(step(), BY_GATE)
    _moved(watches, labelled_traffic(errors(0.04, 300)))
    bad = WatchedVersion(task="returns", state="active", phase=Phase(own="degraded"), since=1.0)
    watches.begin(step(v3=bad), BY_GATE)
    _moved(watches, labelled_traffic([True] * 300, begin=1000))
    track = watches.by_version[V3].feedback
    assert (track.labels, track.steady) == (600, 300)
    assert track.steady_wrong < 30


# ---- complaints, signals and the rest --------------------------------------------------------------


def test_a_change_in_what_nobody_labels_is_found_and_dies_down() -> None:
    usual = [(at(n * 60), served(f"r{n}", completion_tokens=10 + n % 20)) for n in range(800)]
    longer = [(at(n * 60), served(f"r{n}", completion_tokens=60)) for n in range(800, 900)]
    found = stream(judged((usual + longer, [])), "length")
    assert (found.alarming, found.labelled, found.recovered) == (True, False, False)
    assert found.baseline["direction"] == "above"
    assert found.since is not None
    assert abs(found.since - (MORNING + 48_000)) < 3600
    quiet = [(at(n * 60), served(f"r{n}", completion_tokens=10 + n % 20)) for n in range(900, 3000)]
    assert not stream(judged((usual + longer + quiet, [])), "length").alarming


@pytest.mark.parametrize(
    ("name", "then"),
    [
        ("coverage", {"findings": [RecordedFinding("out_of_scope", score=-3.0, version=V3)]}),
        ("confidence", {"findings": [RecordedFinding("low_confidence", score=0.01)]}),
        ("contract", {"contract_kept": False}),
        ("escalation", {"version": None, "reason": "out_of_scope", "attempts": [Attempt(None)]}),
        ("refusal", {"findings": [RecordedFinding("refusal", fired=True)]}),
        ("language", {"language": "fr"}),
        ("latency", {"duration_seconds": 30.0}),
        ("cost", {"cost_usd": 3.0}),
    ],
)
def test_each_unlabelled_stream_is_seen(name: str, then: dict[str, Any]) -> None:
    first: dict[str, Any] = {
        "findings": [
            RecordedFinding("out_of_scope", score=0.5, version=V3),
            RecordedFinding("low_confidence", score=0.9),
            RecordedFinding("refusal", fired=False),
        ],
        "contract_kept": True,
        "language": "en",
    }
    records = [(at(n * 60), served(f"r{n}", **first)) for n in range(700)]
    records += [(at(n * 60), served(f"r{n}", **{**first, **then})) for n in range(700, 800)]
    found = judged((records, []))
    assert {one.signal for one in found.reports if one.alarming} == {name}
    assert found.labels == 0


def test_a_first_label_after_days_covers_one_request() -> None:
    records, feedback = labelled_traffic(errors(0.03, 100), every_seconds=3600)
    found = judged((records, feedback[-1:]), days=100 / 24)
    assert (found.requests, found.labels) == (100, 1)
    assert found.label_coverage == pytest.approx(1 / 72, rel=0.5), "of three days, which is what counts as lately"


def test_rates_coverage_delay_and_the_time_to_detect_are_told() -> None:
    records, feedback = labelled_traffic(errors(0.03, 1000), every_seconds=360)
    half = [one for place, one in enumerate(feedback) if place % 2]
    found = judged((records, half), days=1000 * 360 / 86_400)
    assert found.requests == 1000
    assert found.requests_per_day == pytest.approx(240, rel=0.15)
    assert found.labels_per_day == pytest.approx(120, rel=0.15)
    assert found.label_coverage == pytest.approx(0.5, rel=0.05)
    assert found.feedback_delay_seconds is not None
    assert 300 < found.feedback_delay_seconds < 1200
    assert found.saving_usd == pytest.approx(1.0)
    five, ten = found.seconds_to_detect["5"], found.seconds_to_detect["10"]
    assert five is not None
    assert ten is not None
    assert 43_200 < ten < five
    assert judged((records, [])).seconds_to_detect == {"5": None, "10": None}


def test_shadows_cost_is_told_and_more_labels_a_month_ask_for_more_evidence() -> None:
    found = judged(paired_traffic(50, 0.1, 0.1))
    assert found.shadow_usd == pytest.approx(0.1)
    few, many = (
        stream(judged(labelled_traffic([False] * 500, every_seconds=gap)), "feedback").threshold for gap in (3000, 30)
    )
    assert 200 <= few < many


def test_a_watch_goes_through_json_unchanged_and_stays_small() -> None:
    """Eight callers, twenty classes, everything on: the worst case, and a usual one."""
    watches = Watches("e")
    watches.begin(step(), BY_GATE)
    records, feedback = paired_traffic(3000, 0.1, 0.1)
    usual = together((records, feedback), complaint_traffic(8, 0.1, 0.1))
    _moved(watches, usual)
    known = watches.by_version[V3]
    assert msgspec.json.decode(msgspec.json.encode(known), type=Watch) == known
    assert len(msgspec.json.encode(known)) < 55_000


def test_a_watch_of_another_plan_begins_its_labels_anew() -> None:
    watches = Watches("e")
    watches.begin(step(), BY_GATE)
    _moved(watches, labelled_traffic([True] * 50))
    other = msgspec.structs.replace(PLAN, feedback_metric="stars")
    told = MonitorStep(tasks={"returns": WatchedTask(plan=other)}, versions=step().versions, metrics=METRICS)
    watches.begin(told, BY_GATE)
    _moved(watches, labelled_traffic([True], begin=90))
    watches.take_feedback(said("r90", 5, metric="stars"), served("r90"), MORNING + 9e4)
    assert (watches.by_version[V3].feedback.labels, watches.by_version[V3].feedback.wrong) == (1, 0.0)


def test_a_judgement_is_the_same_for_the_same_watch() -> None:
    watches = Watches("e")
    watches.begin(step(), BY_GATE)
    _moved(watches, labelled_traffic(errors(0.1, 300)))
    known = watches.by_version[V3]
    budget = version_judgement.Budget(false_alarms_per_month=1.0, labelled=3, unlabelled=9)
    once, again = (version_judgement.judge(known, PLAN, budget, MORNING + 9e4) for _ in range(2))
    assert msgspec.json.encode(once) == msgspec.json.encode(again)
    assert msgspec.json.decode(msgspec.json.encode(once), type=Judgement) == once


def test_a_note_says_nothing_where_nothing_was_said() -> None:
    note = Note(epoch="e")
    mood = said("r0", "mood", metric="mood")
    label = entries.read_label(mood, served("r0"), PLAN, METRICS)
    assert label is None
    assert request_notes.add_feedback(note, mood, PLAN, label) is note


def test_baselines_are_told_with_their_evidence() -> None:
    found = stream(judged(labelled_traffic([False] * 5)), "feedback")
    held = msgspec.convert({k: v for k, v in found.baseline.items() if k != "rate"}, Baseline)
    assert held == GATE
    assert found.baseline["rate"] == 0.04
