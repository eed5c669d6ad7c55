"""A degraded canary is paused, and gets its share back once it is healthy, unless an admin has said otherwise."""

from __future__ import annotations

import pytest

from monitoring.quality.verdicts.monitor_responses import ResponseError, find_last_move, pin, undo
from monitoring.quality.verdicts.quality import (
    Pin,
)
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.answered import (
    NOW,
    RECOVERED,
    ROLES,
    V1,
    V2,
    V3,
    after,
    better,
    canaried,
    judged,
    paused,
    stream,
)


def test_a_pause_that_was_given_back_can_not_be_undone() -> None:
    health = after(RECOVERED, health=paused(), roles=canaried(0.0), at=60)[0]
    (pause,) = [one for one in health.actions if one.kind == "pause_canary"]
    assert find_last_move(health, V2) is None
    with pytest.raises(ResponseError, match="as much of its share again"):
        undo(health, pause.id, "ann", NOW + 61)


def test_a_degraded_canary_is_paused_and_a_previous_version_is_left_alone() -> None:
    roles = Roles(active=V1, canary=V2, canary_share=0.1, previous_version=V3, general=True)
    health, done = after(
        judged(stream("feedback"), arms=(better("general"),)), judged(stream("shadow"), version=V3), roles=roles
    )
    assert done.count("pause_canary") == 1
    assert {one.version for one in health.actions if one.kind != "verdict"} == {V2}


def test_a_canary_that_was_paused_and_recovers_gets_its_share_back() -> None:
    health, done = after(judged(stream("feedback")), health=paused(), roles=canaried(0.0), at=60)
    assert (health.versions[V2].paused_share, done) == (0.1, [])
    health, done = after(RECOVERED, health=health, roles=canaried(0.0), at=120)
    assert done == ["verdict", "recover"]
    step = health.actions[-1]
    assert (step.before, step.after, step.version) == ({"share": 0.0}, {"share": 0.1}, V2)
    assert step.evidence["signals"], "what shows the recovery"
    assert health.versions[V2].paused_share == 0.1, "it does not have it yet"
    health, done = after(RECOVERED, health=health, roles=canaried(0.1), at=180)
    assert (health.versions[V2].paused_share, done) == (None, [])
    assert "pause_canary" in after(judged(stream("feedback")), health=health, roles=canaried(0.1), at=240)[1]


def test_a_pause_that_is_not_carried_out_yet_is_still_one() -> None:
    health, _ = after(judged(stream("feedback")), health=paused(), roles=canaried(0.1), at=1)
    assert "recover" in after(RECOVERED, health=health, roles=canaried(0.0), at=120)[1]


def test_a_canary_that_an_admin_says_is_healthy_gets_its_share_back() -> None:
    word = Pin(verdict="healthy", by="ann", reason="a faulty export of labels", at=NOW)
    health, _ = pin(paused(), V2, word, NOW + 60)
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.0), at=61)
    assert done == ["recover"]


@pytest.mark.parametrize("roles", [canaried(0.01), ROLES, Roles(active=V1, canary=V3, general=True)])
def test_what_an_admin_has_said_of_a_paused_canary_since_then_stays(roles: Roles) -> None:
    health, _ = after(judged(stream("feedback")), health=paused(), roles=roles, at=60)
    assert "recover" not in after(RECOVERED, health=health, roles=canaried(0.0), at=120)[1]


def test_a_pause_that_an_admin_has_undone_is_not_given_back_again() -> None:
    health = paused()
    (pause,) = [one for one in health.actions if one.kind == "pause_canary"]
    health, action = undo(health, pause.id, "ann", NOW + 60)
    assert (action.before, action.after) == ({"share": 0.0}, {"share": 0.1})
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.1), at=61)
    assert done == []
    assert "recover" not in after(RECOVERED, health=health, roles=canaried(0.0), at=120)[1]


def test_a_canary_without_a_share_is_not_paused_before_it_gets_one() -> None:
    health, done = after(judged(stream("feedback")), roles=canaried(0.0))
    assert "pause_canary" not in done
    assert "pause_canary" in after(judged(stream("feedback")), health=health, roles=canaried(0.05), at=60)[1]


def test_what_led_its_task_and_is_a_canary_now_has_no_share_shifted() -> None:
    health = after(judged(stream("feedback"), arms=(better("general"),)))[0]
    assert health.versions[V2].to == "general"
    health, done = after(judged(stream("feedback")), health=health, roles=canaried(0.1), at=60)
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert done == ["recover", "pause_canary"]
