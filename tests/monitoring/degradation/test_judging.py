"""Thresholds that do not come down to old evidence, labels that count since a detector began, and the way back."""

from __future__ import annotations

import random

import msgspec
import pytest

from monitoring.degradation.detectors.baselines import Baseline, measured, stated
from monitoring.degradation.streams import tracks, watch
from monitoring.degradation.streams.arms import Noted
from monitoring.degradation.streams.reckoning import Reckoning, replay
from monitoring.degradation.streams.seen import Given, Seen
from monitoring.degradation.streams.steps import Step, WatchedTask, WatchedVersion
from monitoring.degradation.streams.watch import Note
from monitoring.degradation.verdicts.health import Judgement, StreamReport
from tests.monitoring.degradation.traffic import (
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

DAY = 86_400.0
GATE = measured("gate", 40, 1000, 1.0, "gate", "evaluation-1")
HELD = {V3: {"feedback": GATE}}
Traffic = tuple[list[tuple[str, Seen]], list[tuple[str, Given]]]


class Told:
    """A reckoning that is told verdicts, and takes traffic from where the last ended."""

    def __init__(self, baselines: dict[str, dict[str, Baseline]] = HELD, step: Step | None = None) -> None:
        self.step, self.baselines, self.day = step or _step(), baselines, 0.0
        self.reckoning = Reckoning("e")
        self.reckoning.begin(self.step, baselines)

    def tell(self, verdict: str, **more: object) -> None:
        """Tell it the verdict as of now."""
        known = WatchedVersion(task="returns", state="active", verdict=verdict, since=self.now, **more)  # type: ignore[arg-type]
        self.step = msgspec.structs.replace(self.step, versions={V3: known})
        self.reckoning.begin(self.step, self.baselines)

    @property
    def now(self) -> float:
        return MORNING + self.day * DAY

    def take(self, traffic: Traffic) -> None:
        """Requests, each with its feedback, as if they came on a day of their own."""
        placed = {}
        for name, one in traffic[0]:
            when = _seconds(name) + self.day * DAY
            placed[one.id] = msgspec.structs.replace(one, id=f"{one.id}-{self.day}", placed_at=when)
            self.reckoning.take(placed[one.id], when)
        for name, given in traffic[1]:
            known = placed[given.request]
            about = msgspec.structs.replace(given, request=known.id)
            self.reckoning.hear(about, known, _seconds(name) + self.day * DAY)
        self.day += 1.0

    def judged(self) -> Judgement:
        return self.reckoning.judged([V3], self.now)[V3]

    def stream(self, name: str) -> StreamReport:
        (found,) = [one for one in self.judged().streams if (one.stream, one.of_class) == (name, None)]
        return found


def _step(labels_min: int = 20) -> Step:
    return step(msgspec.structs.replace(PLAN, labels_min=labels_min, complaint_metric=None))


def _seconds(name: str) -> float:
    return float(name.partition("-")[0]) / 1000


# ---- thresholds ----------------------------------------------------------------------------------


def test_once_labels_stop_old_evidence_alarms_in_no_healthy_version() -> None:
    """At the bound itself, which is the worst that counts as healthy; and then eight days without a label."""
    held = {V3: {"feedback": stated(0.05, 1.0, "admin", "known")}}
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
        assert next(one for one in found.streams if one.stream == "feedback").alarming


def test_complaints_that_stop_bring_the_threshold_no_nearer() -> None:
    draw, records, feedback = random.Random(5), [], []
    for number in range(6000):
        name, when = f"c{number}", number * 30.0
        records.append((at(when), served(name, f"shop{number % 4}")))
        if draw.random() < 0.1:
            feedback.append((at(when + 60), said(name, True, f"shop{number % 4}", metric="complaint")))
    thresholds = [
        next(one.threshold for one in replay(records, feedback, step(), MORNING + days * DAY)[V3].streams)
        for days in (2.1, 30.0)
    ]
    assert thresholds[0] > 200
    assert thresholds[1] == thresholds[0]


# ---- labels since the detector began ---------------------------------------------------------------


def test_labels_from_before_the_detector_began_are_not_labels_enough() -> None:
    """Its own first labels are no evidence against it: twenty more have to come."""
    first = labelled_traffic(errors(0.0, 200))
    for more, alarming in ((19, False), (20, True)):
        bad = labelled_traffic([True] * more, begin=200)
        found = replay(first[0] + bad[0], first[1] + bad[1], _step(), MORNING + DAY)[V3]
        assert next(one for one in found.streams if one.stream == "feedback").alarming is alarming


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


# ---- the way back --------------------------------------------------------------------------------


def test_a_new_baseline_while_degraded_leaves_a_way_back() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.4, 200)))
    told.tell("degraded")
    told.baselines = {V3: {"feedback": measured("gate", 30, 1000, 2.0, "gate", "evaluation-2")}}
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.4, 60, 2)))
    assert (told.stream("feedback").alarming, told.stream("feedback").recovered) == (True, False)
    told.take(labelled_traffic(errors(0.03, 200, 3)))
    assert told.stream("feedback").recovered


def test_a_new_baseline_makes_nobody_healthy_before_new_labels_do() -> None:
    """The labels of reviewers never spoke against it; what they have shown before is not shown of the new one."""
    told = Told({V3: {"feedback": GATE, "reviewed": GATE}})
    told.take(labelled_traffic(errors(0.4, 200)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.0, 200), reviewed=True))
    assert told.stream("reviewed").recovered
    told.baselines = {V3: {"feedback": measured("gate", 30, 1000, 2.0, "gate", "evaluation-2"), "reviewed": GATE}}
    told.tell("degraded")
    assert not any(one.recovered for one in told.judged().streams)


@pytest.mark.parametrize("held", [HELD, {V3: {}}])
def test_a_version_that_was_told_to_be_degraded_without_an_alarm_gets_back(
    held: dict[str, dict[str, Baseline]],
) -> None:
    """An admin has pinned it, and the pin is gone. Without a baseline its first labels are to make one yet."""
    told = Told(held)
    told.take(labelled_traffic(errors(0.04, 100)))
    told.tell("degraded")
    assert not told.stream("feedback").recovered
    for day in range(6):
        told.take(labelled_traffic(errors(0.03, 300, day + 2)))
    found = told.stream("feedback")
    assert (found.alarming, found.recovered) == (False, True)


def test_an_alarm_that_a_setting_takes_away_leaves_a_way_back() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.4, 100)))
    told.tell("degraded")
    told.step = msgspec.structs.replace(
        told.step, tasks={"returns": WatchedTask(plan=msgspec.structs.replace(PLAN, labels_min=1000), active=V3)}
    )
    told.reckoning.begin(told.step, told.baselines)
    told.take(labelled_traffic(errors(0.03, 300, 2)))
    found = told.stream("feedback")
    assert (found.alarming, found.recovered) == (False, True)


def test_another_general_model_while_degraded_leaves_a_way_back_by_pairs() -> None:
    told = Told({V3: {}})
    told.take(_beside_general(0.05, 500))
    told.take(_beside_general(0.5, 500))
    told.tell("degraded")
    told.take(_beside_general(0.5, 500, "general-2"))
    assert told.reckoning.watches[V3].holdout.baseline is not None
    for day in range(4):
        told.take(_beside_general(0.05, 500, "general-2", day))
    assert told.stream("feedback").baseline["holdout"]["recovered"]


def _beside_general(rate: float, count: int, stack: str = "general-1", seed: int = 9) -> Traffic:
    """Every other request is held out; general is wrong on 5% of its own."""
    draw, records, feedback = random.Random(seed), [], []
    for number in range(count):
        name, out = f"h{number}", number % 2 == 1
        one = held_out(name, f"shop{number % 3}", stack=stack) if out else served(name, f"shop{number % 3}")
        records.append((at(number * 60.0), one))
        bad = draw.random() < (0.05 if out else rate)
        feedback.append((at(number * 60.0 + 9), said(name, not bad, f"shop{number % 3}")))
    return records, feedback


# ---- what else is no evidence ----------------------------------------------------------------------


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
        told.reckoning.hear(given, seen, told.now + number)
    assert told.judged().labels == before + 100
    assert not any(one.alarming or one.e_value for one in told.judged().streams if one.stream == "feedback")
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
    assert told.stream("feedback").baseline["upper"] < 0.2
    previous = tracks.evidence_of(told.reckoning.watches[V3].feedback, 1.0, "monitor", V3)
    assert previous is not None
    assert previous.upper < 0.2
    told.take(labelled_traffic(errors(0.4, 150, 2)))
    assert told.stream("feedback").alarming


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
    found = replay(records, feedback, _step(), MORNING + DAY)[V3]
    assert not any(one.stream == "shadow" for one in found.streams)
    judged = [
        (name, msgspec.structs.replace(one, demonstration_digests={"normal": f"c{name}"})) for name, one in feedback
    ]
    (both,) = [one for one in replay(records, judged, _step(), MORNING + DAY)[V3].streams if one.stream == "shadow"]
    assert (both.observed, both.estimate, both.alarming) == (800, 0.0, False)


def test_a_feedback_moves_all_its_watches_or_none() -> None:
    """The second version's state is damaged: the first has not counted what its note does not know."""
    told = Told()
    told.take(labelled_traffic([False] * 3))
    seen = served("r9", placed_at=told.now)
    noted = Noted(shadow=V2, served=V3, counted={V2: 0.0})
    told.reckoning.notes["r9"] = Note(epoch="e", pairs=(noted,))
    damaged = watch.start(V2, "returns", "e")
    told.reckoning.watches[V2] = msgspec.structs.replace(damaged, standby="damaged")
    with pytest.raises(AttributeError):
        told.reckoning.hear(said("r9", True), seen, told.now)
    assert told.reckoning.watches[V3].labels == 3
    assert not told.reckoning.notes["r9"].given
