"""What follows from judgements: verdicts with hysteresis, shares that move only to a better arm, and the ways back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.degradation.verdicts.health import (
    STREAMS,
    ArmReport,
    Judgement,
    Pin,
    StreamReport,
    TaskHealth,
    Ticket,
    VersionHealth,
)
from monitoring.degradation.verdicts.plan import RESPONSES, Plan
from monitoring.degradation.verdicts.responses import ResponseError, last_move, pin, release, respond, undo
from monitoring.degradation.verdicts.reviewing import are_raised
from monitoring.degradation.verdicts.shares import Roles

NOW = 1_800_000_000.0
V1, V2, V3 = "returns@v1", "returns@v2", "returns@v3"
ROLES = Roles(active=V2, standby=V1, general=True)
PLAN = Plan(
    feedback_metric="correct",
    responses=list(RESPONSES),
    enforced=True,
    shadow_share=0.02,
    shadow_share_suspect=0.2,
    step_seconds=60.0,
    suspect_clears_seconds=3600.0,
)
BASELINE = {"kind": "gate", "upper": 0.08}


def stream(name: str, alarming: bool = True, recovered: bool = False, **more: Any) -> StreamReport:
    labelled = name in ("reviewed", "feedback", "shadow", "complaints")
    return StreamReport(
        stream=name, labelled=labelled, observed=200, estimate=0.3, low=0.2, high=0.4, baseline=BASELINE,
        e_value=5e3 if alarming else 1.0, threshold=4e3, alarming=alarming, recovered=recovered, **more,
    )  # fmt: skip


def judged(*streams: StreamReport, arms: tuple[ArmReport, ...] = (), version: str = V2, **more: Any) -> Judgement:
    return Judgement(task="returns", version=version, at=NOW, streams=list(streams), arms=list(arms), **more)


def better(arm: Any, by: float = 0.1) -> ArmReport:
    return ArmReport(arm=arm, mean=0.9, low=0.85, high=0.95, labels=100, pairs=400, advantage_low=by)


def after(
    *judgements: Judgement, health: TaskHealth | None = None, plan: Plan = PLAN, at: float = 0.0, roles: Roles = ROLES
) -> tuple[TaskHealth, list[str]]:
    by_name = {one.version: one for one in judgements}
    found, actions = respond(health or TaskHealth(), by_name, roles, plan, NOW + at, (0.01, 0.05))
    return found, [one.kind for one in actions]


def canaried(share: float) -> Roles:
    return Roles(active=V1, canary=V2, canary_share=share, general=True)


RECOVERED = judged(stream("feedback", recovered=True))


def paused() -> TaskHealth:
    """The health once the monitor has paused a canary that had a tenth of the requests."""
    health, done = after(judged(stream("feedback")), roles=canaried(0.1))
    assert "pause_canary" in done
    return health


def test_a_version_of_which_nothing_speaks_is_healthy_and_nothing_is_done() -> None:
    health, done = after(judged(stream("feedback", False), stream("latency", False)))
    assert (health.versions[V2].verdict, done) == ("healthy", [])
    assert (health.shadow_share, health.review_share, health.deferral_factor) == (0.02, 0.01, 1.0)


def test_an_unlabelled_stream_makes_it_suspect_opens_a_ticket_and_raises_what_measures() -> None:
    health, done = after(judged(stream("coverage")))
    assert health.versions[V2].verdict == "suspect"
    assert done == ["verdict", "shadow", "reviews", "widen"]
    assert (health.shadow_share, health.review_share, health.deferral_factor) == (0.2, 0.05, 2.0)
    assert health.ticket is not None
    assert health.ticket.version == V2
    assert health.versions[V2].to is None, "no share is moved by it"


def test_actions_of_one_step_have_ids_in_their_order() -> None:
    health, done = after(judged(stream("feedback"), arms=(better("general"),)))
    ordered = sorted(health.actions, key=lambda one: one.id)
    assert [one.kind for one in ordered] == done


@pytest.mark.parametrize("name", ["reviewed", "feedback", "shadow", "complaints"])
def test_labelled_streams_alone_make_it_degraded(name: str) -> None:
    assert after(judged(stream(name)))[0].versions[V2].verdict == "degraded"


@pytest.mark.parametrize("name", [one for one in STREAMS if not stream(one).labelled])
def test_no_unlabelled_stream_makes_it_degraded(name: str) -> None:
    assert after(judged(stream(name)))[0].versions[V2].verdict == "suspect"


def test_the_share_of_a_degraded_version_goes_step_by_step_to_the_better_arm_and_stops_at_the_floor() -> None:
    bad = judged(stream("feedback"), arms=(better("general"),))
    health, done = after(bad)
    assert done == ["verdict", "retrain", "shift", "shadow", "reviews"]
    assert (health.versions[V2].kept, health.versions[V2].to) == (0.5, "general")
    health, done = after(bad, health=health, at=30)
    assert done == [], "a step takes its time"
    health, done = after(bad, health=health, at=60)
    assert (health.versions[V2].kept, done) == (0.2, ["shift"])
    health, _ = after(bad, health=health, at=120)
    health, done = after(bad, health=health, at=600)
    assert (health.versions[V2].kept, done) == (0.05, [])


def test_where_no_arm_is_known_to_be_better_it_is_held_and_people_are_told_once() -> None:
    bad = judged(stream("feedback"), arms=(better("general", by=-0.02), ArmReport(arm="standby")))
    health, done = after(bad)
    assert "hold_and_alert" in done
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert after(bad, health=health, at=600)[1] == []
    health, done = after(judged(stream("feedback"), arms=(better("general"),)), health=health, at=1200)
    assert done == ["shift"], "an arm that comes to be known as better is taken"


def test_a_standby_that_is_not_healthy_itself_gets_nothing() -> None:
    bad = judged(stream("feedback"), arms=(better("standby"),))
    worse = judged(stream("feedback"), version=V1)
    health, _ = after(bad, worse)
    assert health.versions[V1].verdict == "degraded"
    assert health.versions[V2].to is None


def test_a_standby_that_turns_degraded_at_the_same_moment_gets_nothing_whatever_its_name() -> None:
    first, tenth = "returns@v9", "returns@v10"
    roles = Roles(active=tenth, standby=first, general=True)
    arm = ArmReport(arm="standby", version=first, advantage_low=0.1)
    both = judged(stream("feedback"), version=tenth, arms=(arm,)), judged(stream("feedback"), version=first)
    health, done = after(*both, roles=roles)
    assert health.versions[tenth].to is None
    assert "shift" not in done


def test_an_arm_that_comes_to_be_worse_or_goes_away_gives_the_share_back() -> None:
    health = after(judged(stream("feedback"), arms=(better("general"),)))[0]
    unsure = ArmReport(arm="general", advantage_low=-0.1, advantage_high=0.1)
    health, done = after(judged(stream("feedback"), arms=(unsure,)), health=health, at=120)
    assert (health.versions[V2].kept, done) == (0.5, []), "it stays, and goes no further"
    worse = ArmReport(arm="general", advantage_low=-0.3, advantage_high=-0.1)
    found, done = after(judged(stream("feedback"), arms=(worse,)), health=health, at=180)
    assert (found.versions[V2].kept, found.versions[V2].to, done) == (1.0, None, ["recover", "hold_and_alert"])
    without = Roles(active=V2, standby=V1, general=False)
    found, done = after(judged(stream("feedback"), arms=(better("general"),)), health=health, at=180, roles=without)
    assert found.versions[V2].to is None


def test_another_standby_than_the_one_that_was_shown_to_be_better_gets_nothing_for_that() -> None:
    health = after(judged(stream("feedback"), arms=(better("standby"),)))[0]
    assert health.versions[V2].to_version == V1
    another = Roles(active=V2, standby=V3, general=True)
    health, _ = after(judged(stream("feedback")), health=health, at=120, roles=another)
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)


def test_two_arms_that_are_better_in_turn_do_not_make_it_go_back_and_forth() -> None:
    health = after(judged(stream("feedback"), arms=(better("general", 0.2), better("standby", 0.1))))[0]
    for at in (60, 120, 180):
        swapped = judged(stream("feedback"), arms=(better("general", 0.1), better("standby", 0.2)))
        health, _ = after(swapped, health=health, at=at)
        assert health.versions[V2].to == "general"


def test_a_version_that_is_retired_is_forgotten() -> None:
    there = Roles(active=V2, general=True, there=(V2,))
    health = TaskHealth(versions={V1: VersionHealth(verdict="degraded"), V2: VersionHealth()})
    assert set(after(judged(), health=health, roles=there)[0].versions) == {V2}


def test_a_step_back_can_not_be_undone_and_that_says_what_to_do_instead() -> None:
    """The version is healthy by then: the next step would give the share back again."""
    bad = judged(stream("feedback"), arms=(better("standby"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    health = after(judged(stream("feedback", recovered=True)), health=health, at=120)[0]
    (step,) = [one for one in health.actions if one.kind == "recover"]
    assert health.versions[V2].kept == 0.5
    with pytest.raises(ResponseError, match="hold the version where it stands .* `--verdict degraded`"):
        undo(health, step.id, "ann", NOW + 130)
    word = Pin(verdict=None, by="ann", reason="not before noon", at=NOW + 140)
    held, _ = pin(health, V2, word, NOW + 140)
    assert after(judged(), health=held, at=600)[0].versions[V2].kept == 0.5


def test_what_has_come_back_already_can_not_be_undone() -> None:
    bad = judged(stream("feedback"), arms=(better("standby"),))
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
    bad = judged(stream("feedback"), arms=(better("standby"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    second = [one for one in health.actions if one.kind == "shift"][-1]
    health, _ = pin(health, V2, Pin(verdict="healthy", by="ann", reason="faulty labels", at=NOW), NOW + 61)
    with pytest.raises(ResponseError, match="as much of its share again"):
        undo(health, second.id, "ann", NOW + 62)


def test_a_pause_that_was_given_back_can_not_be_undone() -> None:
    health = after(RECOVERED, health=paused(), roles=canaried(0.0), at=60)[0]
    (pause,) = [one for one in health.actions if one.kind == "pause_canary"]
    assert last_move(health, V2) is None
    with pytest.raises(ResponseError, match="as much of its share again"):
        undo(health, pause.id, "ann", NOW + 61)


def test_the_last_move_is_the_newest_that_took_requests_of_that_version_and_stands() -> None:
    roles = Roles(active=V2, canary=V3, canary_share=0.1, standby=V1, general=True)
    bad = judged(stream("feedback"), arms=(better("standby"),))
    worse = judged(stream("feedback"), version=V3)
    health = after(bad, roles=roles)[0]
    health = after(bad, worse, health=health, roles=roles, at=60)[0]
    moves = [one for one in health.actions if one.version == V2 and one.kind == "shift"]
    assert last_move(health, V2) == moves[1], "not the pause of the canary, nor the reviews"
    found = last_move(health, V3)
    assert found is not None
    assert found.kind == "pause_canary"
    health, _ = undo(health, moves[1].id, "ann", NOW + 61)
    found = last_move(health, V2)
    assert found is not None
    assert found.id == moves[0].id
    assert last_move(health, V1) is None


def test_the_surer_arm_is_taken_and_general_needs_an_exit() -> None:
    both = judged(stream("feedback"), arms=(better("general", 0.2), better("standby", 0.1)))
    assert after(both)[0].versions[V2].to == "general"
    without = Roles(active=V2, standby=V1, general=False)
    assert after(both, roles=without)[0].versions[V2].to == "standby"


def test_where_the_rung_is_not_enforced_it_rolls_back_to_a_better_standby() -> None:
    plan = msgspec.structs.replace(PLAN, enforced=False)
    health, done = after(judged(stream("feedback"), arms=(better("standby"),)), plan=plan)
    assert "roll_back" in done
    assert "shift" not in done
    assert health.versions[V2].to is None
    (action,) = [one for one in health.actions if one.kind == "roll_back"]
    assert (action.before, action.after) == ({"leading": V2}, {"leading": V1})


def test_where_nothing_can_be_shifted_it_rolls_back_to_a_better_standby_though_general_is_better_still() -> None:
    both = judged(stream("feedback"), arms=(better("general", 0.2), better("standby", 0.1)))
    plan = msgspec.structs.replace(PLAN, enforced=False)
    assert "roll_back" in after(both, plan=plan)[1]
    never = msgspec.structs.replace(plan, responses=["shadow"])
    assert "General is better" in after(both, plan=never)[0].actions[-2].because


def test_a_degraded_canary_is_paused_and_a_standby_is_left_alone() -> None:
    roles = Roles(active=V1, canary=V2, canary_share=0.1, standby=V3, general=True)
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
    assert step.evidence["streams"], "what shows the recovery"
    assert after(RECOVERED, health=health, roles=canaried(0.1), at=180)[1] == []
    assert health.versions[V2].paused_share is None
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


def test_it_recovers_by_the_reverse_test_and_its_share_comes_back_in_steps() -> None:
    bad = judged(stream("feedback"), arms=(better("standby"),))
    health = after(bad)[0]
    for at in (60, 120):
        health = after(bad, health=health, at=at)[0]
    assert health.versions[V2].kept == 0.05
    quiet = judged(stream("feedback", False))
    health = after(quiet, health=health, at=180)[0]
    assert health.versions[V2].verdict == "degraded", "that nothing alarms any more is no recovery"
    good = judged(stream("feedback", recovered=True))
    health, done = after(good, health=health, at=240)
    assert done == ["verdict", "recover"]
    assert (health.versions[V2].verdict, health.versions[V2].kept) == ("healthy", 0.2)
    health = after(quiet, health=health, at=300)[0]
    health = after(quiet, health=health, at=360)[0]
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert health.ticket is not None
    assert health.ticket.closed_at == NOW + 240


def test_one_stream_that_recovered_does_not_outweigh_another_that_still_alarms() -> None:
    health = after(judged(stream("feedback"), stream("shadow")))[0]
    health = after(judged(stream("feedback", recovered=True), stream("shadow")), health=health, at=60)[0]
    assert health.versions[V2].verdict == "degraded"


def test_a_suspicion_of_which_nothing_more_is_seen_ends_after_its_time() -> None:
    health = after(judged(stream("latency")))[0]
    health = after(judged(), health=health, at=60)[0]
    assert after(judged(), health=health, at=3659)[0].versions[V2].verdict == "suspect"
    assert after(judged(), health=health, at=3660)[0].versions[V2].verdict == "healthy"


def test_raised_shadows_end_where_their_ticket_has_no_money_left() -> None:
    health = after(judged(stream("coverage"), shadow_usd=2.0))[0]
    assert health.shadow_share == 0.2
    health = after(judged(stream("coverage"), shadow_usd=3.5), health=health, at=60)[0]
    assert health.shadow_share == 0.02


def test_raised_shadows_end_after_so_many_that_were_asked_whoever_judges_them() -> None:
    few = ArmReport(arm="general", pairs=40)
    health = after(judged(stream("coverage"), arms=(few,), shadows=500))[0]
    assert health.shadow_share == 0.2
    for asked, share in ((2499, 0.2), (2500, 0.02)):
        health = after(judged(stream("coverage"), arms=(few,), shadows=asked), health=health, at=60)[0]
        assert health.shadow_share == share


def test_shadows_of_all_versions_count_and_one_that_is_retired_or_counts_anew_gives_none_back() -> None:
    canaried = Roles(active=V2, canary=V3, standby=V1, general=True)
    first = (judged(stream("coverage"), shadows=100), judged(version=V1, shadows=5000))
    health = after(*first, roles=canaried)[0]
    later = (judged(stream("coverage"), shadows=1099), judged(version=V3, shadows=1000))
    health = after(*later, health=health, roles=canaried, at=60)[0]
    assert health.shadow_share == 0.2
    retired = (judged(stream("coverage"), shadows=1100), judged(version=V3, shadows=1000))
    assert after(*retired, health=health, roles=canaried, at=120)[0].shadow_share == 0.02
    anew = (judged(stream("coverage"), shadows=0), judged(version=V3, shadows=1000))
    assert after(*anew, health=health, roles=canaried, at=120)[0].shadow_share == 0.2
    anew = (judged(stream("coverage"), shadows=1), judged(version=V3, shadows=1000))
    assert after(*anew, health=health, roles=canaried, at=120)[0].shadow_share == 0.02


def ticket_of(health: TaskHealth) -> Ticket:
    assert health.ticket is not None
    return health.ticket


def test_a_version_that_is_retired_gives_no_money_back_to_a_ticket_and_keeps_what_it_has_spent() -> None:
    alone = Roles(active=V2, general=True, there=(V2,))
    dear = judged(version=V1, shadow_usd=40.0)
    health = after(judged(stream("coverage"), shadow_usd=0.0), dear)[0]
    health = after(judged(stream("coverage"), shadow_usd=0.5), health=health, roles=alone, at=60)[0]
    assert (ticket_of(health).shadow_usd_spent, health.shadow_share) == (0.5, 0.2)
    health = after(judged(stream("coverage"), shadow_usd=2.0), health=health, roles=alone, at=120)[0]
    assert (ticket_of(health).shadow_usd_spent, health.shadow_share) == (2.0, 0.02)

    health = after(judged(stream("coverage"), shadow_usd=0.0), dear)[0]
    spent = (judged(stream("coverage"), shadow_usd=0.0), judged(version=V1, shadow_usd=40.5))
    health = after(*spent, health=health, at=60)[0]
    health = after(judged(stream("coverage"), shadow_usd=0.6), health=health, roles=alone, at=120)[0]
    assert (ticket_of(health).shadow_usd_spent, health.shadow_share) == (pytest.approx(1.1), 0.02)


def test_a_version_that_counts_its_money_anew_has_spent_all_of_it() -> None:
    health = after(judged(stream("coverage"), shadow_usd=7.0))[0]
    health = after(judged(stream("coverage"), shadow_usd=0.75), health=health, at=60)[0]
    assert ticket_of(health).shadow_usd_spent == 0.75


def test_a_ticket_that_was_written_without_what_each_version_had_cost_goes_on_with_what_it_has_spent() -> None:
    health = after(judged(stream("coverage"), shadow_usd=2.0, shadows=100))[0]
    raw = msgspec.to_builtins(health)
    ticket = {"shadow_usd_spent": 0.25, "shadow_usd_before": 2.0, "shadows_before": {V2: 100}}
    raw["ticket"] = {**{name: raw["ticket"][name] for name in ("id", "version", "opened_at", "because")}, **ticket}
    raw["ticket"]["shadow_usd_max"] = 1.0
    old = msgspec.convert(raw, TaskHealth)
    health = after(judged(stream("coverage"), shadow_usd=2.25, shadows=150), health=old, at=60)[0]
    assert (ticket_of(health).shadow_usd_spent, ticket_of(health).shadows_asked) == (0.25, 50)
    health = after(judged(stream("coverage"), shadow_usd=3.25, shadows=350), health=health, at=120)[0]
    assert (ticket_of(health).shadow_usd_spent, ticket_of(health).shadows_asked) == (1.25, 250)
    assert health.shadow_share == 0.02


def test_shadows_cost_no_more_than_their_share_of_the_saving() -> None:
    health = after(judged(saving_usd=10.0, shadow_usd=2.0))[0]
    assert health.shadow_share == 0.02
    health = after(judged(saving_usd=10.0, shadow_usd=3.6), health=health)[0]
    assert health.shadow_share == 0.0
    health = after(judged(saving_usd=11.0, shadow_usd=3.6), health=health)[0]
    assert health.shadow_share == 0.0, "it does not go back and forth"
    assert after(judged(saving_usd=16.0, shadow_usd=3.6), health=health)[0].shadow_share == 0.02
    assert after(judged(saving_usd=-5.0, shadow_usd=1.1))[0].shadow_share == 0.0, "what saves nothing pays for little"


def stepped(health: TaskHealth, said: Judgement, plan: Plan, at: float, shares: tuple[float, float]) -> list[str]:
    return [one.kind for one in respond(health, {V2: said}, ROLES, plan, NOW + at, shares)[1]]


def test_what_is_usual_follows_the_settings_and_is_no_response_though_a_version_is_suspect() -> None:
    plan = msgspec.structs.replace(PLAN, responses=[])
    health, done = after(judged(stream("coverage")), plan=plan)
    assert (done, health.review_share, health.shadow_share) == (["verdict"], 0.01, 0.02)
    more = msgspec.structs.replace(plan, shadow_share=0.05)
    assert stepped(health, judged(stream("coverage")), more, 60, (0.02, 0.1)) == []


def test_how_far_reviews_are_raised_follows_the_traffic_and_is_noted_once() -> None:
    health, done = after(judged(stream("coverage")))
    assert done.count("reviews") == 1
    health, actions = respond(health, {V2: judged(stream("coverage"))}, ROLES, PLAN, NOW + 60, (0.02, 0.1))
    assert (health.review_share, actions) == (0.1, [])
    health, actions = respond(health, {V2: judged()}, ROLES, PLAN, NOW + 60, (0.02, 0.1))
    health, actions = respond(health, {V2: judged()}, ROLES, PLAN, NOW + 60 + 3600, (0.02, 0.1))
    assert (health.review_share, health.raised, actions[-1].kind) == (0.02, (), "verdict")
    assert "reviews" in stepped(health, judged(stream("coverage")), PLAN, 8000, (0.02, 0.1))


def test_a_raise_that_was_undone_falls_back_to_what_is_usual_silently() -> None:
    health, _ = after(judged(stream("coverage")))
    (raised,) = [one for one in health.actions if one.kind == "reviews"]
    health, _ = undo(health, raised.id, "ann", NOW + 1)
    health, actions = respond(health, {V2: judged(stream("coverage"))}, ROLES, PLAN, NOW + 9, (0.01, 0.05))
    assert (health.review_share, actions, "reviews" in health.raised) == (0.01, [], False)


def test_a_health_that_was_written_while_raised_notes_nothing_again() -> None:
    health, _ = after(judged(stream("coverage")))
    old = msgspec.structs.replace(health, raised=())
    health, done = after(judged(stream("coverage")), health=old, at=60)
    assert (done, health.raised) == ([], ("shadow", "reviews", "widen"))


def test_a_pinned_verdict_stays_whatever_the_streams_say_until_it_is_released_or_over() -> None:
    word = Pin(verdict="healthy", by="ann", reason="a known outage of the raters", at=NOW, until=NOW + 500)
    health, action = pin(after(judged(stream("feedback")))[0], V2, word, NOW)
    assert (action.kind, action.by) == ("pin", "ann")
    bad = judged(stream("feedback"), arms=(better("general"),))
    assert after(bad, health=health, at=60)[0].versions[V2].verdict == "healthy"
    assert after(bad, health=health, at=500)[0].versions[V2].verdict == "degraded"
    released, _ = release(health, V2, "ann", NOW + 60)
    assert after(bad, health=released, at=120)[0].versions[V2].verdict == "degraded"


def test_one_that_is_pinned_as_degraded_is_shifted_to_a_better_arm() -> None:
    word = Pin(verdict="degraded", by="ann", reason="the policy is another since noon", at=NOW)
    health, _ = pin(TaskHealth(), V2, word, NOW)
    health, done = after(judged(arms=(better("standby"),)), health=health)
    assert "shift" in done
    assert health.versions[V2].to == "standby"


def test_nothing_is_done_about_a_version_that_is_held_but_its_verdict_is_told() -> None:
    health, _ = pin(TaskHealth(), V2, Pin(verdict=None, by="ann", reason="we look into it", at=NOW), NOW)
    health, done = after(judged(stream("feedback"), arms=(better("general"),)), health=health)
    assert done == ["verdict"]
    assert health.versions[V2].to is None
    assert health.shadow_share == 0.02


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
    bad = judged(stream("feedback"), arms=(better("standby"),))
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
    bad = judged(stream("feedback"), arms=(better("standby"),))
    health = after(bad)[0]
    health = after(bad, health=health, at=60)[0]
    health, _ = undo(health, [one.id for one in health.actions if one.kind == "shift"][-1], "ann", NOW + 70)
    health, done = after(bad, health=health, at=200)
    assert (health.versions[V2].kept, health.versions[V2].to, done) == (0.5, "standby", [])
    worse = ArmReport(arm="standby", advantage_low=-0.3, advantage_high=-0.1)
    turned = judged(stream("feedback"), arms=(worse, better("general")))
    health, done = after(turned, health=health, at=260)
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert done == ["recover", "hold_and_alert"]


def test_a_task_that_may_not_shift_rolls_back_and_one_that_may_not_either_is_told_so() -> None:
    bad = judged(stream("feedback"), arms=(better("standby"),))
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


def test_one_version_that_is_held_switches_off_nothing_for_another_that_is_not() -> None:
    roles = Roles(active=V2, canary=V3, standby=V1, general=True)
    health, _ = pin(TaskHealth(), V2, Pin(verdict=None, by="ann", reason="we look into it", at=NOW), NOW)
    both = (judged(stream("feedback")), judged(stream("coverage"), version=V3))
    health, done = after(*both, health=health, roles=roles)
    assert health.versions[V2].verdict == "degraded"
    assert {"shadow", "reviews", "widen"} <= set(done)
    assert (health.shadow_share, health.review_share, health.deferral_factor) == (0.2, 0.05, 2.0)
    assert {one.version for one in health.actions if one.kind in ("shadow", "reviews", "widen")} == {V3}
    assert are_raised(health, (V2, V3), PLAN)


def test_what_can_not_be_undone_says_what_to_do_instead() -> None:
    health = after(judged(stream("coverage")))[0]
    verdict = next(one for one in health.actions if one.kind == "verdict")
    with pytest.raises(ResponseError, match="pin the version's verdict"):
        undo(health, verdict.id, "ann", NOW)
    with pytest.raises(ResponseError, match="no action 'x'"):
        undo(health, "x", "ann", NOW)
    with pytest.raises(ResponseError, match="neither pinned nor held"):
        release(health, V2, "ann", NOW)


def test_a_version_that_leads_no_more_has_no_share_shifted() -> None:
    health = after(judged(stream("feedback"), arms=(better("standby"),)))[0]
    rolled = Roles(active=V1, standby=V2, general=True)
    health = after(judged(stream("feedback")), health=health, roles=rolled, at=60)[0]
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert health.versions[V2].verdict == "degraded"


def test_health_goes_through_json_unchanged() -> None:
    health = after(judged(stream("feedback"), arms=(better("general"),)))[0]
    assert msgspec.json.decode(msgspec.json.encode(health), type=TaskHealth) == health


reports = st.builds(
    stream, st.sampled_from(STREAMS), st.booleans(), st.booleans(), of_class=st.sampled_from([None, "damaged"])
)
arms = st.builds(better, st.sampled_from(["version", "general", "standby"]), st.sampled_from([-0.1, 0.0, 0.05, 0.3]))


@given(
    st.lists(st.tuples(st.lists(reports, max_size=4), st.lists(arms, max_size=3), st.integers(0, 2000)), max_size=12),
    st.booleans(),
    st.sets(st.sampled_from(RESPONSES)),
)
def test_whatever_is_judged_shares_go_only_to_better_arms_and_never_under_the_floor(
    steps: list[tuple[list[StreamReport], list[ArmReport], int]], enforced: bool, responses: set[Any]
) -> None:
    plan = msgspec.structs.replace(PLAN, enforced=enforced, responses=sorted(responses))
    health, at = TaskHealth(), NOW
    for streams, those, seconds in steps:
        at += seconds
        before = health.versions.get(V2, VersionHealth())
        said = judged(*streams, arms=tuple(those))
        health, actions = respond(health, {V2: said}, ROLES, plan, at)
        now = health.versions[V2]
        assert plan.explored_share <= now.kept <= 1.0
        assert (now.to is None) == (now.kept == 1.0)
        if now.kept < before.kept:
            assert enforced
            assert "shift" in responses
            assert now.verdict == "degraded"
            assert any(one.arm == now.to and (one.advantage_low or 0.0) > 0.0 for one in those)
        if now.verdict == "degraded" != before.verdict:
            assert any(one.labelled and one.alarming for one in streams)
        assert all(one.evidence or one.kind not in ("verdict", "shift") or not streams for one in actions)
        assert respond(health, {V2: said}, ROLES, plan, at)[1] == [] or plan.step_seconds == 0.0
