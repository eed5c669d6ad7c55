"""Actions are carried out once, whoever is killed or races, and one that fails keeps no other waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from redis.asyncio import Redis

from gateway.duties.responding import Left, Responding
from monitoring.degradation.verdicts.health import Action, TaskHealth
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import RunningGateway, run_gateway
from tests.walks.releases import V1, V2, audit_of, step, two_versions, until

NOW = 1_800_000_000.0
HELD = {"name": "apprentice:duty:monitor", "value": "a test"}


def action(kind: Any, version: str = V1, number: int = 0, **more: Any) -> Action:
    return Action(id=f"{number:x}-0", at=NOW + number, kind=kind, version=version, because="a test", **more)


async def hold_the_duty(running: RunningGateway) -> None:
    """Keep the monitor's own steps away."""
    await running.house.redis.set(HELD["name"], HELD["value"])


async def test_a_roll_back_is_carried_out_once_by_two_who_race_and_audited_once(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await hold_the_duty(running)
        await step(http, "promote", version=V2)
        one, two = Responding(running.house), Responding(running.house)
        done = action("roll_back", V2, before={"leading": V2}, after={"leading": V1})
        await asyncio.gather(one.move("returns", TaskHealth(actions=[done]), 0, [done]), two.carry_out())
        await until(lambda: audited(http, 1))
        alias, _ = await running.house.registry.alias("returns")
        assert alias is not None
        assert alias.leading == V1
        assert not await one._left.all()
        assert await running.house.redis.hlen(one._left.generation_names) == 0  # type: ignore[misc]


async def audited(http: Any, count: int) -> bool:
    return len(await audit_of(http, "monitor.roll_back")) == count


async def test_an_action_of_a_task_that_is_gone_is_audited_as_not_carried_out_and_the_next_one_is(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await hold_the_duty(running)
        out = Responding(running.house)
        lost = Left(task="nothing", action=action("retrain"))
        await out._left.put("nothing:0-0", msgspec.to_builtins(lost))
        draft = running.house.audit.draft("system", "monitor.retrain", V1, after={"id": "0-0"})
        await out._drafts.put("nothing:0-0", msgspec.to_builtins(draft))
        await out._left.put("returns:unreadable", {"task": 1})
        good = action("verdict", number=1, after={"verdict": "suspect"})
        await out.move("returns", TaskHealth(actions=[good]), 0, [good])
        assert not await out._left.all()
        [entry] = await audit_of(http, "monitor.retrain")
        assert "has no task 'nothing'" in entry["after"]["not_carried_out"]
        assert len(await audit_of(http, "monitor.verdict")) == 1


async def test_a_pause_is_taken_back_with_the_share_that_the_canary_had(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await hold_the_duty(running)
        await step(http, "canary", version=V2, share=0.25)
        out = Responding(running.house)
        pause = action("pause_canary", V2, before={"share": 0.25}, after={"share": 0.0})
        await out.move("returns", TaskHealth(actions=[pause]), 0, [pause])
        alias, _ = await running.house.registry.alias("returns")
        assert alias is not None
        assert alias.weights[V2] == 0.0
        undone = action(
            "undo", V2, 1, before={"share": 0.0}, after={"share": 0.25}, evidence={"undone": "pause_canary"}
        )
        await out.move("returns", TaskHealth(actions=[undone]), 1, [undone])
        alias, _ = await running.house.registry.alias("returns")
        assert alias is not None
        assert alias.weights[V2] == 0.25


async def test_a_canary_that_recovers_is_led_to_as_before_its_pause(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with two_versions(configure, make_adapter) as (running, http):
        await hold_the_duty(running)
        await step(http, "canary", version=V2, share=0.25)
        out = Responding(running.house)
        pause = action("pause_canary", V2, before={"share": 0.25}, after={"share": 0.0})
        await out.move("returns", TaskHealth(actions=[pause]), 0, [pause])
        back = action("recover", V2, 1, before={"share": 0.0}, after={"share": 0.25})
        await out.move("returns", TaskHealth(actions=[pause, back]), 1, [back])
        alias, _ = await running.house.registry.alias("returns")
        assert alias is not None
        assert alias.weights == {V2: 0.25, V1: 0.75}
        [entry] = await audit_of(http, "monitor.recover")
        assert entry["after"]["share"] == 0.25


async def test_a_canary_that_the_monitor_finds_degraded_is_not_promoted(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    async with run_gateway(configure()) as running:
        await hold_the_duty(running)
        health = msgspec.convert({"versions": {V2: {"verdict": "degraded"}}}, TaskHealth)
        await running.house.health.put("returns", health, 0)
        assert await running.house.rollouts._is_degraded("returns", V2)
        assert not await running.house.rollouts._is_degraded("returns", V1)
