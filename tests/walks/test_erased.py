"""Deleted texts leave the append-only file of the embedded Valkey."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from gateway.features.records import append_file_rewrites
from gateway.features.records.append_file_rewrites import KEY, rewrite, rewrite_now
from tests.fakes.valkey import valkey
from tests.walks.conftest import Configure, MakeAdapter
from tests.walks.gateway import run_gateway
from tests.walks.review_world import ASK, ask, tasks, until_settled, watch

TEXT = ASK["messages"][1]["content"].encode()


def kept(folder: Path) -> bytes:
    """All that the append-only file holds now."""
    found = b""
    for path in folder.glob("valkey/appendonlydir/*"):
        try:
            found += path.read_bytes()
        except FileNotFoundError:  # a rewrite has just replaced it
            return kept(folder)
    return found


@pytest.mark.invariant("Deleted texts leave the append-only file.")
async def test_deleted_texts_of_reviews_leave_the_append_only_file(
    configure: Configure, make_adapter: MakeAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Redis counts whole seconds: one of a busy machine would else put off the next rewrite for a hundred.
    monkeypatch.setattr(append_file_rewrites, "LOAD_SHARE_MAX", 1.0)
    with tempfile.TemporaryDirectory(prefix="gw") as name:
        folder = Path(name)
        redis = {"rewrite_interval_seconds": 0.5}
        configuration = configure(tasks=tasks(), data_folder=folder, redis_url=None, redis=redis)
        async with run_gateway(configuration) as gateway:
            await gateway.services.redis.config_set("rdbcompression", "no")  # a rewritten text is found as it is
            await gateway.services.redis.set("apprentice:duty:monitor", "another gateway")
            await gateway.place(make_adapter(1))
            await watch(gateway, 1.0)
            await ask(gateway)
            await until_settled(gateway, 1)
            assert TEXT in kept(folder)
            async with gateway.http() as http:
                assert (await http.delete("/admin/v1/reviews/returns")).status_code == 200
            async with asyncio.timeout(60):
                while TEXT in kept(folder):
                    await asyncio.sleep(0.05)
            assert b"returns@v1" in kept(folder)


async def rewrites(redis: Redis) -> int:
    """The number of rewrites that this Redis was asked for."""
    told = (await redis.info("commandstats")).get("cmdstat_bgrewriteaof", {})
    return int(told.get("calls", 0))


async def test_several_gateways_ask_for_one_rewrite_an_interval() -> None:
    async with valkey("--appendonly", "yes") as server, Redis(unix_socket_path=str(server.socket)) as redis:
        for _ in range(5):
            await rewrite(redis, 60.0)
        assert await rewrites(redis) == 1
        assert 50_000 < await redis.pttl(KEY) <= 60_000


async def test_a_redis_without_an_append_only_file_is_not_made_to_write_one() -> None:
    async with valkey("--appendonly", "no") as server, Redis(unix_socket_path=str(server.socket)) as redis:
        await rewrite(redis, 60.0)
        assert await rewrites(redis) == 0


async def test_a_redis_that_forbids_rewrites_says_so() -> None:
    async with valkey("--appendonly", "yes") as server, Redis(unix_socket_path=str(server.socket)) as redis:
        await redis.execute_command("ACL", "SETUSER", "default", "-bgrewriteaof")
        with pytest.raises(NoPermissionError):
            await rewrite(redis, 60.0)


async def test_a_rewrite_that_fails_is_not_told_as_done() -> None:
    async with valkey("--appendonly", "yes") as server, Redis(unix_socket_path=str(server.socket)) as redis:
        assert await rewrite_now(redis) == "rewritten"
        (base,) = server.folder.glob("appendonlydir/*.base.rdb")
        number = int(base.suffixes[1][1:]) + 1
        base.with_name(f"appendonly.aof.{number}.base.rdb").mkdir()  # the name of the next file is taken
        assert await rewrite_now(redis) == "unfinished"
