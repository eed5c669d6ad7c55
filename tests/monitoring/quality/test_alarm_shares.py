"""A stream's part of the false alarms: neither versions that go nor requests that stop bring it nearer to an alarm,
and whoever allows more false alarms gets them."""

from __future__ import annotations

import math

import msgspec
import pytest

from monitoring.quality.detectors.baselines import Baseline, declare_rate
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.signals.entries import FeedbackEntry, RecordEntry
from monitoring.quality.verdicts.quality import SignalReport
from tests.monitoring.quality.traffic import METRICS, MORNING, PLAN, V3, at, errors, labelled_traffic, said, served

DAY = 86_400.0
HELD = {V3: {"feedback": declare_rate(0.05, 1.0, "admin", "known")}}
OTHERS = [f"other@v{number}" for number in range(20)]


class Fleet:
    """A version, and twenty of another task that may be retired."""

    def __init__(self) -> None:
        self.state = "active"
        self.plan = PLAN
        self.tasks: tuple[str, ...] = ("returns", "other")
        self.watches = Watches("e")
        self.baselines: dict[str, dict[str, Baseline]] = HELD
        self.placed: dict[str, RecordEntry] = {}
        self.begin()

    def begin(self) -> None:
        versions = {name: WatchedVersion(task="other", state=self.state) for name in OTHERS}
        versions[V3] = WatchedVersion(task="returns", state="active")
        tasks = {name: WatchedTask(plan=self.plan) for name in self.tasks}
        self.watches.begin(MonitorStep(tasks=tasks, versions=versions, metrics=METRICS), self.baselines)

    def take(self, traffic: tuple[list[tuple[str, RecordEntry]], list[tuple[str, FeedbackEntry]]]) -> None:
        """All of it in its order."""
        entries = [(float(name.partition("-")[0]) / 1000, one) for part in traffic for name, one in part]
        for when, one in sorted(entries, key=lambda found: found[0]):
            if isinstance(one, RecordEntry):
                self.placed[one.id] = msgspec.structs.replace(one, placed_at=when)
                self.watches.take_record(self.placed[one.id], when)
            elif isinstance(one, FeedbackEntry):
                self.watches.take_feedback(one, self.placed[one.request], when)

    def others(self) -> None:
        """A request and a label of each of the others."""
        for name in OTHERS:
            fields = {"task": "other", "led_to": name, "version": name, "attempts": []}
            self.take(([(at(0), served(f"of-{name}", "shop", **fields))], [(at(1), said(f"of-{name}"))]))

    def stream(self, name: str, days: float = 1.0) -> SignalReport:
        judged = self.watches.judged([V3], MORNING + days * DAY)[V3]
        (found,) = [one for one in judged.reports if (one.signal, one.of_class) == (name, None)]
        return found


def _only(_: int) -> str:
    return "only"


def test_old_evidence_comes_no_nearer_to_an_alarm_because_the_fleet_shrank() -> None:
    """The evidence is enough for a stream that has few others beside it; it came while there were many."""
    fleet = Fleet()
    fleet.others()
    fleet.take(labelled_traffic(errors(0.05, 300) + [True] * 7, every_seconds=250, caller=_only))
    many = fleet.stream("feedback")
    assert many.baseline["upper"] == 0.05
    assert 400.0 < many.e_value < many.threshold
    fleet.state = "retired"
    fleet.begin()
    few = fleet.stream("feedback")
    assert few.e_value == many.e_value
    assert few.threshold == many.threshold
    assert not few.alarming
    for days in (2.0, 40.0):
        assert not fleet.stream("feedback", days).alarming


def test_a_task_that_is_dropped_brings_the_evidence_of_another_no_nearer() -> None:
    fleet = Fleet()
    fleet.others()
    fleet.take(labelled_traffic(errors(0.05, 300) + [True] * 7, every_seconds=250, caller=_only))
    many = fleet.stream("feedback")
    assert 400.0 < many.e_value < many.threshold
    fleet.tasks = ("returns",)
    fleet.begin()
    assert fleet.stream("feedback") == many
    assert fleet.stream("feedback", 40.0).threshold == many.threshold


def test_without_the_others_the_same_evidence_is_an_alarm() -> None:
    """So it is their being there that the test above is about."""
    fleet = Fleet()
    fleet.take(labelled_traffic(errors(0.05, 300) + [True] * 7, every_seconds=250, caller=_only))
    assert fleet.stream("feedback").alarming


def test_a_fleet_that_grows_asks_for_more_at_once() -> None:
    fleet = Fleet()
    fleet.take(labelled_traffic(errors(0.05, 300), every_seconds=250, caller=_only))
    before = fleet.stream("feedback").threshold
    fleet.others()
    assert fleet.stream("feedback").threshold > before * 5


def test_once_its_detector_begins_anew_the_fleet_counts_as_it_is_then() -> None:
    fleet = Fleet()
    fleet.others()
    fleet.take(labelled_traffic(errors(0.05, 300), every_seconds=250, caller=_only))
    many = fleet.stream("feedback").threshold
    fleet.state = "retired"
    fleet.baselines = {V3: {"feedback": declare_rate(0.06, 2.0, "admin", "known better")}}
    fleet.begin()
    fleet.take(labelled_traffic(errors(0.05, 20), begin=400, every_seconds=250, caller=_only))
    assert fleet.stream("feedback").threshold < many / 5


def test_an_operator_who_allows_more_false_alarms_gets_them_on_what_was_seen_already() -> None:
    fleet = Fleet()
    fleet.others()
    fleet.take(labelled_traffic(errors(0.05, 300) + [True] * 7, every_seconds=250, caller=_only))
    before = fleet.stream("feedback")
    fleet.plan = msgspec.structs.replace(PLAN, false_alarms_per_month=20.0)
    fleet.begin()
    after = fleet.stream("feedback")
    assert after.threshold == pytest.approx(before.threshold / 20)
    assert (before.alarming, after.alarming) == (False, True)


def test_unlabelled_signals_come_no_nearer_once_requests_stop_or_the_fleet_shrinks() -> None:
    fleet = Fleet()
    fleet.others()
    usual = [(at(n * 60), served(f"r{n}", completion_tokens=10 + n % 20)) for n in range(2000)]
    longer = [(at(n * 60), served(f"r{n}", completion_tokens=60)) for n in range(2000, 2005)]
    fleet.take((usual + longer, []))
    busy = fleet.stream("length", 2005 * 60 / DAY)
    assert not busy.alarming
    assert math.isclose(fleet.stream("length", 60.0).threshold, busy.threshold)
    fleet.state = "retired"
    fleet.begin()
    for days in (2.0, 60.0):
        assert fleet.stream("length", days).threshold == busy.threshold
    fleet.plan = msgspec.structs.replace(PLAN, false_alarms_per_month=10.0)
    fleet.begin()
    assert fleet.stream("length", 60.0).threshold == pytest.approx(busy.threshold / 10)
