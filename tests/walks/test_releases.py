"""Releases through the admin API: an alias that moves as one, sessions that stay in their arm, shadows nobody sees."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import msgspec
import pytest

from gateway.features.releases.state import Releases
from gateway.features.shadows.draws import QUEUE_MAX
from gateway.features.shadows.job import AT_ONCE_MAX
from monitoring.quality.verdicts.canary_verdict import CanaryPlan, CanaryVerdict
from router.version_choice import place_session
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Silent, Status
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import (
    STRICT,
    V1,
    V2,
    alias,
    as_many,
    ask,
    audit_of,
    judged_by_now,
    metric,
    record_of,
    shadows,
    states,
    step,
    two_versions,
)

# ---- the alias -----------------------------------------------------------------------------------


JUDGED = {"out_of_scope": {"mode": "observe"}, "low_confidence": {"mode": "enforce"}, "holdout": {"mode": "observe"}}


@pytest.mark.parametrize("name", ["canary", "promote", "move"])
async def test_a_release_of_a_version_that_the_checks_can_not_judge_says_so(
    configure: Configure, make_adapter: MakeAdapter, name: str
) -> None:
    tasks = {"returns": {"commit": "complete", "checks": JUDGED}}
    async with two_versions(configure, make_adapter, tasks=tasks) as (gateway, http):
        store = gateway.services.control.fitted
        for kind in ("scope", "confidence"):
            await store.put(V1, kind, b"any", "test", {})
        if name == "move":
            told = (await http.put("/admin/v1/aliases/returns", json={"version": V2})).json()
        else:
            told = await step(http, name, version=V2, **({"share": 0.5} if name == "canary" else {}))
        unknown = "" if name == "canary" else ", and auto does not find its task"
        assert told["warnings"] == [
            f"{V2} has no scope model: out_of_scope never fires for it{unknown}. "
            f"Run apprentice adapters fit {V2} --prompts FILE.",
            f"{V2} has no confidence model: low_confidence never fires for it. "
            f"Run apprentice evaluate {V2} --data FILE --calibrate.",
        ]
        for kind in ("scope", "confidence"):
            await store.put(V2, kind, b"any", "test", {"selector": "dialogue"} if kind == "scope" else {})
        told = await step(http, "promote", version=V2)
        assert [
            one.startswith(f"the {kind} model of {V2} is not used")
            for one, kind in zip(told["warnings"], ("scope", "confidence"), strict=True)
        ]
        await store.put(V2, "scope", b"any", "test", {})
        assert (await step(http, "promote", version=V2))["warnings"] == []


async def test_release_of_a_version_unknown_to_auto_says_so_where_it_knew_the_one_before(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (gateway, http):
        assert (await step(http, "promote", version=V2))["warnings"] == []
        await gateway.services.control.fitted.put(V2, "scope", b"any", "test", {})
        (warned,) = (await step(http, "promote", version=V1))["warnings"]
        assert warned.startswith(f"{V1} has no scope model: auto does not find its task any more. Run ")


@pytest.mark.parametrize("name", ["shadow", "canary", "promote", "rollback"])
async def test_a_step_from_another_generation_than_the_alias_has_changes_nothing(
    configure: Configure, make_adapter: MakeAdapter, name: str
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        await step(http, "promote", version=V2)
        before, held = await alias(http), await states(http)
        share = {"share": 0.5} if name in ("shadow", "canary") else {}
        error = await step(http, name, 409, version=V1, expected_generation=1, **share)
        assert "generation" in error["error"]["message"]
        assert (await alias(http), await states(http)) == (before, held)


@pytest.mark.parametrize("name", ["canary", "promote", "rollback"])
async def test_who_pushed_a_version_may_not_release_it_and_another_admin_may(
    configure: Configure, make_adapter: MakeAdapter, name: str
) -> None:
    share = {"share": 0.5} if name == "canary" else {}
    async with run_gateway(configure(release={"approver_must_differ": True})) as running:
        other = await running.admin_of("bert")
        async with running.http() as pusher, running.http(other) as approver:
            for number in (1, 2):
                await running.place(make_adapter(number), alias=False)
            await step(approver, "promote", version=V1)
            error = await step(pusher, name, 403, version=V2, **share)
            assert error["error"]["code"] == "approver_must_differ"
            assert (await alias(pusher))["weights"] == {V1: 1.0}
            assert V2 in (await step(approver, name, version=V2, **share))["weights"]


async def test_who_pushed_a_version_may_go_back_to_it_once_it_has_led(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with run_gateway(configure(release={"approver_must_differ": True})) as running:
        other = await running.admin_of("bert")
        async with running.http() as pusher, running.http(other) as approver:
            for number in (1, 2):
                await running.place(make_adapter(number), alias=False)
                await step(approver, "promote", version=f"returns@v{number}")
            assert (await step(pusher, "rollback", version=V1))["weights"] == {V1: 1.0}


async def test_a_version_that_is_not_ready_is_not_promoted_and_the_refusal_says_what_to_do(
    gateway: RunningGateway, make_adapter: MakeAdapter
) -> None:
    async with gateway.http() as http:
        body = {"task": "returns", "path": str(make_adapter(2))}
        assert (await http.post("/admin/v1/adapters", json=body)).status_code == 201
        for name, share in (("promote", {}), ("canary", {"share": 0.1}), ("shadow", {"share": 0.1})):
            error = (await step(http, name, 409, version=V2, **share))["error"]
            assert (error["code"], error["message"]) == ("state_conflict", f"{V2} is verified: stage it first.")
        assert (await alias(http))["generation"] == 1


async def test_a_version_whose_replica_went_down_is_not_promoted(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await small.kill()
        await small.until(lambda: not running.services.fleet.replicas["small-0"].up)
        error = (await step(http, "promote", 409, version=V2))["error"]
        assert error["message"] == f"{V2} is ready on 0 of its 0 replicas only: wait, or see `why`."
        await small.restart()


@pytest.mark.invariant("A swap drops, breaks and mixes no answer, and loads nothing.")
async def test_promotion_and_the_way_back_move_pointers_and_load_nothing(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        changes = [call for call in small.calls if call.method == "POST"]
        for taken, body, leader, other, its_state in (
            ("promote", {"version": V2}, V2, V1, "previous_version"),
            ("rollback", {}, V1, V2, "previous_version"),
            ("canary", {"version": V2, "share": 0.999999}, V1, V2, "canary"),
            ("rollback", {}, V1, V2, "ready"),
        ):
            await step(http, taken, **body)
            served_by = (await ask(http, "session 1")).json()["model"]
            on_trial = taken == "canary"
            assert served_by == (V2 if on_trial else leader)
            assert await states(http) == {leader: "active", other: its_state}
        assert [call for call in small.calls if call.method == "POST"] == changes


# ---- who gets the canary -------------------------------------------------------------------------


async def test_canary_gets_its_share_of_sessions_each_keeps_its_arm_and_records_say_so(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "canary", version=V2, share=0.3)
        salt = running.services.snapshot.current.policy.aliases["returns"].salt
        first = {}
        for number in range(60):
            asked = [await ask(http, f"user {number}"), await ask(http, user=f"user {number}")]
            models = {answer.json()["model"] for answer in asked}
            assert models == {V2 if place_session(f"user {number}", salt) < 0.3 else V1}
            first[number] = models.pop()
            record = await record_of(http, asked[0])
            told = (record["version"], record["reason"], record["probability"])
            assert told == ((V2, "canary", 0.3) if first[number] == V2 else (V1, "adapter", pytest.approx(0.7)))
        await step(http, "canary", version=V2, share=0.6)
        later = {number: (await ask(http, f"user {number}")).json()["model"] for number in range(60)}
        assert {number for number in first if first[number] == V2} < {n for n in later if later[n] == V2}
        assert 3 <= Counter(first.values())[V2] <= 40


async def test_a_second_canary_is_refused_and_names_the_first_which_keeps_its_plan(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        third = await running.place(make_adapter(3), alias=False)
        begun = await step(http, "canary", version=V2, share=0.2, plan=STRICT)
        refused = await step(http, "canary", 409, version=third, share=0.1)
        assert refused["error"]["code"] == "state_conflict"
        assert f"{V2} is the canary of returns" in refused["error"]["message"]
        assert "apprentice adapters rollback returns --canary" in refused["error"]["message"]
        now = await alias(http)
        assert (now["weights"], now["canary"]["plan"]) == (begun["weights"], begun["canary"]["plan"])
        await step(http, "rollback", canary_only=True)
        assert (await step(http, "canary", version=third, share=0.1))["canary"]["version"] == third


async def test_judgement_continues_after_a_raised_share_and_restarts_with_another_plan(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        plan = {**STRICT, "requests_min": 5000}

        async def seen() -> int:
            return int((await judged_by_now(http))["canary_requests"])

        begun = await step(http, "canary", version=V2, share=0.9, plan=plan)
        for number in range(20):
            await ask(http, f"session {number}")
        counted = await until(seen)
        for raised, body in ((0.95, {"plan": plan}), (0.97, {})):
            shown = (await step(http, "canary", version=V2, share=raised, **body))["canary"]
            assert shown == begun["canary"] | {name: shown[name] for name in ("share", "because", "evidence")}
            assert (shown["share"], await seen() >= counted) == (raised, True)
        await step(http, "canary", version=V2, share=0.95, plan=plan | {"alpha": 0.01})
        assert await seen() == 0
        by_people = await step(http, "canary", version=V2, share=0.96, plan=None)
        assert by_people["canary"]["plan"] is None


async def test_of_two_admins_who_take_the_same_step_at_once_one_has_changed_the_alias(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        both = await asyncio.gather(*(step(http, "promote", version=V2) for _ in range(2)))
        assert sorted(shown["changed"] for shown in both) == [False, True]
        assert len(await audit_of(http, "alias.promote")) == 1


async def test_a_shown_version_has_no_newer_generation_than_its_state(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To retire it by that generation would else overrule a step that nobody has seen."""
    async with two_versions(configure, make_adapter) as (running, http):
        registry = running.services.control.registry
        before = (await http.get(f"/admin/v1/adapters/{V2}")).json()
        read_one, read_all = registry.generation, registry.generations

        async def read_one_late(name: str) -> int:
            await registry.withdraw(V2)
            return await read_one(name)

        async def read_all_late() -> dict[str, int]:
            await registry.withdraw(V2)
            return await read_all()

        monkeypatch.setattr(registry, "generation", read_one_late)
        shown = (await http.get(f"/admin/v1/adapters/{V2}")).json()
        assert (before["state"], shown["state"]) == ("ready", "verified")
        assert shown["generation"] > before["generation"]
        await registry.move(V2, "staging")
        monkeypatch.setattr(registry, "generations", read_all_late)
        [listed] = (await http.get("/admin/v1/adapters", params={"state": "verified"})).json()["adapters"]
        assert (listed["version"], listed["generation"]) == (V2, await read_one(V2))


# ---- shadows -------------------------------------------------------------------------------------


async def test_a_shadow_that_is_so_already_changes_nothing_and_another_ones_end_leaves_it(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        for version, share, shadow, changed in (
            (V2, 0.5, {V2: 0.5}, True),
            (V2, 0.5, {V2: 0.5}, False),
            ("returns@v9", 0, {V2: 0.5}, False),
            (V1, 0, {V2: 0.5}, False),
            (V2, 0, {}, True),
            (V2, 0, {}, False),
        ):
            shown = await step(http, "shadow", version=version, share=share)
            assert (shown["shadow"], shown["changed"]) == (shadow, changed)
        assert len(await audit_of(http, "alias.shadow")) == 2


@pytest.mark.invariant("No caller sees or waits for a shadow.")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("agrees", [False, True])
async def test_a_shadow_answers_a_copy_that_nobody_sees_and_its_cost_is_booked_as_shadow(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine, stream: bool, agrees: bool
) -> None:
    small.answers |= {V1: "approve it", V2: "approve  it" if agrees else "reject it"}
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "shadow", version=V2, share=1.0)
        answer = await ask(http, stream=stream)
        [shadow] = await until(lambda: shadows(running))
        primary = await record_of(http, answer)
        assert "reject" not in answer.text
        assert answer.headers["x-apprentice-version"] == primary["version"] == V1
        assert (shadow["version"], shadow["shadow_of"], shadow["caller"]) == (V2, primary["id"], "")
        assert (shadow["agrees"], shadow["outcome"], shadow["saving_usd"]) == (agrees, "ok", None)
        assert shadow["pair"]["version"] == V1
        assert shadow["cost_usd"] > 0
        booked = await metric(http, "apprentice_cost_usd_total", 'purpose="shadow"')
        assert booked == pytest.approx(shadow["cost_usd"])
        assert await metric(http, "apprentice_cost_usd_total", 'purpose="serve"') == pytest.approx(primary["cost_usd"])
        assert await metric(http, "apprentice_requests_total") == 1
        outcome = f'outcome="{"agreed" if agrees else "differed"}"'
        assert await metric(http, "apprentice_shadow_requests_total", outcome) == 1


async def test_failing_shadow_is_recorded_and_hurts_neither_callers_nor_its_replica(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "shadow", version=V2, share=1.0)
        small.faults.add(Status(500), model=V2)
        for _ in range(5):
            assert (await ask(http)).headers["x-apprentice-reason"] == "adapter"
        found = await until(lambda: as_many(shadows(running), 5))
        assert {(one["outcome"], one["agrees"], one["attempts"][0]["fault"]) for one in found} == {
            ("failed", None, "failed")
        }
        assert running.services.fleet.replicas["small-0"].resting_until < time.monotonic()
        assert await metric(http, "apprentice_shadow_requests_total", 'outcome="failed"') == 5


@pytest.mark.invariant("No caller sees or waits for a shadow.")
async def test_hanging_shadows_delay_no_caller_and_what_the_queue_drops_is_counted(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "shadow", version=V2, share=1.0)
        small.faults.add(Silent(), model=V2)
        dropped = ("apprentice_shadow_requests_total", 'outcome="dropped"')
        for _ in range(AT_ONCE_MAX):
            await ask(http)
        await small.until(lambda: sum(seen.model == V2 for seen in small.requests) == AT_ONCE_MAX)
        for _ in range(QUEUE_MAX):
            await ask(http)
        assert await metric(http, *dropped) == 0
        for _ in range(7):
            assert (await ask(http)).json()["model"] == V1
        assert await metric(http, *dropped) == 7
        assert await shadows(running) == []
        assert small.in_flight == AT_ONCE_MAX


async def test_a_shadow_that_hangs_is_given_up_after_the_time_an_answer_may_take(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    limits = {"answer_timeout_seconds": 0.3, "retries_max": 0}
    async with two_versions(configure, make_adapter, limits=limits) as (running, http):
        await step(http, "shadow", version=V2, share=1.0)
        small.faults.add(Silent(), model=V2)
        await ask(http)
        [shadow] = await until(lambda: shadows(running))
        assert (shadow["outcome"], shadow["attempts"][0]["fault"]) == ("failed", "silent")


async def test_a_shadow_takes_no_probe_from_those_who_tell_what_came_of_it(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "shadow", version=V2, share=1.0)
        replica = running.services.fleet.replicas["small-0"]
        for _ in range(3):
            replica.failed(time.monotonic() - 60, V2, "failed", 0.0)
        small.faults.add(Silent(), model=V2)
        await ask(http)
        await small.until(lambda: any(seen.model == V2 for seen in small.requests))
        assert replica.view().circuits[V2].open
        assert not replica.view().circuits[V2].probing


async def test_a_share_of_nothing_ends_a_shadow(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        await step(http, "shadow", version=V2, share=0.5)
        assert await states(http) == {V1: "active", V2: "shadow"}
        assert (await step(http, "shadow", version=V2, share=0))["shadow"] == {}
        assert await states(http) == {V1: "active", V2: "ready"}


async def test_the_active_version_is_nobodys_shadow(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with two_versions(configure, make_adapter) as (_, http):
        error = await step(http, "shadow", 409, version=V1, share=0.5)
        assert "can't be its own shadow" in error["error"]["message"]


async def test_a_canary_that_no_replica_has_now_is_promoted_by_itself_only_once_it_is_back(
    gateway: RunningGateway, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    canary = await gateway.place(make_adapter(2), alias=False)
    services, promote = gateway.services, CanaryVerdict(action="promote", because="It is no worse.", evidence={})
    await services.control.registry.canary("returns", canary, 0.5, "ada", msgspec.to_builtins(CanaryPlan()))
    replica = services.fleet.replicas["small-0"]
    await small.kill()
    await until(lambda: not replica.up)
    alias, _ = await services.control.registry.alias("returns")
    assert alias is not None
    assert alias.canary is not None
    await gateway.features[Releases].canary_verdicts.carry_out("returns", alias.canary, promote)
    assert (await services.control.registry.alias("returns"))[0] == alias
    await small.restart()
    await until(lambda: canary in replica.loaded)
    held = CanaryVerdict(action="hold", because="Its time is over.", evidence={})
    await gateway.features[Releases].canary_verdicts.carry_out("returns", alias.canary, held)
    holds = [entry for entry in await services.control.audit.read(limit=1000) if entry.action == "alias.hold"]
    assert [entry.after["because"] for entry in holds] == ["Its time is over."], "the wait was not a hold"
    await gateway.features[Releases].canary_verdicts.carry_out("returns", alias.canary, promote)
    promoted, _ = await services.control.registry.alias("returns")
    assert promoted is not None
    assert promoted.weights == {canary: 1.0}


async def test_an_alias_without_weights_is_told_which_field_is_at_fault(gateway: RunningGateway) -> None:
    async with gateway.http() as http:
        answer = await http.put("/admin/v1/aliases/returns", json={"weights": {}})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "weights"), error
