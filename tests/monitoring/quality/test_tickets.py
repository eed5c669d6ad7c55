"""The cost of looking into a suspicion, its limit, and the shares of shadows and reviews that follow from it."""

from __future__ import annotations

import msgspec
import pytest

from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import (
    ArmReport,
    Judgement,
    TaskQuality,
)
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.answered import (
    NOW,
    PLAN,
    ROLES,
    V1,
    V2,
    V3,
    after,
    judged,
    stream,
    ticket_of,
)


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


def test_shadows_of_all_versions_count_and_retired_or_reset_ones_refund_none() -> None:
    canaried = Roles(active=V2, canary=V3, previous_version=V1, general=True)
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


def test_retired_version_refunds_no_ticket_money_and_keeps_what_it_has_spent() -> None:
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


def test_ticket_stored_without_costs_per_version_continues_from_its_total() -> None:
    health = after(judged(stream("coverage"), shadow_usd=2.0, shadows=100))[0]
    raw = msgspec.to_builtins(health)
    ticket = {"shadow_usd_spent": 0.25, "shadow_usd_before": 2.0, "shadows_before": {V2: 100}}
    raw["ticket"] = {**{name: raw["ticket"][name] for name in ("id", "version", "opened_at", "because")}, **ticket}
    raw["ticket"]["shadow_usd_max"] = 1.0
    old = msgspec.convert(raw, TaskQuality)
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


def stepped(
    health: TaskQuality, said: Judgement, plan: MonitorPlan, at: float, shares: tuple[float, float]
) -> list[str]:
    return [one.kind for one in respond(health, {V2: said}, ROLES, plan, NOW + at, shares)[1]]


def test_usual_level_follows_the_settings_and_is_no_response_though_suspect() -> None:
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


def test_a_health_that_was_written_while_raised_notes_nothing_again() -> None:
    health, _ = after(judged(stream("coverage")))
    old = msgspec.structs.replace(health, raised=())
    health, done = after(judged(stream("coverage")), health=old, at=60)
    assert (done, health.raised) == ([], ("shadow", "reviews", "widen"))
