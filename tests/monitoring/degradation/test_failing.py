"""What could not be carried out: it is asked for again as the same action, while it still follows."""

from __future__ import annotations

import msgspec

from monitoring.degradation.verdicts.health import Action, Pin, TaskHealth
from monitoring.degradation.verdicts.noting import AGAIN_SECONDS, not_carried_out
from monitoring.degradation.verdicts.responses import pin, undo
from monitoring.degradation.verdicts.shares import Roles
from tests.monitoring.degradation.answered import NOW, PLAN, V1, V2, after, better, judged, stream


def rolled_back(health: TaskHealth) -> Action:
    (action,) = [one for one in health.actions if one.kind == "roll_back"]
    return action


def test_a_roll_back_that_failed_is_asked_for_again_after_a_while_as_the_same_action() -> None:
    plan, slip = msgspec.structs.replace(PLAN, enforced=False), judged(stream("feedback"), arms=(better("standby"),))
    health, _ = after(slip, plan=plan)
    first = rolled_back(health)
    for again in (1, 2):
        tried = rolled_back(health)
        health = not_carried_out(health, tried, "returns@v1 is staging: stage it first.")
        assert rolled_back(health).failed == "returns@v1 is staging: stage it first."
        assert not_carried_out(health, tried, "another") == health
        at = tried.at - NOW
        assert after(slip, health=health, plan=plan, at=at + AGAIN_SECONDS - 1)[1] == []
        health, done = after(slip, health=health, plan=plan, at=at + AGAIN_SECONDS)
        assert done == ["roll_back"]
        asked = rolled_back(health)
        assert (asked.id, asked.failed, asked.again, asked.at) == (first.id, None, again, tried.at + AGAIN_SECONDS)
        assert not_carried_out(health, tried, "too late") == health
        assert after(slip, health=health, plan=plan, at=at + 5 * AGAIN_SECONDS)[1] == []


def test_what_failed_is_not_asked_for_again_once_it_was_undone_or_the_version_is_held() -> None:
    plan, slip = msgspec.structs.replace(PLAN, enforced=False), judged(stream("feedback"), arms=(better("standby"),))
    health, _ = after(slip, plan=plan)
    failed = not_carried_out(health, rolled_back(health), "No.")
    undone, undoing = undo(failed, rolled_back(failed).id, "ada", NOW + 1)
    assert undoing.evidence["failed"] == "No."
    assert "roll_back" not in after(slip, health=undone, plan=plan, at=1000)[1]
    held, _ = pin(failed, V2, Pin(verdict=None, by="ada", reason="a test", at=NOW), NOW + 1)
    assert after(slip, health=held, plan=plan, at=1000)[1] == []


def test_what_failed_while_it_was_degraded_before_is_no_try_of_what_is_asked_for_now() -> None:
    roles = Roles(active=V1, canary=V2, canary_share=0.25, general=True)
    health, _ = after(judged(stream("feedback")), roles=roles)
    (pause,) = [one for one in health.actions if one.kind == "pause_canary"]
    health = not_carried_out(health, pause, "No.")
    health, _ = after(judged(stream("feedback", alarming=False, recovered=True)), health=health, roles=roles, at=10)
    assert health.versions[V2].verdict == "healthy"
    health, done = after(judged(stream("feedback")), health=health, roles=roles, at=20)
    assert "pause_canary" in done
    assert [one.again for one in health.actions if one.kind == "pause_canary"] == [0, 0]
