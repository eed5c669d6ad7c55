"""States that the release before this one has written: they are read, with all of their evidence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from monitoring.quality.phases import Phase
from monitoring.quality.signals import signal_changes, version_judgement
from monitoring.quality.signals.saved_watches import UNREADABLE, pack, read_watch
from monitoring.quality.signals.version_judgement import Budget
from monitoring.quality.signals.version_watch import Watch
from monitoring.quality.verdicts.quality import TaskQuality
from tests.monitoring.quality.answered import V2
from tests.monitoring.quality.traffic import PLAN

STATES = Path(__file__).parent / "states"
LABELS_MIN = msgspec.structs.replace(PLAN, labels_min=20)
WATCHES = {
    "watching": Phase(),
    "suspect": Phase(own="suspect"),
    "degraded": Phase(own="degraded"),
    "overruled": Phase(own="degraded", pinned="healthy"),
    "overruled-recovered": Phase(own="degraded", pinned="suspect"),
    "pinned-degraded": Phase(pinned="degraded"),
    "pinned-degraded-alarmed": Phase(own="degraded"),  # its pin was not kept
    "recovered": Phase(),
}
TASKS = {
    "suspect": Phase(own="suspect"),
    "degraded": Phase(own="degraded"),
    "overruled": Phase(own="degraded", pinned="healthy"),
    "overruled-and-pinned-degraded": Phase(own="degraded", pinned="degraded"),
    "held": Phase(own="degraded"),
    "pinned-degraded": Phase(pinned="degraded"),
    "pinned-degraded-alarmed": Phase(own="degraded", pinned="degraded"),
    "recovered": Phase(),
    "paused-canary": Phase(own="degraded"),
    "changed": Phase(own="degraded"),
}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.json.decode((STATES / f"watch-{name}.json").read_bytes())
    return found


def labelled_signals(watch: Watch, at: float) -> list[dict[str, Any]]:
    budget = Budget(false_alarms_per_month=LABELS_MIN.false_alarms_per_month, labelled=0, unlabelled=0)
    judgement = version_judgement.judge(watch, LABELS_MIN, budget, at)
    return [msgspec.to_builtins(one) for one in judgement.reports if one.labelled]


@pytest.mark.parametrize("name", WATCHES)
def test_saved_watch_keeps_its_phase_and_all_evidence(name: str) -> None:
    state = recorded(name)
    watch, dropped = read_watch(pack(msgspec.json.encode(state["watch"])))
    assert (dropped, watch.course.phase) == ([], WATCHES[name])
    assert watch.course.since == state["told"]["since"]
    before = {(one["stream"], one["of_class"]): one for one in state["streams"]}
    now = {(one["signal"], one["of_class"]): one for one in labelled_signals(watch, state["at"])}
    assert now.keys() == before.keys()
    for key, one in now.items():
        for field in ("observed", "wrong", "recovered", "since", "baseline"):
            assert one[field] == before[key][field]
        # The states are of Python 3.11: from 3.12 on `sum` rounds once, not at each step.
        assert one["e_value"] == pytest.approx(before[key]["e_value"], rel=1e-12)


@pytest.mark.parametrize("name", WATCHES)
def test_saved_watch_goes_on_by_the_phase_of_its_task_and_loses_nothing(name: str) -> None:
    state = recorded(name)
    told = state["told"]
    own = "degraded" if WATCHES[name].own == "degraded" else told["verdict"] if not told["pinned"] else "healthy"
    phase = Phase(own=own, pinned=told["verdict"] if told["pinned"] else None)
    watch = read_watch(msgspec.json.encode(state["watch"]))[0]
    after = signal_changes.follow(watch, phase, told["since"])
    assert msgspec.structs.replace(after, course=watch.course) == watch
    assert after.course == msgspec.structs.replace(watch.course, phase=phase)


def test_overruled_version_of_before_restarts_what_has_recovered_once_it_is_released() -> None:
    state = recorded("overruled-recovered")
    watch = read_watch(msgspec.json.encode(state["watch"]))[0]
    after = signal_changes.follow(watch, Phase(own="suspect"), state["told"]["since"])
    assert (after.feedback.recoveries, after.course.restarted_at) == (1, state["told"]["since"])
    assert (after.feedback.reverse, after.shadow.reverse) == (None, None)


@pytest.mark.parametrize("name", TASKS)
def test_saved_task_is_read_with_its_phases_and_written_as_before(name: str) -> None:
    raw = msgspec.json.decode((STATES / f"task-{name}.json").read_bytes())
    found = msgspec.convert(raw, TaskQuality)
    assert found.versions[V2].phase == TASKS[name]
    assert msgspec.json.decode(msgspec.json.encode(found)) == raw


def test_labels_of_a_saved_version_are_the_baseline_of_the_next_one() -> None:
    watch, _ = read_watch(msgspec.json.encode(recorded("recovered")["watch"]))
    assert watch.feedback.steadies
    assert not watch.feedback.dependence.without
    baseline = watch.feedback.make_baseline(1.0, "monitor", V2)
    assert baseline is not None
    assert baseline.of == watch.feedback.steady


# ---- what can't be read ------------------------------------------------------------------------------


def test_signal_that_can_not_be_read_begins_again_alone_and_is_named() -> None:
    state = recorded("degraded")["watch"]
    whole = read_watch(msgspec.json.encode(state))[0]
    damaged = {**state, "shadow": {"pairs": "many"}, "shadows": "some", "anew": {"shadow": 5.0, "feedback": 6.0}}
    watch, dropped = read_watch(msgspec.json.encode(damaged))
    assert sorted(dropped) == ["shadow", "shadows"]
    assert (watch.shadow.pairs, watch.shadows, watch.set_at) == (0, 0, {"feedback": 6.0})
    same = msgspec.structs.replace(watch, shadow=whole.shadow, shadows=whole.shadows, set_at=whole.set_at)
    assert same == whole


def test_signal_of_one_class_that_can_not_be_read_leaves_the_other_classes() -> None:
    state = recorded("watching")["watch"]
    whole = read_watch(msgspec.json.encode(state))[0]
    damaged = {**state, "classes": {**state["classes"], "feedback:lost": {"labels": []}}}
    watch, dropped = read_watch(msgspec.json.encode(damaged))
    assert (dropped, watch) == (["feedback:lost"], whole)


def test_unknown_fields_are_ignored_and_new_ones_have_a_default() -> None:
    state = recorded("watching")["watch"]
    whole = read_watch(msgspec.json.encode(state))[0]
    del state["shadows"], state["canary"], state["feedback"]["apart"]
    state["feedback"]["of_another_release"] = state["of_another_release"] = [1]
    assert read_watch(msgspec.json.encode(state)) == (whole, [])


@pytest.mark.parametrize("field", ["form", "roll", "version", "told"])
def test_nothing_is_read_where_its_frame_is_damaged(field: str) -> None:
    state = {**recorded("watching")["watch"], field: {"of": "another kind"}}
    with pytest.raises(UNREADABLE):
        read_watch(msgspec.json.encode(state))
