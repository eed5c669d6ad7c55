"""An admin's undoing of the monitor's actions: the possible ones, their effects, and the alternatives."""

from __future__ import annotations

import msgspec
import pytest

from monitoring.quality.verdicts.monitor_plan import RESPONSES
from monitoring.quality.verdicts.monitor_responses import ResponseError, find_last_move, pin, release, respond, undo
from monitoring.quality.verdicts.quality import (
    ArmReport,
    Pin,
)
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.answered import (
    NOW,
    PLAN,
    RECOVERED,
    ROLES,
    V1,
    V2,
    V3,
    after,
    better,
    judged,
    stream,
)


def test_a_step_back_can_not_be_undone_and_that_says_what_to_do_instead() -> None:
    """The version is healthy by then: the next step would give the share back again."""
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    health = after(judged(stream("feedback", recovered=True)), health=health, at=120)[0]
    (step,) = [one for one in health.actions if one.kind == "recover"]
    assert health.versions[V2].kept == 0.5
    with pytest.raises(ResponseError, match=r"hold the version as it is .* `--verdict degraded`"):
        undo(health, step.id, "ann", NOW + 130)
    word = Pin(verdict=None, by="ann", reason="not before noon", at=NOW + 140)
    held, _ = pin(health, V2, word, NOW + 140)
    assert after(judged(), health=held, at=600)[0].versions[V2].kept == 0.5


def test_what_has_come_back_already_can_not_be_undone() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    first, second = [one for one in health.actions if one.kind == "shift"]
    health = after(RECOVERED, health=health, at=120)[0]
    assert health.versions[V2].kept == 0.5
    with pytest.raises(ResponseError, match="as much of its share again"):
        undo(health, second.id, "ann", NOW + 130)
    assert undo(health, first.id, "ann", NOW + 130)[0].versions[V2].kept == 1.0
    health = after(judged(), health=health, at=180)[0]
    assert health.versions[V2].to is None
    with pytest.raises(ResponseError, match="as much of its share again"):
        undo(health, first.id, "ann", NOW + 190)


def test_a_shift_is_not_undone_to_a_smaller_share_of_what_an_admin_says_is_healthy() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    second = [one for one in health.actions if one.kind == "shift"][-1]
    health, _ = pin(health, V2, Pin(verdict="healthy", by="ann", reason="faulty labels", at=NOW), NOW + 61)
    with pytest.raises(ResponseError, match="as much of its share again"):
        undo(health, second.id, "ann", NOW + 62)


def test_the_last_move_is_the_newest_that_took_requests_of_that_version_and_stands() -> None:
    roles = Roles(active=V2, canary=V3, canary_share=0.1, previous_version=V1, general=True)
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    worse = judged(stream("feedback"), version=V3)
    health = after(bad, roles=roles)[0]
    health = after(bad, worse, health=health, roles=roles, at=60)[0]
    moves = [one for one in health.actions if one.version == V2 and one.kind == "shift"]
    assert find_last_move(health, V2) == moves[1], "not the pause of the canary, nor the reviews"
    found = find_last_move(health, V3)
    assert found is not None
    assert found.kind == "pause_canary"
    health, _ = undo(health, moves[1].id, "ann", NOW + 61)
    found = find_last_move(health, V2)
    assert found is not None
    assert found.id == moves[0].id
    assert find_last_move(health, V1) is None


def test_a_raise_that_was_undone_falls_back_to_what_is_usual_silently() -> None:
    health, _ = after(judged(stream("coverage")))
    (raised,) = [one for one in health.actions if one.kind == "reviews"]
    health, _ = undo(health, raised.id, "ann", NOW + 1)
    health, actions = respond(health, {V2: judged(stream("coverage"))}, ROLES, PLAN, NOW + 9, (0.01, 0.05))
    assert (health.review_share, actions, "reviews" in health.raised) == (0.01, [], False)


def test_a_step_of_a_share_is_undone_with_those_after_it() -> None:
    bad = judged(stream("feedback"), arms=(better("general"),))
    health, _ = after(bad)
    health, _ = after(bad, health=health, at=61)
    first, last = [one for one in health.actions if one.kind == "shift"]
    health, action = undo(health, first.id, "ann", NOW + 62)
    assert (action.before["kept"], action.after["kept"], health.versions[V2].kept) == (0.2, 1.0, 1.0)
    assert last.id in action.because
    with pytest.raises(ResponseError, match="undone already, by ann"):
        undo(health, last.id, "ann", NOW + 63)


def test_a_shift_that_is_undone_is_not_done_again_until_all_is_well() -> None:
    bad = judged(stream("feedback"), arms=(better("general"),))
    health = after(bad)[0]
    (shift,) = [one for one in health.actions if one.kind == "shift"]
    health, action = undo(health, shift.id, "ann", NOW + 10)
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert action.after == {"kept": 1.0, "to": None, "to_version": None}
    health, done = after(bad, health=health, at=60)
    assert "shift" not in done
    assert health.versions[V2].to is None
    with pytest.raises(ResponseError, match="undone already, by ann"):
        undo(health, shift.id, "bob", NOW + 20)
    health = after(judged(stream("feedback", recovered=True)), health=health, at=120)[0]
    health = after(judged(), health=health, at=150)[0]
    assert "shift" in after(bad, health=health, at=180)[1]


def test_after_a_shift_is_undone_it_is_not_rolled_back_and_the_reason_told_is_true() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    health = after(bad)[0]
    (shift,) = [one for one in health.actions if one.kind == "shift"]
    health, _ = undo(health, shift.id, "ann", NOW + 10)
    health, done = after(bad, health=health, at=11)
    assert done == ["hold_and_alert"]
    assert "but an admin has undone the shift" in health.actions[-1].because
    assert health.versions[V2].to is None
    unenforced = msgspec.structs.replace(PLAN, enforced=False)
    assert "roll_back" not in after(bad, health=health, plan=unenforced, at=20)[1]


def test_with_the_last_step_undone_the_share_stays_where_it_was_before_it() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    health, _ = undo(health, [one.id for one in health.actions if one.kind == "shift"][-1], "ann", NOW + 70)
    health, done = after(bad, health=health, at=200)
    assert (health.versions[V2].kept, health.versions[V2].to, done) == (0.5, "previous_version", [])
    worse = ArmReport(arm="previous_version", advantage_low=-0.3, advantage_high=-0.1)
    turned = judged(stream("feedback"), arms=(worse, better("general")))
    health, done = after(turned, health=health, at=260)
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert done == ["recover", "hold_and_alert"]


def test_a_task_that_may_not_shift_rolls_back_and_one_that_may_not_either_is_told_so() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    without = msgspec.structs.replace(PLAN, responses=[one for one in RESPONSES if one != "shift"])
    health, done = after(bad, plan=without)
    assert "roll_back" in done
    (back,) = [one for one in health.actions if one.kind == "roll_back"]
    health, _ = undo(health, back.id, "ann", NOW + 10)
    health, done = after(bad, health=health, plan=without, at=20)
    assert done == ["hold_and_alert"]
    assert "an admin has undone the way back" in health.actions[-1].because
    nothing = msgspec.structs.replace(PLAN, responses=["shadow"])
    health, done = after(bad, plan=nothing)
    assert "hold_and_alert" in done
    (held,) = [one for one in health.actions if one.kind == "hold_and_alert"]
    assert "but the task's settings let nothing be shifted" in held.because


def test_what_can_not_be_undone_says_what_to_do_instead() -> None:
    health = after(judged(stream("coverage")))[0]
    verdict = next(one for one in health.actions if one.kind == "verdict")
    with pytest.raises(ResponseError, match="pin the version's verdict"):
        undo(health, verdict.id, "ann", NOW)
    with pytest.raises(ResponseError, match="no action 'x'"):
        undo(health, "x", "ann", NOW)
    with pytest.raises(ResponseError, match="neither pinned nor held"):
        release(health, V2, "ann", NOW)


def test_undone_shift_is_not_repeated_after_the_version_stops_leading_for_a_while() -> None:
    """Another version leads, all that is watched is healthy; then the same one leads again, degraded as it was."""
    bad = judged(stream("feedback"), arms=(better("general"),))
    health = after(bad)[0]
    (shift,) = [one for one in health.actions if one.kind == "shift"]
    health, _ = undo(health, shift.id, "ann", NOW + 10)
    health = respond(health, {V2: bad}, Roles(active=V1, previous_version=V2, general=True), PLAN, NOW + 20)[0]
    health, actions = respond(health, {V2: bad}, Roles(active=V2, previous_version=V1, general=True), PLAN, NOW + 1000)
    assert health.versions[V2].kept == 1.0
    assert "shift" not in [one.kind for one in actions]


@pytest.mark.parametrize("by_itself", [True, False])
def test_a_worse_verdict_of_an_admins_ends_with_its_pin(by_itself: bool) -> None:
    until = NOW + 60 if by_itself else None
    word = Pin(verdict="degraded", by="ann", reason="the policy is another", at=NOW, until=until)
    health = after(judged(), health=pin(after(judged())[0], V2, word, NOW)[0], at=10)[0]
    assert health.versions[V2].verdict == "degraded"
    if not by_itself:
        health, _ = release(health, V2, "ann", NOW + 60)
    health = after(judged(), health=health, at=70)[0]
    assert (health.versions[V2].verdict, health.versions[V2].because) == ("healthy", "The pin as degraded is over.")
    assert health.actions[-1].kind == "release"


def test_a_worse_verdict_stands_after_its_pin_where_evidence_came_meanwhile() -> None:
    word = Pin(verdict="degraded", by="ann", reason="the policy is another", at=NOW, until=NOW + 60)
    health = pin(after(judged())[0], V2, word, NOW)[0]
    health = after(judged(stream("feedback")), health=health, at=10)[0]
    health = after(judged(stream("feedback")), health=health, at=70)[0]
    assert health.versions[V2].verdict == "degraded"


def test_a_better_verdict_of_an_admins_stays_after_its_pin() -> None:
    health = after(judged(stream("feedback")))[0]
    word = Pin(verdict="healthy", by="ann", reason="a faulty export", at=NOW + 5, until=NOW + 60)
    health = pin(health, V2, word, NOW + 5)[0]
    assert after(judged(), health=health, at=70)[0].versions[V2].verdict == "healthy"
