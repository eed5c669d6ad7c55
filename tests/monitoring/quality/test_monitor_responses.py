"""Responses to judgements: verdicts with hysteresis, shares that move only to a better arm, and the ways back."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.quality.signal_table import LABELLED, UNLABELLED
from monitoring.quality.verdicts.monitor_plan import RESPONSES
from monitoring.quality.verdicts.monitor_responses import pin, release, respond
from monitoring.quality.verdicts.quality import (
    ArmEvidence,
    ArmReport,
    Pin,
    SignalReport,
    TaskQuality,
    VersionQuality,
)
from monitoring.quality.verdicts.reviewing import are_raised
from monitoring.quality.verdicts.shares import Roles, is_evidence_first
from tests.monitoring.quality.answered import (
    NOW,
    PLAN,
    ROLES,
    V1,
    V2,
    V3,
    after,
    better,
    judged,
    stream,
)

SIGNALS = (*LABELLED, *UNLABELLED)


def test_a_version_of_which_nothing_speaks_is_healthy_and_nothing_is_done() -> None:
    health, done = after(judged(stream("feedback", False), stream("latency", False)))
    assert (health.versions[V2].verdict, done) == ("healthy", [])
    assert (health.shadow_share, health.review_share, health.deferral_factor) == (0.02, 0.01, 1.0)


def test_unlabelled_signal_makes_suspect_opens_a_ticket_and_raises_measurement() -> None:
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


@pytest.mark.invariant("Unlabelled evidence makes no version degraded.")
@pytest.mark.parametrize("name", [one for one in SIGNALS if not stream(one).labelled])
def test_no_unlabelled_stream_makes_it_degraded(name: str) -> None:
    assert after(judged(stream(name)))[0].versions[V2].verdict == "suspect"


def test_degraded_share_moves_stepwise_to_the_better_arm_and_stops_at_the_floor() -> None:
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
    bad = judged(stream("feedback"), arms=(better("general", by=-0.02), ArmReport(arm="previous_version")))
    health, done = after(bad)
    assert "hold_and_alert" in done
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert after(bad, health=health, at=600)[1] == []
    health, done = after(judged(stream("feedback"), arms=(better("general"),)), health=health, at=1200)
    assert done == ["shift"], "an arm that comes to be known as better is taken"


def test_evidence_comes_first_until_an_arm_is_better_or_enough_was_seen() -> None:
    bad = judged(stream("feedback"))
    health, _ = after(bad)
    assert health.shadow_share == 1.0
    assert is_evidence_first(health, V2)
    unsure = ArmEvidence(pairs=80, unjudged=19, e_value=2.0, e_value_without_one=0.5)
    arm = ArmReport(arm="previous_version", evidence=unsure)
    health, done = after(judged(stream("feedback"), arms=(arm,)), health=health, at=60)
    assert (health.shadow_share, done) == (1.0, [])
    over = msgspec.structs.replace(arm, evidence=msgspec.structs.replace(unsure, unjudged=20))
    assert after(judged(stream("feedback"), arms=(over,)), health=health, at=120)[0].shadow_share == 0.2
    sure = msgspec.structs.replace(
        arm, evidence=msgspec.structs.replace(unsure, e_value=40.0, e_value_without_one=11.0)
    )
    health, done = after(judged(stream("feedback"), arms=(sure,)), health=health, at=120)
    assert (health.versions[V2].to, health.shadow_share, done) == ("previous_version", 0.2, ["shift"])
    assert not is_evidence_first(health, V2)


@pytest.mark.parametrize("plan", [{"shadow_room_share": 0.0}, {"responses": ["shift", "reviews"]}])
def test_callers_come_first_where_the_task_says_so(plan: dict[str, Any]) -> None:
    health, _ = after(judged(stream("feedback")), plan=msgspec.structs.replace(PLAN, **plan))
    assert health.shadow_share == (0.2 if "shadow_room_share" in plan else 0.02)
    assert not is_evidence_first(health, V2)


def test_a_previous_version_that_is_not_healthy_itself_gets_nothing() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    worse = judged(stream("feedback"), version=V1)
    health, _ = after(bad, worse)
    assert health.versions[V1].verdict == "degraded"
    assert health.versions[V2].to is None


def test_previous_version_that_degrades_at_the_same_moment_gets_nothing() -> None:
    first, tenth = "returns@v9", "returns@v10"
    roles = Roles(active=tenth, previous_version=first, general=True)
    arm = ArmReport(arm="previous_version", version=first, advantage_low=0.1)
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
    without = Roles(active=V2, previous_version=V1, general=False)
    found, done = after(judged(stream("feedback"), arms=(better("general"),)), health=health, at=180, roles=without)
    assert found.versions[V2].to is None


def test_previous_version_other_than_the_proven_one_gets_no_traffic() -> None:
    health = after(judged(stream("feedback"), arms=(better("previous_version"),)))[0]
    assert health.versions[V2].to_version == V1
    another = Roles(active=V2, previous_version=V3, general=True)
    health, _ = after(judged(stream("feedback")), health=health, at=120, roles=another)
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)


def test_two_arms_that_are_better_in_turn_do_not_make_it_go_back_and_forth() -> None:
    health = after(judged(stream("feedback"), arms=(better("general", 0.2), better("previous_version", 0.1))))[0]
    for at in (60, 120, 180):
        swapped = judged(stream("feedback"), arms=(better("general", 0.1), better("previous_version", 0.2)))
        health, _ = after(swapped, health=health, at=at)
        assert health.versions[V2].to == "general"


def test_a_version_that_is_retired_is_forgotten() -> None:
    there = Roles(active=V2, general=True, there=(V2,))
    health = TaskQuality(versions={V1: VersionQuality(verdict="degraded"), V2: VersionQuality()})
    assert set(after(judged(), health=health, roles=there)[0].versions) == {V2}


def test_the_surer_arm_is_taken_and_general_needs_a_fallback() -> None:
    both = judged(stream("feedback"), arms=(better("general", 0.2), better("previous_version", 0.1)))
    assert after(both)[0].versions[V2].to == "general"
    without = Roles(active=V2, previous_version=V1, general=False)
    assert after(both, roles=without)[0].versions[V2].to == "previous_version"


def test_where_the_check_is_not_enforced_it_rolls_back_to_a_better_previous_version() -> None:
    plan = msgspec.structs.replace(PLAN, enforced=False)
    health, done = after(judged(stream("feedback"), arms=(better("previous_version"),)), plan=plan)
    assert "roll_back" in done
    assert "shift" not in done
    assert health.versions[V2].to is None
    (action,) = [one for one in health.actions if one.kind == "roll_back"]
    assert (action.before, action.after) == ({"leading": V2}, {"leading": V1})


def test_unshiftable_task_rolls_back_to_a_better_previous_version() -> None:
    both = judged(stream("feedback"), arms=(better("general", 0.2), better("previous_version", 0.1)))
    plan = msgspec.structs.replace(PLAN, enforced=False)
    assert "roll_back" in after(both, plan=plan)[1]
    never = msgspec.structs.replace(plan, responses=["shadow"])
    assert "General is better" in after(both, plan=never)[0].actions[-2].because


def test_it_recovers_by_the_reverse_test_and_its_share_comes_back_in_steps() -> None:
    bad = judged(stream("feedback"), arms=(better("previous_version"),))
    health = after(bad)[0]
    for at in (60, 120):
        health = after(bad, health=health, at=at)[0]
    assert health.versions[V2].kept == 0.05
    quiet = judged(stream("feedback", False))
    health = after(quiet, health=health, at=180)[0]
    assert health.versions[V2].verdict == "degraded", "that nothing alarms any more is not a recovery"
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


def test_pinned_verdict_stays_whatever_signals_say_until_released_or_over() -> None:
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
    health, _ = pin(TaskQuality(), V2, word, NOW)
    health, done = after(judged(arms=(better("previous_version"),)), health=health)
    assert "shift" in done
    assert health.versions[V2].to == "previous_version"


def test_nothing_is_done_about_a_version_that_is_held_but_its_verdict_is_told() -> None:
    health, _ = pin(TaskQuality(), V2, Pin(verdict=None, by="ann", reason="we look into it", at=NOW), NOW)
    health, done = after(judged(stream("feedback"), arms=(better("general"),)), health=health)
    assert done == ["verdict"]
    assert health.versions[V2].to is None
    assert health.shadow_share == 0.02


def test_one_version_that_is_held_switches_off_nothing_for_another_that_is_not() -> None:
    roles = Roles(active=V2, canary=V3, previous_version=V1, general=True)
    health, _ = pin(TaskQuality(), V2, Pin(verdict=None, by="ann", reason="we look into it", at=NOW), NOW)
    both = (judged(stream("feedback")), judged(stream("coverage"), version=V3))
    health, done = after(*both, health=health, roles=roles)
    assert health.versions[V2].verdict == "degraded"
    assert {"shadow", "reviews", "widen"} <= set(done)
    assert (health.shadow_share, health.review_share, health.deferral_factor) == (0.2, 0.05, 2.0)
    assert {one.version for one in health.actions if one.kind in ("shadow", "reviews", "widen")} == {V3}
    assert are_raised(health, (V2, V3), PLAN)


def test_a_version_that_leads_no_more_has_no_share_shifted() -> None:
    health = after(judged(stream("feedback"), arms=(better("previous_version"),)))[0]
    rolled = Roles(active=V1, previous_version=V2, general=True)
    health = after(judged(stream("feedback")), health=health, roles=rolled, at=60)[0]
    assert (health.versions[V2].kept, health.versions[V2].to) == (1.0, None)
    assert health.versions[V2].verdict == "degraded"


def test_health_goes_through_json_unchanged() -> None:
    health = after(judged(stream("feedback"), arms=(better("general"),)))[0]
    assert msgspec.json.decode(msgspec.json.encode(health), type=TaskQuality) == health


reports = st.builds(
    stream,
    st.sampled_from(SIGNALS),
    st.booleans(),
    st.booleans(),
    of_class=st.sampled_from([None, "damaged"]),
)
arms = st.builds(
    better, st.sampled_from(["version", "general", "previous_version"]), st.sampled_from([-0.1, 0.0, 0.05, 0.3])
)


@pytest.mark.invariant("Traffic moves only to an arm shown to be better, and never under the floor.")
@given(
    st.lists(st.tuples(st.lists(reports, max_size=4), st.lists(arms, max_size=3), st.integers(0, 2000)), max_size=12),
    st.booleans(),
    st.sets(st.sampled_from(RESPONSES)),
)
def test_whatever_is_judged_shares_go_only_to_better_arms_and_never_under_the_floor(
    steps: list[tuple[list[SignalReport], list[ArmReport], int]], enforced: bool, responses: set[Any]
) -> None:
    plan = msgspec.structs.replace(PLAN, enforced=enforced, responses=sorted(responses))
    health, at = TaskQuality(), NOW
    for streams, those, seconds in steps:
        at += seconds
        before = health.versions.get(V2, VersionQuality())
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
