"""The way back of a degraded version, and what it teaches until then: nothing."""

from __future__ import annotations

import msgspec

from monitoring.quality.detectors import recoveries
from monitoring.quality.detectors.baselines import measure
from monitoring.quality.signals.child_messages import WatchedTask
from tests.monitoring.quality.reckoned import GATE, Told, beside_general, complained, shadowed, together
from tests.monitoring.quality.traffic import (
    PLAN,
    V3,
    errors,
    labelled_traffic,
    step,
)

# ---- the way back --------------------------------------------------------------------------------


def test_a_new_baseline_while_degraded_leaves_a_way_back() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.4, 200)))
    told.tell("degraded")
    told.baselines = {V3: {"feedback": measure("gate", 30, 1000, 2.0, "gate", "evaluation-2")}}
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
    told.baselines = {V3: {"feedback": measure("gate", 30, 1000, 2.0, "gate", "evaluation-2"), "reviewed": GATE}}
    told.tell("degraded")
    assert not any(one.recovered for one in told.judged().reports)


def test_a_version_that_was_told_to_be_degraded_without_an_alarm_gets_back() -> None:
    """An admin has pinned it, and the pin is gone."""
    told = Told()
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
        told.step, tasks={"returns": WatchedTask(plan=msgspec.structs.replace(PLAN, labels_min=1000))}
    )
    told.watches.begin(told.step, told.baselines)
    told.take(labelled_traffic(errors(0.03, 300, 2)))
    found = told.stream("feedback")
    assert (found.alarming, found.recovered) == (False, True)


def test_another_general_while_degraded_makes_pairs_learn_again_once_healthy() -> None:
    told = Told({V3: {}})
    told.take(beside_general(0.05, 500))
    told.take(beside_general(0.5, 500))
    told.tell("degraded")
    for rate in (0.5, 0.05, 0.05, 0.05):
        told.take(beside_general(rate, 500, "general-2"))
        assert told.watches.by_version[V3].holdout.baseline is None
    assert told.stream("feedback").recovered, "its own labels are the way back"
    told.tell("healthy")
    told.take(beside_general(0.05, 500, "general-2"))
    held = told.watches.by_version[V3].holdout.baseline
    assert held is not None
    assert held.upper < 0.2


# ---- what a degraded version teaches ----------------------------------------------------------------


def test_no_baseline_is_learned_from_labels_of_a_degraded_version() -> None:
    """Held against the degraded state, a recovery that is none would be sure to be found."""
    told = Told({V3: {}})
    told.take(labelled_traffic(errors(0.05, 100)))
    told.tell("degraded")
    for day in range(3):
        told.take(labelled_traffic(errors(0.4, 300, day), tags={"kind": "toys"}))
    waits = told.stream("feedback")
    assert (waits.baseline, waits.recovered) == ({"labels": 100, "wanted": 200}, False)
    watched = told.watches.by_version[V3]
    assert watched.classes["feedback:toys"].first == 0
    told.tell("healthy")
    told.take(labelled_traffic(errors(0.05, 150, 9)))
    assert told.stream("feedback").baseline["rate"] < 0.1


def test_no_reference_of_shadows_is_learned_while_degraded() -> None:
    told = Told()
    told.take(shadowed(0.05))
    told.tell("degraded")
    for _ in range(3):
        told.take(shadowed(0.5, "general-2"))
    waits = told.stream("shadow")
    assert (waits.observed, waits.baseline["labels"], waits.recovered) == (431, 0, False), "19 were passed over"
    assert "upper" not in waits.baseline
    told.tell("healthy")
    told.take(shadowed(0.05, "general-2"))
    assert told.stream("shadow").baseline["upper"] < 0.2


def test_complaints_teach_nothing_while_degraded() -> None:
    told = Told(step=step())
    told.take(complained(0.1))
    before = told.watches.by_version[V3].complaints
    assert before is not None
    told.tell("degraded")
    for _ in range(4):
        told.take(complained(0.6))
    assert told.stream("complaints").baseline["learning"]
    told.tell("healthy")
    for _ in range(8):
        told.take(complained(0.1))
    assert told.stream("complaints").baseline["rate"] < 0.15


def test_labels_of_an_alarming_version_are_no_baseline_though_pinned_as_healthy() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.04, 300)))
    told.take(labelled_traffic(errors(0.5, 600, 2)))
    assert told.stream("feedback").alarming
    track = told.watches.by_version[V3].feedback
    assert 300 <= track.steady < 340
    assert track.steady_wrong < 40
    told.tell("degraded")
    told.tell("healthy")
    told.take(labelled_traffic(errors(0.04, 100, 3)))
    assert told.watches.by_version[V3].feedback.steady == track.steady + 100


def test_a_recovery_stands_no_more_once_the_version_gets_bad_again() -> None:
    """Another stream holds it degraded meanwhile: reviewers, say, of whom there is no word yet."""
    told = Told()
    told.take(labelled_traffic(errors(0.4, 200)))
    told.tell("degraded")
    told.take(labelled_traffic(errors(0.03, 200, 2)))
    assert told.stream("feedback").recovered
    told.take(labelled_traffic(errors(0.5, 200, 3)))
    assert not told.stream("feedback").recovered
    told.take(labelled_traffic(errors(0.03, 200, 4)))
    assert told.stream("feedback").recovered


def test_pairs_that_get_bad_again_have_recovered_no_more() -> None:
    told = Told()
    for rate in (0.05, 0.5):
        told.take(shadowed(rate))
    told.tell("degraded")
    for rate, recovered in ((0.05, True), (0.6, False), (0.05, True)):
        told.take(shadowed(rate))
        told.take(shadowed(rate))
        assert told.stream("shadow").recovered is recovered


# ---- recoveries that do not hold ---------------------------------------------------------------------


def test_a_recovery_that_did_not_hold_has_the_next_one_show_more() -> None:
    told = Told()
    told.take(labelled_traffic(errors(0.5, 200)))
    needed = [_labels_until_healthy(told)]
    for _ in range(2):
        told.tell("healthy")
        told.take(labelled_traffic(errors(0.5, 50)))
        needed.append(_labels_until_healthy(told))
    assert needed == sorted(needed)
    assert needed[0] < needed[-1] < 3 * needed[0]


def test_a_recovery_that_held_is_forgotten() -> None:
    def count_labels(days: int) -> tuple[int, int]:
        told = Told()
        told.take(labelled_traffic(errors(0.5, 200)))
        first = _labels_until_healthy(told)
        told.tell("healthy")
        told.take(labelled_traffic([False] * 800))
        told.day += days
        told.take(labelled_traffic(errors(0.5, 200)))
        return first, _labels_until_healthy(told)

    (first, after_a_month), (_, soon) = count_labels(30), count_labels(0)
    assert after_a_month < min(2 * first, soon - 10)


def test_each_kind_of_stream_counts_the_recoveries_that_it_has_shown() -> None:
    told = Told(step=step(PLAN))
    for _ in range(8):
        told.take(together(shadowed(0.1), complained(0.3)))
    for count in (0, 1):
        told.tell("degraded")
        for _ in range(4 * count):
            told.take(together(shadowed(0.0), complained(0.0)))
        assert {told.stream(name).recovered for name in ("feedback", "shadow", "complaints")} == {bool(count)}
        told.tell("healthy")
        of = told.watches.by_version[V3]
        assert of.complaints is not None
        assert (of.feedback.recoveries, of.shadow.recoveries, of.complaints.recoveries) == (count, count, count)


def test_what_a_recovery_asks_for_has_an_end() -> None:
    count = 0
    for _ in range(100):
        count = recoveries.add_recovery(count)
    assert 100_000 < recoveries.count_asked(count) < 1_000_000
    asked, held = recoveries.count_asked(count), recoveries.HOLDS_SECONDS
    assert recoveries.count_left(count, asked - 1, held) == count
    assert recoveries.count_left(count, asked, held - 1) == count
    assert recoveries.count_left(count, asked, held) == count - 1


def _labels_until_healthy(told: Told) -> int:
    """The number of good labels that the reverse test takes, from when the version is told to be degraded."""
    told.tell("degraded")
    for count in range(1, 400):
        told.take(labelled_traffic([False], caller=lambda _, turn=count: f"shop{turn % 3}"))
        if told.stream("feedback").recovered:
            return count
    raise AssertionError("400 good labels show no recovery")
