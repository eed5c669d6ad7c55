"""While Redis is away, or has another password or no state: admins read what was read last; the log says it once."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.background.jobs import WELL_SECONDS
from tests.fakes.valkey import APPENDS, valkey
from tests.waiting import until
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway


async def test_admins_read_the_last_state_and_the_log_has_one_begin_and_end_per_outage(
    configure: Configure, make_adapter: MakeAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="gateway.background.jobs")

    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "gateway.background.jobs"]

    async with (
        valkey(*APPENDS) as redis,
        run_gateway(configure(redis_url=redis.url)) as running,
        running.http() as http,
    ):
        await running.place(make_adapter(1))
        assert (await http.get("/health/ready")).json()["state_durable"] is True
        fresh = (await http.get("/admin/v1/adapters")).json()
        assert (fresh["stale"], fresh["adapters"][0]["generation"] > 0) == (False, True)
        await redis.end()
        async with asyncio.timeout(60):
            while not said():
                await asyncio.sleep(0.01)
        stale = (await http.get("/admin/v1/adapters")).json()
        assert stale == {**fresh, "stale": True, "adapters": [{**fresh["adapters"][0], "generation": None}]}
        replicas = (await http.get("/admin/v1/replicas")).json()
        assert (replicas["stale"], replicas["replicas"][0]["loaded"]) == (True, ["returns@v1"])
        async with asyncio.timeout(60):
            while (ready := await http.get("/health/ready")).json()["state_durable"]:
                await asyncio.sleep(0.01)
        assert ready.status_code == 200, "requests go on"
        unread = await http.get("/admin/v1/state")
        assert (unread.status_code, unread.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "can't be read now" in unread.json()["error"]["message"]
        refused = await http.put("/admin/v1/overrides/a", json={"action": "general"})
        assert "what was sent may not be stored" in refused.json()["error"]["message"]
        untried = await http.post("/admin/v1/overrides/a/dry-run", json={"action": "general"})
        assert (untried.status_code, untried.json()["error"]["code"]) == (503, "storage_unavailable")
        assert "can't be read now" in untried.json()["error"]["message"]
        await redis.start()
        async with asyncio.timeout(60 + WELL_SECONDS):
            while len(said()) < 2:
                await asyncio.sleep(0.01)
        assert (await http.get("/admin/v1/replicas")).json()["stale"] is False
    began, ended = said()
    assert began.startswith("Redis can't be used: ")
    assert ended.startswith("Redis answers again, after ")


@pytest.mark.parametrize("way", ["started again", "flushed"])
async def test_requests_go_on_by_what_was_read_where_redis_comes_back_empty(
    configure: Configure, make_adapter: MakeAdapter, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    asked = {"model": "returns", "messages": [{"role": "user", "content": "A toaster."}]}
    async with valkey() as redis, run_gateway(configure(redis_url=redis.url)) as running:
        await running.place(make_adapter(1))
        async with running.http(await running.key()) as http:
            answer = await http.post("/v1/chat/completions", json=asked)
            if way == "flushed":
                async with Redis.from_url(redis.url) as client:
                    await client.flushall()
            else:
                await redis.end()
                await redis.start()
            await until(lambda: "start all gateways again" in caplog.text)
            judged = {"request_id": answer.headers["x-request-id"], "metric": "correct", "value": True}
            refused = await http.post("/v1/feedback", json=judged)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "storage_unavailable")
            answer = await http.post("/v1/chat/completions", json=asked)
            assert (answer.status_code, answer.headers["x-apprentice-version"]) == (200, "returns@v1")


async def test_a_rotated_password_is_read_from_its_file_without_a_restart(configure: Configure, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    async with valkey() as state, Redis(unix_socket_path=str(state.socket)) as redis:
        await redis.config_set("requirepass", "one")
        async with run_gateway(configure(redis_url=state.url, redis_password_file=file)) as running:
            file.write_text("two\n")
            await redis.config_set("requirepass", "two")
            await redis.client_kill_filter(_type="normal")
            assert await running.key()
