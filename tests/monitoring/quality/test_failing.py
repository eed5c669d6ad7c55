"""Failed actions are repeated as the same action, while they still follow."""

from __future__ import annotations

import msgspec

from monitoring.quality.verdicts.actions import AGAIN_SECONDS, mark_failed
from monitoring.quality.verdicts.monitor_responses import find_last_move, pin, undo
from monitoring.quality.verdicts.quality import Action, Pin, TaskQuality
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.answered import (
    NOW,
    PLAN,
    RECOVERED,
    V1,
    V2,
    after,
    better,
    canaried,
    judged,
    paused,
    stream,
)


def rolled_back(health: TaskQuality) -> Action:
    (action,) = [one for one in health.actions if one.kind == "roll_back"]
    return action


def test_a_roll_back_that_failed_is_asked_for_again_after_a_while_as_the_same_action() -> None:
    plan, degradation = (
        msgspec.structs.replace(PLAN, enforced=False),
        judged(stream("feedback"), arms=(better("previous_version"),)),
    )
    health, _ = after(degradation, plan=plan)
    first = rolled_back(health)
    for again in (1, 2):
        tried = rolled_back(health)
        health = mark_failed(health, tried, "returns@v1 is staging: stage it first.")
        assert rolled_back(health).failed == "returns@v1 is staging: stage it first."
        assert mark_failed(health, tried, "another") == health
        at = tried.at - NOW
        assert after(degradation, health=health, plan=plan, at=at + AGAIN_SECONDS - 1)[1] == []
        health, done = after(degradation, health=health, plan=plan, at=at + AGAIN_SECONDS)
        assert done == ["roll_back"]
        asked = rolled_back(health)
        assert (asked.id, asked.failed, asked.again, asked.at) == (first.id, None, again, tried.at + AGAIN_SECONDS)
        assert mark_failed(health, tried, "too late") == health
        assert after(degradation, health=health, plan=plan, at=at + 5 * AGAIN_SECONDS)[1] == []


def test_failed_action_is_not_repeated_once_undone_or_while_the_version_is_held() -> None:
    plan, degradation = (
        msgspec.structs.replace(PLAN, enforced=False),
        judged(stream("feedback"), arms=(better("previous_version"),)),
    )
    health, _ = after(degradation, plan=plan)
    failed = mark_failed(health, rolled_back(health), "No.")
    undone, undoing = undo(failed, rolled_back(failed).id, "ada", NOW + 1)
    assert undoing.evidence["failed"] == "No."
    assert "roll_back" not in after(degradation, health=undone, plan=plan, at=1000)[1]
    held, _ = pin(failed, V2, Pin(verdict=None, by="ada", reason="a test", at=NOW), NOW + 1)
    assert after(degradation, health=held, plan=plan, at=1000)[1] == []


def test_what_failed_while_it_was_degraded_before_is_no_try_of_what_is_asked_for_now() -> None:
    roles = Roles(active=V1, canary=V2, canary_share=0.25, general=True)
    health, _ = after(judged(stream("feedback")), roles=roles)
    (pause,) = [one for one in health.actions if one.kind == "pause_canary"]
    health = mark_failed(health, pause, "No.")
    health, _ = after(judged(stream("feedback", alarming=False, recovered=True)), health=health, roles=roles, at=10)
    assert health.versions[V2].verdict == "healthy"
    health, done = after(judged(stream("feedback")), health=health, roles=roles, at=20)
    assert "pause_canary" in done
    assert [one.again for one in health.actions if one.kind == "pause_canary"] == [0, 0]


def test_canary_share_that_could_not_be_restored_is_retried_until_it_is_there() -> None:
    health, done = after(RECOVERED, health=paused(), roles=canaried(0.0), at=100)
    assert done == ["verdict", "recover"]
    first, at = health.actions[-1], 100.0
    for again in (1, 2):
        health = mark_failed(health, health.actions[-1], "returns@v1 is staging: stage it first.")
        assert after(RECOVERED, health=health, roles=canaried(0.0), at=at + AGAIN_SECONDS - 1)[1] == []
        at += AGAIN_SECONDS
        health, done = after(RECOVERED, health=health, roles=canaried(0.0), at=at)
        assert done == ["recover"]
        asked = health.actions[-1]
        assert (asked.id, asked.after, asked.failed, asked.again) == (first.id, {"share": 0.1}, None, again)
    assert health.versions[V2].paused_share == 0.1, "as the canary does not have it yet"
    health, done = after(RECOVERED, health=health, roles=canaried(0.1), at=at + 1)
    assert (health.versions[V2].paused_share, health.versions[V2].done, done) == (None, (), [])
    assert after(RECOVERED, health=health, roles=canaried(0.0), at=at + 1000)[1] == [], "an admin has paused it since"


def test_a_pause_can_be_undone_while_its_share_could_not_be_given_back() -> None:
    health = after(RECOVERED, health=paused(), roles=canaried(0.0), at=100)[0]
    assert find_last_move(health, V2) is None
    failed = mark_failed(health, health.actions[-1], "No.")
    pause = find_last_move(failed, V2)
    assert pause is not None
    assert pause.kind == "pause_canary"
    undone, _ = undo(failed, pause.id, "ann", NOW + 110)
    assert "recover" not in after(RECOVERED, health=undone, roles=canaried(0.0), at=1000)[1]


def test_canary_that_worsens_before_its_share_returns_is_paused_and_restored_once() -> None:
    health = after(RECOVERED, health=paused(), roles=canaried(0.0), at=100)[0]
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.0), at=101)
    assert "recover" not in done
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.1), at=102)
    assert done == ["pause_canary"]
    assert after(RECOVERED, health=health, roles=canaried(0.0), at=200)[1] == ["verdict", "recover"]


def test_a_pause_that_failed_leaves_nothing_to_give_back() -> None:
    health = paused()
    (pause,) = [one for one in health.actions if one.kind == "pause_canary"]
    health = mark_failed(health, pause, "No.")
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.1), at=5)
    assert (health.versions[V2].paused_share, done) == (None, []), "it waits"
    assert "recover" not in after(RECOVERED, health=health, roles=canaried(0.0), at=10)[1], "an admin has paused it"
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.05), at=AGAIN_SECONDS)
    assert (health.versions[V2].paused_share, done) == (0.05, ["pause_canary"])
