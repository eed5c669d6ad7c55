"""Actions are carried out once, whoever is killed or races, and one that fails keeps no other waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from gateway.features.quality.responding import Responding
from gateway.features.quality.state import Quality
from gateway.features.quality.waiting_actions import PendingAction
from gateway.features.releases.state import Releases
from gateway.state.outbox import Write
from monitoring.quality.verdicts.actions import AGAIN_SECONDS
from monitoring.quality.verdicts.monitor_plan import MonitorPlan
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import Action, ArmReport, Judgement, SignalReport, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles
from monitoring.redis_time import read_redis_time
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.releases import V1, V2, audit_of, step, two_versions
from tests.walks.two_replicas import LEASE_KEY

MESSAGES_KEY = "apprentice:webhooks"
NOW = 1_800_000_000.0
HELD = {"name": "apprentice:duty:monitor", "value": "a test"}


def action(kind: Any, version: str = V1, number: int = 0, **more: Any) -> Action:
    return Action(id=f"{number:x}-0", at=NOW + number, kind=kind, version=version, because="a test", **more)


@pytest.fixture(autouse=True)
async def held(redis_url: str, redis: Redis) -> None:
    """Keep the monitor's own steps away, from before a gateway runs."""
    assert redis_url
    await redis.set(HELD["name"], HELD["value"])


async def test_a_roll_back_is_carried_out_once_by_two_who_race_and_audited_once(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "promote", version=V2)
        one, two = Responding(running.features[Quality]), Responding(running.features[Quality])
        done = action("roll_back", V2, before={"leading": V2}, after={"leading": V1})
        await asyncio.gather(one.move("returns", TaskQuality(actions=[done]), 0, [done]), two.carry_out())
        await until(lambda: audited(http, 1))
        alias, _ = await running.services.control.registry.alias("returns")
        assert alias is not None
        assert alias.leading == V1
        left = running.features[Quality].outbox.actions
        assert not await left.all()
        assert await running.services.redis.hlen(left.generation_names) == 0  # type: ignore[misc]


async def audited(http: Any, count: int) -> bool:
    return len(await audit_of(http, "monitor.roll_back")) == count


async def test_action_of_a_missing_task_is_audited_as_undone_and_the_next_one_runs(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        left, out = running.features[Quality].outbox, Responding(running.features[Quality])
        lost = PendingAction(task="nothing", action=action("retrain"))
        await left.actions.put("nothing:0-0", msgspec.to_builtins(lost))
        draft = running.services.control.audit.draft("system", "monitor.retrain", V1, after={"id": "0-0"})
        await left.drafts.put("nothing:0-0", msgspec.to_builtins(draft))
        good = action("verdict", number=1, after={"verdict": "suspect"})
        await out.move("returns", TaskQuality(actions=[good]), 0, [good])
        assert list(await left.actions.all()) == ["nothing:0-0"], (
            "who moves a task's health carries out what is its own"
        )
        await out.carry_out()
        assert not await left.actions.all()
        [entry] = await audit_of(http, "monitor.retrain")
        assert "has no task 'nothing'" in entry["after"]["not_carried_out"]
        assert len(await audit_of(http, "monitor.verdict")) == 1


OVERTAKEN = [
    ("promote", {"version": V1}, action("roll_back", V2, before={"leading": V2}, after={"leading": V1}), "leads"),
    ("promote", {"version": V1}, action("pause_canary", V1, before={"share": 0.25}, after={"share": 0.0}), "canary"),
]


@pytest.mark.parametrize(("name", "body", "late", "why"), OVERTAKEN, ids=["roll back", "pause"])
async def test_action_that_an_admins_step_has_overtaken_is_not_told_as_done(
    configure: Configure, make_adapter: MakeAdapter, name: str, body: dict[str, Any], late: Action, why: str
) -> None:
    monitor = {"monitor": {"webhook_url": "http://127.0.0.1:9/"}}
    async with two_versions(configure, make_adapter, **monitor) as (running, http):
        await step(http, "promote", version=V2)
        await step(http, "canary", version=V1, share=0.25)
        await step(http, name, **body)
        await Responding(running.features[Quality]).move("returns", TaskQuality(actions=[late]), 0, [late])
        [entry] = await audit_of(http, f"monitor.{late.kind}")
        assert why in entry["after"]["not_carried_out"]
        health, _ = await running.features[Quality].store.of("returns")
        assert health.actions[0].failed == entry["after"]["not_carried_out"]
        [message] = [msgspec.json.decode(one)["body"] for one in await running.services.redis.hvals(MESSAGES_KEY)]
        assert message["failed"] == health.actions[0].failed
        assert not await running.features[Quality].outbox.actions.all()


async def test_an_undo_that_puts_nothing_back_is_answered_as_a_conflict(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        done = action("roll_back", V2, before={"leading": V2}, after={"leading": V1})
        await running.features[Quality].store.put("returns", TaskQuality(actions=[done]), 0)
        await step(http, "promote", version=V2)
        answer = await http.post(f"/admin/v1/tasks/returns/quality/actions/{done.id}/undo")
        assert answer.status_code == 409, answer.text
        told = answer.json()["error"]["message"]
        assert told == f"It is noted, but it was not carried out: {V1} no longer leads returns."
        [entry] = await audit_of(http, "monitor.undo")
        assert entry["after"]["not_carried_out"] == f"{V1} no longer leads returns."


DAMAGED = [b"{not json", b"\xff", b'{"task": 1}', b"[" * 5000]


@pytest.mark.parametrize("damaged", DAMAGED, ids=["torn", "no text", "of another form", "deep"])
async def test_what_is_damaged_is_logged_once_and_keeps_nothing_waiting(
    configure: Configure, make_adapter: MakeAdapter, damaged: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        services = running.services
        left = running.features[Quality].outbox
        await services.redis.hset(left.actions.values, mapping={"gone:1-0": damaged, b"\xff": damaged})
        await services.redis.hset(left.drafts.values, mapping={"gone:2-0": damaged, "returns:1-0": damaged})
        await services.redis.hset(left.by_admins.values, mapping={"a": damaged, "b": b'{"actor": {}}'})
        await services.redis.hset(running.features[Quality].store.object_store.generation_names, "clauses", "damaged")
        good = action("verdict", number=2, after={"verdict": "suspect"})
        await Responding(running.features[Quality]).move("returns", TaskQuality(actions=[good]), 0, [good])
        await left.actions.put(
            "returns:1-0", msgspec.to_builtins(PendingAction(task="returns", action=action("verdict")))
        )
        for _ in range(3):
            await Responding(running.features[Quality]).carry_out()
        assert len(await audit_of(http, "monitor.verdict")) == 1
        assert {name for name in await left.actions.written() if name != "\ufffd"} == {"gone:1-0"}
        assert set(await left.drafts.written()) == {"gone:2-0", "returns:1-0"}
    assert caplog.text.count("gone:1-0 of the responses can't be understood, and is left for another release") == 1
    for draft in ("gone:2-0 of the responses:audit", "returns:1-0 of the responses:audit", "a of the", "b of the"):
        assert caplog.text.count(f"can't be entered into the audit: {draft}") == 1


async def test_what_a_newer_release_has_decided_is_left_to_it_and_audited_all_the_same(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        left, out = running.features[Quality].outbox, Responding(running.features[Quality])
        told = {
            name: msgspec.to_builtins(PendingAction(task="returns", action=action("verdict")))
            for name in ("form", "kind")
        }
        told["form"]["action"]["before"] = [1]
        told["kind"]["action"]["kind"] = "translate"
        told["undone"] = msgspec.to_builtins(
            PendingAction(task="returns", action=action("undo", evidence={"undone": "translate", "action": "0-0"}))
        )
        for name, one in told.items():
            draft = running.services.control.audit.draft("system", "monitor.translate", V1, after={"id": name})
            await left.drafts.put(f"returns:{name}", msgspec.to_builtins(draft))
            await left.actions.put(f"returns:{name}", one)
        for _ in range(2):
            await out.carry_out()
        assert await left.actions.all() == {f"returns:{name}": one for name, one in told.items()}
        entries = await audit_of(http, "monitor.translate")
        assert sorted(entry["after"]["id"] for entry in entries) == sorted(told)


async def test_a_roll_back_that_fails_for_a_moment_is_told_as_failed_and_done_later(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    monitor = {"monitor": {"webhook_url": "http://127.0.0.1:9/"}}
    async with two_versions(configure, make_adapter, **monitor) as (running, http):
        services, out = running.services, Responding(running.features[Quality])
        await step(http, "promote", version=V2)
        await services.redis.set(LEASE_KEY, HELD["value"])  # or else it is brought back at once
        previous_version = await services.control.registry._versions.get(V1) or {}
        await services.control.registry._versions.put(V1, {**previous_version, "state": "staging"})
        now, actions = await read_redis_time(services.redis), list[Action]()

        async def respond_at(seconds: float) -> None:
            health, generation = await running.features[Quality].store.of("returns")
            moved, done = respond(
                health, {V2: JUDGED_DEGRADED}, Roles(active=V2, previous_version=V1), ROLLS_BACK, now + seconds
            )
            actions.extend(one for one in done if one.kind == "roll_back")
            await out.move("returns", moved, generation, done)

        for number in range(3):
            await respond_at(number * AGAIN_SECONDS)
            shown = (await http.get("/admin/v1/tasks/returns/quality")).json()
            said = shown["report"]["done"][0]  # "tried again" is not said: no settings and no judgement let it be
            assert said.endswith("It was not carried out: returns@v1 is staging: stage it first.")
        await services.control.registry._versions.put(V1, previous_version)
        await respond_at(3 * AGAIN_SECONDS)
        alias, _ = await services.control.registry.alias("returns")
        assert alias is not None
        assert alias.leading == V1
        first, last = await audit_of(http, "monitor.roll_back")
        assert "stage it first" in first["after"]["not_carried_out"]
        assert "not_carried_out" not in last["after"]
        assert (last["after"]["id"], last["after"]["again"]) == (first["after"]["id"], 3)
        assert {one.id for one in actions} == {first["after"]["id"]}
        shown = (await http.get("/admin/v1/tasks/returns/quality")).json()
        assert "not carried out" not in shown["report"]["done"][0]
        told = [msgspec.json.decode(one)["body"] for one in await services.redis.hvals(MESSAGES_KEY)]
        sent = {one["id"]: one["failed"] is None for one in told if one["kind"] == "roll_back"}
        assert sent == {actions[0].id: False, f"{actions[0].id}-3": True}
        assert not await running.features[Quality].outbox.actions.all()
        assert not await running.features[Quality].outbox.drafts.all()


JUDGED_DEGRADED = Judgement(
    task="returns",
    version=V2,
    at=NOW,
    reports=[SignalReport(signal="feedback", labelled=True, observed=200, e_value=5e3, threshold=4e3, alarming=True)],
    arms=[ArmReport(arm="previous_version", advantage_low=0.1)],
)
ROLLS_BACK = MonitorPlan(responses=["roll_back"])


async def test_what_is_not_over_holds_back_what_came_after_it_of_the_same_task_alone(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, _):
        left, out = running.features[Quality].outbox, Responding(running.features[Quality])
        for task, number in (("returns", 1), ("returns", 2), ("clauses", 3)):
            one = PendingAction(task=task, action=action("verdict", number=number))
            await left.actions.put(f"{task}:{number}", msgspec.to_builtins(one))
        assert await left.actions.claim("returns:1", "another gateway")
        await out.carry_out()
        assert set(await left.actions.all()) == {"returns:1", "returns:2"}
        await left.actions.release("returns:1")
        await out.carry_out()
        assert not await left.actions.all()


async def test_who_comes_too_late_with_an_action_tells_nothing_of_it(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        services, left = running.services, running.features[Quality].outbox
        draft = services.control.audit.draft("system", "monitor.verdict", V1)
        for change in left.changes("returns", action("verdict"), draft):
            await change.object_store.put(change.name, change.value or {})
        [one] = await left.waiting()
        message = [Write("HSETNX", MESSAGES_KEY, "returns-0-0", b"{}")]
        assert await left.finish(one, message, unaudited=False)
        await services.redis.hdel(MESSAGES_KEY, "returns-0-0")
        assert not await left.finish(one, message, unaudited=False)
        assert await left.fail(one, "It came too late.") is None
        assert await services.redis.hlen(MESSAGES_KEY) == 0
        assert not await left.actions.all()
        await Responding(running.features[Quality]).carry_out()
        [entry] = await audit_of(http, "monitor.verdict")
        assert "not_carried_out" not in (entry["after"] or {})


async def test_a_pause_is_taken_back_with_the_share_that_the_canary_had(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "canary", version=V2, share=0.25)
        out = Responding(running.features[Quality])
        pause = action("pause_canary", V2, before={"share": 0.25}, after={"share": 0.0})
        await out.move("returns", TaskQuality(actions=[pause]), 0, [pause])
        alias, _ = await running.services.control.registry.alias("returns")
        assert alias is not None
        assert alias.weights[V2] == 0.0
        undone = action(
            "undo", V2, 1, before={"share": 0.0}, after={"share": 0.25}, evidence={"undone": "pause_canary"}
        )
        await out.move("returns", TaskQuality(actions=[undone]), 1, [undone])
        alias, _ = await running.services.control.registry.alias("returns")
        assert alias is not None
        assert alias.weights[V2] == 0.25


async def test_a_canary_that_recovers_is_led_to_as_before_its_pause(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await step(http, "canary", version=V2, share=0.25)
        out = Responding(running.features[Quality])
        pause = action("pause_canary", V2, before={"share": 0.25}, after={"share": 0.0})
        await out.move("returns", TaskQuality(actions=[pause]), 0, [pause])
        back = action("recover", V2, 1, before={"share": 0.0}, after={"share": 0.25})
        await out.move("returns", TaskQuality(actions=[pause, back]), 1, [back])
        alias, _ = await running.services.control.registry.alias("returns")
        assert alias is not None
        assert alias.weights == {V2: 0.25, V1: 0.75}
        [entry] = await audit_of(http, "monitor.recover")
        assert entry["after"]["share"] == 0.25


async def test_a_degraded_canarys_pause_is_told_before_and_after_it_and_when_it_is_over(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        degraded = VersionQuality(verdict="degraded", because="Feedback is worse.")
        store = running.features[Quality].store
        generation = await store.put("returns", TaskQuality(versions={V2: degraded}), 0)
        begun = await step(http, "canary", version=V2, share=0.25)
        assert begun["warnings"][0] == (
            f"The monitor's next step pauses the canary {V2}, which then stands at 0% of the requests: it is degraded: "
            "Feedback is worse."
        )
        after = msgspec.structs.replace(degraded, done=("pause_canary",), paused_share=0.25)
        pause = action("pause_canary", V2, before={"share": 0.25}, after={"share": 0.0})
        quality = TaskQuality(versions={V2: after}, actions=[pause])
        await Responding(running.features[Quality]).move("returns", quality, generation, [pause])
        words = (await http.get(f"/admin/v1/adapters/{V2}/why")).json()["words"]
        assert words[1] == (
            f"The monitor has paused the canary {V2}, which stands at 0% of the requests: it is degraded: "
            "Feedback is worse."
        )
        raised = await step(http, "canary", version=V2, share=0.1)
        assert raised["warnings"][0] == (
            f"The canary {V2} gets 10% of the requests, and it is degraded: Feedback is worse."
        )


async def test_a_canary_that_the_monitor_finds_degraded_is_not_promoted(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with run_gateway(configure()) as running:
        health = msgspec.convert({"versions": {V2: {"verdict": "degraded"}}}, TaskQuality)
        await running.features[Quality].store.put("returns", health, 0)
        assert await running.features[Releases].canary_verdicts._is_degraded("returns", V2)
        assert not await running.features[Releases].canary_verdicts._is_degraded("returns", V1)
