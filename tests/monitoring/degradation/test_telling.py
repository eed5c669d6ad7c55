"""What is told of a task in typical situations, word for word: told/NAME.txt, one file a situation."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from monitoring.degradation.verdicts.health import Action, Judgement, Pin, TaskHealth, VersionHealth
from monitoring.degradation.verdicts.plan import Plan
from monitoring.degradation.verdicts.shares import Roles
from monitoring.degradation.words.telling import Told, told
from tests.monitoring.degradation.situations import (
    DEGRADED,
    HEALTHY,
    JUDGED,
    NOW,
    PLAN,
    SITUATIONS,
    SLIPPED,
    of,
    single,
    text_of,
)

FOLDER = Path(__file__).with_name("told")


@pytest.mark.parametrize("name", SITUATIONS)
def test_each_situation_is_told_word_for_word(name: str) -> None:
    assert text_of(told(SITUATIONS[name])) == (FOLDER / f"{name}.txt").read_text(encoding="utf-8")


def test_there_is_no_text_without_its_situation() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(SITUATIONS)


@pytest.mark.parametrize("name", SITUATIONS)
def test_every_sentence_ends_as_one_and_none_is_said_twice(name: str) -> None:
    found = told(SITUATIONS[name])
    sentences = [*found.known, *found.sure, *found.done, *found.next, *found.caveats]
    assert all(one[-1] in ".?" and not one.endswith("..") for one in sentences)
    assert len(set(sentences)) == len(sentences)
    assert "None" not in text_of(found)
    assert "nan" not in text_of(found).split()


def test_it_goes_through_json_unchanged() -> None:
    found = told(SITUATIONS["degraded_and_shifted"])
    assert msgspec.json.decode(msgspec.json.encode(found), type=Told) == found
    assert (found.version, found.verdict, found.since) == ("returns@v3", "degraded", NOW - 3 * 3600)


def test_a_pin_that_is_over_is_no_caveat() -> None:
    pin = Pin(verdict=None, by="a", reason="Wait.", at=NOW - 10, until=NOW - 1)
    assert told(of(single(msgspec.structs.replace(HEALTHY, pin=pin)), JUDGED)).caveats == []


def test_a_version_that_is_held_is_told_with_the_reason() -> None:
    pin = Pin(verdict=None, by="abcdefghijkl", reason="An experiment.", at=NOW - 60)
    caveats = told(of(single(msgspec.structs.replace(DEGRADED, pin=pin)), SLIPPED)).caveats
    assert caveats[0].startswith("returns@v3 is held: nothing is done about its verdict until it is released, by abc")


def test_what_the_settings_forbid_is_not_told_as_not_known() -> None:
    known = msgspec.structs.replace(DEGRADED, done=("hold_and_alert",))
    found = told(of(single(known), SLIPPED, plan=msgspec.structs.replace(PLAN, enforced=False)))
    assert "the task's settings let nothing be shifted to the better arm" in found.line
    assert any("is not enforced" in one for one in found.caveats)


def test_pairs_that_nobody_judges_are_told() -> None:
    plan = msgspec.structs.replace(PLAN, shadow_share=0.1)
    assert any("judge of pairs may be down" in one for one in told(of(single(HEALTHY), JUDGED, plan=plan)).caveats)


def test_a_judge_that_judges_itself_is_told() -> None:
    plan = msgspec.structs.replace(PLAN, shadow_share_suspect=0.1, judges_itself=True)
    [one] = [one for one in told(of(single(HEALTHY), JUDGED, plan=plan)).caveats if "judges its own" in one]
    assert "monitor.judge.pool" in one
    none = msgspec.structs.replace(plan, shadow_share=0.0, shadow_share_suspect=0.0)
    assert not [one for one in told(of(single(HEALTHY), JUDGED, plan=none)).caveats if "judges its own" in one]


def test_a_monitor_that_is_behind_is_told() -> None:
    (caveat,) = told(of(single(HEALTHY), JUDGED, behind_seconds=7_200.0)).caveats
    assert caveat.startswith("The monitor is 2 hours behind")


def test_a_canary_has_sentences_of_its_own() -> None:
    health = TaskHealth(
        versions={"returns@v3": HEALTHY, "returns@v4": VersionHealth(verdict="degraded", because="Bad.")}
    )
    found = told(of(health, JUDGED, roles=Roles(active="returns@v3", canary="returns@v4")))
    assert "returns@v4 is the canary of returns, and is degraded." in found.known
    assert found.verdict == "healthy"


def test_no_more_actions_are_told_than_can_be_read() -> None:
    actions = [
        Action(id=f"a-{number}", at=NOW, kind="verdict", version="returns@v3", because="") for number in range(100)
    ]
    done = told(of(single(HEALTHY, actions=actions), JUDGED)).done
    assert len(done) == 10
    assert "action a-99." in done[0]


def test_whatever_is_not_known_is_left_out() -> None:
    judged = Judgement(task="returns", version="returns@v3", at=NOW)
    found = told(of(single(VersionHealth()), judged, plan=Plan(), roles=Roles(active="returns@v3")))
    assert found.line == "returns@v3 is healthy; as far as can be told with so few labels; 0 labels."
    assert found.since is None
