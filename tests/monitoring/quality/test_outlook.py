"""The outlook of a version's monitor: what it promises at other rates is what the monitor asks for then."""

from __future__ import annotations

from typing import Any

import pytest

from monitoring.quality.detectors.baselines import declare_rate
from monitoring.quality.explanations.outlook import Outlook, make_outlook
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from tests.monitoring.quality.reckoned import DAY, HELD, Told
from tests.monitoring.quality.traffic import MORNING, PLAN, V3, errors, labelled_traffic

PER_DAY = 1440.0
THRIFTY = MonitorPlan(feedback_metric="correct", false_alarms_per_month=0.1)


def look_ahead(told: Told, plan: MonitorPlan = PLAN, labels_per_day: float | None = PER_DAY) -> Outlook:
    return make_outlook(told.judged(), plan, labels_per_day)


def test_outlook_of_a_version_without_labels_is_the_one_that_it_has_with_them() -> None:
    fresh, busy = Told(HELD), Told(HELD)
    for day in range(4):
        busy.take(labelled_traffic(errors(0.04, 1440, day)))
    before, after = look_ahead(fresh), look_ahead(busy, labels_per_day=None)
    (ahead,), (now,) = before.signals, after.signals
    assert ahead.dispersion == pytest.approx(now.dispersion, abs=0.05)
    assert now.labels_per_day == pytest.approx(PER_DAY, rel=0.05)
    for points in ("5", "10", "20"):
        assert ahead.labels[points] == pytest.approx(now.labels[points], rel=0.12), "clusters may be seen by chance"


def test_more_signals_and_fewer_false_alarms_take_longer() -> None:
    told = Told(HELD)
    usual, thrifty = look_ahead(told), look_ahead(told, THRIFTY)
    assert usual.days["10"] is not None
    assert thrifty.days["10"] is not None
    assert thrifty.days["10"] > 1.1 * usual.days["10"]


def test_outlook_at_few_labels_a_day_keeps_the_least_threshold() -> None:
    told = Told(HELD)
    rare, daily = look_ahead(told, labels_per_day=0.1), look_ahead(told, labels_per_day=1.0)
    assert rare.signals[0].labels == daily.signals[0].labels


def test_outlook_as_now_is_that_of_the_same_rate() -> None:
    young = Told(HELD)
    young.take(labelled_traffic(errors(0.04, 60, 1)))  # an hour of a day of 1,440
    now = look_ahead(young, labels_per_day=None)
    (same,) = look_ahead(young, labels_per_day=now.signals[0].labels_per_day).signals
    assert now.signals[0].labels == same.labels


def test_version_without_labels_is_told_how_a_baseline_is_set() -> None:
    sentences = look_ahead(Told({})).sentences
    assert any("tasks baseline returns" in sentence for sentence in sentences)


def test_bound_that_was_set_without_labels_is_held_against_the_share_seen_lately() -> None:
    told = Told({V3: {"feedback": declare_rate(0.16, MORNING, "admin", "accepted")}})
    told.take(labelled_traffic(errors(0.03, 400, 1)))
    (ahead,) = look_ahead(told).signals
    assert ahead.labels["5"] is None
    assert ahead.labels["20"] is not None


@pytest.mark.parametrize(
    ("baselines", "count"),
    [
        (HELD, 400),
        ({V3: {"feedback": declare_rate(0.08, MORNING, "admin", "accepted")}}, 400),
        ({}, 400),
        ({}, 120),  # too few for a baseline of its own: it is guessed
    ],
)
def test_report_and_plan_tell_the_same_time_until_a_slip_is_found(baselines: Any, count: int) -> None:
    told = Told(baselines)
    for day in range(2):
        told.take(labelled_traffic(errors(0.03, count // 2, day)))
    judged, days = told.judged(), look_ahead(told, labels_per_day=None).days
    assert {points: days[points] for points in judged.seconds_to_detect} == {
        points: pytest.approx(seconds and seconds / DAY) for points, seconds in judged.seconds_to_detect.items()
    }
    assert days["10"] is not None


def test_rate_is_told_once_labels_have_come_for_a_day() -> None:
    told = Told(HELD)
    told.take(labelled_traffic(errors(0.04, 30), every_seconds=6.0))
    told.day = 0.01  # 14 minutes after the first request
    young, planned = look_ahead(told, labels_per_day=None), look_ahead(told, labels_per_day=50)
    assert (young.labels_per_day, young.pace) == (None, "30 labels in 4.4 minutes so far")
    assert [*young.days.values()] == [None] * 4
    assert young.signals[0].labels["10"] is not None
    assert (planned.labels_per_day, planned.signals[0].labels_per_day) == (50, 50)
    told.day = 2.0
    assert look_ahead(told, labels_per_day=None).pace.startswith("30 labels, about 1")


def test_labels_that_a_signal_still_needs_for_its_baseline_are_told() -> None:
    told = Told({})
    told.take(labelled_traffic(errors(0.04, 60)))
    assert "feedback finds nothing before its baseline is known, after 140 more labels." in look_ahead(told).sentences
