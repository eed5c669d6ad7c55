"""Complaints in a version's watch: they are compared with the number that its requests lead to."""

import random
from typing import Any

import msgspec
import pytest

from monitoring.quality.signals.all_watches import Watches
from tests.monitoring.quality.reckoned import judged, stream
from tests.monitoring.quality.traffic import (
    MORNING,
    PLAN,
    V3,
    Traffic,
    at,
    said,
    served,
    step,
)


def complaint_traffic(days: int, rate: float, later_rate: float, caller: Any = None) -> Traffic:
    """A request every 2 minutes for so many days; complaints come after some hours. The rate changes at half time."""
    draw, records, feedback = random.Random(5), [], []
    count = days * 720
    for number in range(count):
        name, when = f"c{number}", number * 120.0
        who = f"shop{draw.randrange(4)}"
        records.append((at(when), served(name, who)))
        if draw.random() < (rate if number < count / 2 else later_rate):
            by = who if caller is None or number < count / 2 else caller
            late = draw.expovariate(1 / 14_400)
            feedback.append((at(when + late), said(name, True, by, metric="complaint")))
    return records, feedback


def test_complaints_are_held_against_what_is_expected() -> None:
    plan = msgspec.structs.replace(PLAN, false_alarms_per_month=20.0)
    for later, alarming in ((0.1, False), (0.3, True)):
        found = judged(complaint_traffic(16, 0.1, later), step(plan), days=16)
        complaints = stream(found, "complaints")
        assert complaints.alarming is alarming
        assert not complaints.baseline["learning"]
        assert found.complaints_seen is not None
        assert found.complaints_expected is not None


@pytest.mark.parametrize(("days", "learns"), [(4, True), (16, False)])
def test_all_complaints_are_told_beside_all_requests_and_those_expected_once_known(days: int, learns: bool) -> None:
    traffic = complaint_traffic(days, 0.1, 0.1)
    found = judged(traffic, days=days)
    complaints = stream(found, "complaints")
    assert complaints.baseline["learning"] is learns
    assert (found.complaints_seen is None) is (found.complaints_expected is None) is learns
    assert complaints.observed == days * 720
    assert complaints.wrong == len(traffic[1])


def test_complaints_that_no_metric_tells_of_any_more_are_evidence_no_longer() -> None:
    watches = Watches("e")
    for number, metric in enumerate(("complaint", None)):
        watches.begin(step(msgspec.structs.replace(PLAN, complaint_metric=metric)), {})
        watches.take_record(served(f"r{number}"), MORNING + number)
        signals = [one.signal for one in watches.judged([V3], MORNING + number)[V3].reports]
        assert signals.count("complaints") == (metric is not None)


def test_one_caller_alone_moves_no_complaints() -> None:
    plan = msgspec.structs.replace(PLAN, false_alarms_per_month=20.0)
    found = judged(complaint_traffic(16, 0.1, 0.3, "angry"), step(plan), days=16)
    assert not stream(found, "complaints").alarming
