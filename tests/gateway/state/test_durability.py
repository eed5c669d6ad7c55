"""Waiting until what is acknowledged is on disk, on real Valkeys of every kind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from gateway.errors import StateError
from gateway.state.durability import MARK_KEY, SYNC_BEGUN_SECONDS, Durability, NotSettled, look_at
from gateway.state.redis import Lives, open_state
from tests.fakes.ports import free_port
from tests.fakes.valkey import APPENDS, Valkey, valkey


@asynccontextmanager
async def durable(at: Valkey, replicas: int = 0, seconds: float = 30.0) -> AsyncIterator[tuple[Redis, Durability]]:
    lives = Lives()
    async with open_state(at.url, Path("unused"), lives) as redis:
        found = Durability(redis, lives, replicas, seconds)
        await found.begin()
        try:
            yield redis, found
        finally:
            await found.close()


async def marks(redis: Redis) -> int:
    return int(await redis.get(MARK_KEY) or 0)


async def test_acknowledgements_at_the_same_time_share_one_wait() -> None:
    async with valkey(*APPENDS) as at, durable(at) as (redis, durability):
        mark = durability.mark()
        await asyncio.gather(*(redis.set(f"key-{number}", "1") for number in range(20)))
        await asyncio.gather(*(durability.settle(mark) for _ in range(200)))
        assert await marks(redis) == 1
        assert durability.storage.durable


async def test_whoever_comes_while_all_rounds_are_under_way_waits_for_the_next_one() -> None:
    async with valkey(*APPENDS) as at, durable(at) as (redis, durability):
        waiting = []
        for number in range(40):
            await redis.set(f"key-{number}", "1")
            waiting.append(asyncio.create_task(durability.settle(durability.mark())))
        await asyncio.gather(*waiting)
        assert 1 < await marks(redis) < 40


async def test_it_is_settled_by_a_sync_that_began_after_the_write_whatever_waitaof_says() -> None:
    async with valkey(*APPENDS) as at, durable(at) as (redis, durability):
        await durability.settle(durability.mark())
        await redis.set("key", "1")  # less than a second after the last sync: WAITAOF may answer too early
        began = time.monotonic()
        await durability.settle(durability.mark())
        assert time.monotonic() - began >= SYNC_BEGUN_SECONDS
        assert (await redis.info("persistence"))["aof_pending_bio_fsync"] == 0


async def test_a_redis_that_syncs_nothing_while_it_rewrites_its_file_is_not_durable() -> None:
    async with valkey(*APPENDS, "--no-appendfsync-on-rewrite", "yes") as at, durable(at) as (_, durability):
        assert not durability.storage.durable
        assert "no-appendfsync-on-rewrite no" in (durability.storage.lack() or "")


async def test_where_each_write_is_on_disk_before_its_answer_nothing_is_waited_for() -> None:
    async with valkey("--appendonly", "yes", "--appendfsync", "always") as at, durable(at) as (redis, durability):
        await durability.settle(durability.mark())
        assert await marks(redis) == 0
        assert durability.storage.durable


async def test_without_an_append_only_file_it_is_named_and_nothing_is_waited_for(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with valkey() as at, durable(at) as (redis, durability):
        await durability.settle(durability.mark())
        assert await marks(redis) == 0
        assert not durability.storage.durable
    assert "Valkey is not durable: it has no append-only file" in caplog.text


async def test_a_provider_that_forbids_to_ask_is_waited_for() -> None:
    async with valkey(*APPENDS, "--rename-command", "CONFIG", "") as at, durable(at) as (redis, durability):
        await durability.settle(durability.mark())
        assert await marks(redis) == 1
        assert (durability.storage.append_fsync, durability.storage.durable) == (None, True)


async def test_a_redis_that_tells_nothing_and_has_no_file_is_found_out_by_the_first_wait() -> None:
    forbidden = ("--rename-command", "CONFIG", "", "--rename-command", "INFO", "")
    async with valkey(*forbidden) as at, durable(at) as (_, durability):
        assert durability.storage.append_only is None
        await durability.settle(durability.mark())
        assert durability.storage.append_only is False
        assert not durability.storage.durable


async def test_a_redis_that_can_not_tell_when_it_is_on_disk_is_named(caplog: pytest.LogCaptureFixture) -> None:
    async with valkey(*APPENDS, "--rename-command", "WAITAOF", "") as at, durable(at) as (_, durability):
        await durability.settle(durability.mark())
        assert not durability.storage.durable
    assert "it has no WAITAOF" in caplog.text


async def test_replicas_that_are_wanted_and_missing_are_not_settled_in_time() -> None:
    async with valkey(*APPENDS) as at, durable(at, replicas=1, seconds=0.1) as (_, durability):
        with pytest.raises(NotSettled, match="may have been stored"):
            await durability.settle(durability.mark())


async def test_a_replica_that_has_it_on_disk_settles_it() -> None:
    port = free_port()
    primary = valkey(*APPENDS, "--port", str(port), "--repl-diskless-sync-delay", "0")
    replica = valkey(*APPENDS, "--replicaof", f"127.0.0.1 {port}")
    async with primary as at, replica, durable(at, replicas=1) as (_, durability):
        await durability.settle(durability.mark())


async def test_what_was_written_to_another_process_of_redis_is_not_acknowledged() -> None:
    async with valkey(*APPENDS) as at, durable(at) as (redis, durability):
        mark = durability.mark()
        await redis.set("key", "1")
        await at.end()
        await at.start()
        with pytest.raises(NotSettled, match="started again"):
            await durability.settle(mark)
        await durability.settle(durability.mark())


async def test_a_redis_that_is_away_settles_nothing() -> None:
    async with valkey(*APPENDS) as at, durable(at) as (_, durability):
        await at.end()
        with pytest.raises(NotSettled, match="may have been stored"):
            await durability.settle(durability.mark())


async def test_a_fault_of_the_wait_settles_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    odd = ("--rename-command", "WAITAOF", "WAITAOF-ITSELF", "--rename-command", "MGET", "WAITAOF")  # its reply: nulls
    async with valkey(*APPENDS, *odd) as at, durable(at) as (_, durability):
        with pytest.raises(NotSettled, match="TypeError"):
            await durability.settle(durability.mark())
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [TypeError]


async def test_a_redis_that_may_drop_state_is_refused_and_one_that_may_not_is_not() -> None:
    async with valkey("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as at:
        with pytest.raises(StateError, match=r"maxmemory-policy is allkeys-lru\. Set maxmemory-policy noeviction"):
            async with durable(at):
                pass
        async with Redis(unix_socket_path=str(at.socket)) as redis:
            await redis.config_set("maxmemory", 0)
        async with durable(at):
            pass


async def test_what_a_redis_tells_of_itself_is_read() -> None:
    async with valkey(*APPENDS, "--maxmemory", "100mb") as at, Redis(unix_socket_path=str(at.socket)) as redis:
        kept = await look_at(redis)
        assert (kept.product, kept.append_only, kept.append_fsync) == ("Valkey", True, "everysec")
        assert (kept.eviction, kept.memory_bytes_max, kept.waits) == ("noeviction", 100 * 1024 * 1024, True)
        assert (kept.role, kept.replicas) == ("master", 0)
        assert kept.memory_bytes
        assert kept.machine_bytes
