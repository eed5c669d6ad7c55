"""Requests that callers report cost nothing: beside those that were served here they leave nobody's word alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from monitoring.quality.detectors import guards, leave_one_out
from monitoring.quality.detectors.leave_one_out import REPORTS_COUNT_AFTER_SECONDS
from monitoring.quality.verdicts.quality import Judgement, SignalReport
from tests.monitoring.quality.reckoned import BY_GATE
from tests.monitoring.quality.replays import replay
from tests.monitoring.quality.test_watch_complaints import complaint_traffic
from tests.monitoring.quality.traffic import (
    MORNING,
    PLAN,
    V3,
    Traffic,
    at,
    errors,
    held_out,
    labelled_traffic,
    said,
    served,
    step,
)

REPORTED: dict[str, Any] = {"purpose": "reported", "reason": None, "attempts": [], "led_to": None}
DAY = 86_400.0


def reports(
    wrong: list[bool], caller: str = "reporter", begin: int = 5_000, every: float = 5.0, **tags: str
) -> Traffic:
    """Requests that one caller says that it had, each with its word on the answer."""
    records = [(at(begin * 5 + n * every), served(f"x{n + begin}", caller, **REPORTED)) for n in range(len(wrong))]
    feedback = [
        (at(begin * 5 + n * every + 1), said(f"x{n + begin}", not bad, caller, tags=tags or None))
        for n, bad in enumerate(wrong)
    ]
    return records, feedback


def judged(*traffics: Traffic, baselines: Any = BY_GATE, days: float = 3.0) -> Judgement:
    records = [one for some, _ in traffics for one in some]
    feedback = [one for _, some in traffics for one in some]
    return replay(records, feedback, step(), MORNING + days * DAY, baselines)[V3]


def stream(found: Judgement, name: str, of_class: str | None = None) -> SignalReport:
    (one,) = [one for one in found.reports if (one.signal, one.of_class) == (name, of_class)]
    return one


def alarming(found: Judgement) -> list[str]:
    return [one.signal for one in found.reports if one.labelled and one.alarming]


@pytest.mark.parametrize("count", [1_000, 3_000])
def test_reports_that_all_are_bad_degrade_no_version_that_three_others_use(count: int) -> None:
    """Of the latest requests and labels nearly all are reports: after two thousand the others had less than 5%."""
    honest = labelled_traffic(errors(0.04, 300))
    found = judged(honest, reports([True] * count))
    assert stream(found, "feedback").observed == 300 + count
    assert alarming(found) == []


def test_reports_do_not_count_before_any_other_label_or_beside_one_caller_alone() -> None:
    asked = labelled_traffic(errors(0.04, 300))[0]
    assert alarming(judged((asked, []), reports([True] * 3_000))) == []
    alone = labelled_traffic(errors(0.04, 300), caller=lambda _: "shop")
    assert alarming(judged(alone, reports([True] * 3_000))) == []


def test_complaints_about_reports_degrade_nothing_and_are_no_reference() -> None:
    """A few minutes of reports, every one complained about: while it is learned what is usual, and later."""
    plan = msgspec.structs.replace(PLAN, false_alarms_per_month=20.0)
    honest = complaint_traffic(10, 0.1, 0.1)
    for day in (0.5, 9.0):
        asked, _ = reports([False] * 3_000, begin=int(day * DAY / 5), every=0.1)
        complained = [
            (at(day * DAY + 400 + n * 0.1), said(one.id, True, "reporter", metric="complaint"))
            for n, (_, one) in enumerate(asked)
        ]
        records, feedback = [*honest[0], *asked], [*honest[1], *complained]
        found = replay(records, feedback, step(plan), MORNING + 10 * DAY, {})[V3]
        assert 0.05 < stream(found, "complaints").baseline["rate"] < 0.15
        assert alarming(found) == []


def test_reports_that_nobody_complains_about_hide_no_slip_from_the_complaints() -> None:
    plan = msgspec.structs.replace(PLAN, false_alarms_per_month=20.0)
    asked, complained = complaint_traffic(16, 0.1, 0.2)
    flood = [(at(8 * DAY + 40.0 * n), served(f"x{n}", "reporter", **REPORTED)) for n in range(17_280)]
    found = replay([*asked, *flood], complained, step(plan), MORNING + 16 * DAY, {})[V3]
    assert alarming(found) == ["complaints"]
    assert stream(found, "complaints").estimate == pytest.approx(0.2, abs=0.05)


def test_with_its_own_first_labels_for_a_baseline_it_is_the_same() -> None:
    honest = labelled_traffic(errors(0.0, 300))
    for count in (1_000, 3_000):
        found = judged(honest, reports([True] * count), baselines={V3: {}})
        assert stream(found, "feedback").baseline["kind"] == "own"
        assert alarming(found) == []


def test_of_classes_it_is_the_same_and_a_report_begins_none() -> None:
    honest = labelled_traffic(errors(0.04, 300), tags={"kind": "toys"})
    found = judged(honest, reports([True] * 3_000, kind="toys"))
    assert stream(found, "feedback", "toys").observed == 3_300
    assert alarming(found) == []
    begun = judged(honest, reports([True] * 1_000, kind="made up"))
    assert [one.of_class for one in begun.reports if one.of_class] == ["toys"], "a report begins no class"


def test_they_teach_no_baseline_beside_served_requests() -> None:
    """Neither one so low that the others' usual errors are a degradation, nor one so high that it hides any."""
    for bad in (False, True):
        found = judged(
            labelled_traffic(errors(0.08, 20), every_seconds=1.0, delay_seconds=1.0),
            reports([bad] * 300, begin=50),
            labelled_traffic(errors(0.08, 900), begin=100),
            baselines={V3: {}},
        )
        held = stream(found, "feedback").baseline
        assert held["kind"] == "own"
        assert held["of"] <= 200
        assert 0.03 < held["rate"] < 0.13
        assert alarming(found) == []


def test_they_wait_for_no_label_of_what_was_held_out() -> None:
    asked = [(at(n * 60.0), held_out(f"h{n}", f"shop{n % 3}")) for n in range(400)]
    told = [(at(n * 60.0 + 5), said(f"h{n}", True, f"shop{n % 3}")) for n in range(400)]
    found = judged((asked, told), labelled_traffic([False] * 5), reports([True] * 100))
    assert stream(found, "holdout").observed == 5


def test_they_do_not_silence_the_one_caller_who_uses_it() -> None:
    degrading = labelled_traffic(errors(0.04, 200) + [True] * 60, caller=lambda _: "only")
    found = judged(degrading, (reports([False] * 1_000, begin=1)[0], []))
    assert alarming(found) == ["feedback"]


def test_a_version_that_is_judged_from_reports_alone_still_alarms() -> None:
    assert alarming(judged(reports(errors(0.04, 300) + [True] * 60, "gateway-2"))) == ["feedback"]
    own = judged(reports(errors(0.04, 300) + [True] * 90, "gateway-2"), baselines={V3: {}})
    assert (stream(own, "feedback").baseline["of"], alarming(own)) == (200, ["feedback"])
    several: Traffic = ([], [])
    for part in range(4):
        wrong = [*errors(0.04, 100, part), *[True] * 40]
        records, feedback = reports(wrong, f"gateway-{part}", begin=2_000 * part, every=60.0)
        several[0].extend(records)
        several[1].extend(feedback)
    assert alarming(judged(several)) == ["feedback"]


def test_reports_count_again_after_a_week_without_serving_and_not_beside_served() -> None:
    roll = guards.start_roll(V3)
    for n in range(100):
        roll = leave_one_out.add_request(roll, "shop", at=float(n))
    for n in range(100):
        roll = leave_one_out.add_request(roll, "reporter", at=100.0 + n, reported=True)
    assert leave_one_out.find_alone(roll) == leave_one_out.make_digest(roll, "shop")
    later = 100.0 + REPORTS_COUNT_AFTER_SECONDS
    for _ in range(70):
        roll = leave_one_out.add_request(roll, "reporter", at=later, reported=True)
    assert (roll.reported, leave_one_out.find_alone(roll)) == (True, leave_one_out.make_digest(roll, "reporter"))
    for _ in range(70):
        roll = leave_one_out.add_request(roll, "shop", at=later + 1.0)
    assert (roll.reported, leave_one_out.find_alone(roll)) == (False, leave_one_out.make_digest(roll, "shop"))
    assert msgspec.json.decode(msgspec.json.encode(roll), type=leave_one_out.GiverRoll) == roll
