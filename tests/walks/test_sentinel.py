"""Redis behind Sentinels: real ones that promote a replica under load."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.configuration.settings import Settings
from gateway.state.redis_options import make_client
from monitoring.redis_address import open_async_redis, open_redis
from tests.fakes.ports import free_port
from tests.fakes.valkey import AT_ONCE, Valkey, valkey
from tests.waiting import until
from tests.walks.conftest import Configure
from tests.walks.failovers import KEEPS, check_failover

SENTINEL = """\
bind 127.0.0.1
port {port}
dir {folder}
logfile sentinel.log
requirepass watched
sentinel monitor state 127.0.0.1 {primary} 1
sentinel down-after-milliseconds state 500
sentinel failover-timeout state 5000
"""


@dataclass
class Watched:
    """A primary with two replicas, and a Sentinel beside one that is gone."""

    url: str
    primary: Valkey


@asynccontextmanager
async def watched(folder: Path) -> AsyncIterator[Watched]:
    async with AsyncExitStack() as stack:
        primary_port, port = free_port(), free_port()
        primary = await stack.enter_async_context(valkey(*KEEPS, "--port", str(primary_port)))
        for _ in range(2):
            own = ("--port", str(free_port()), "--replicaof", f"127.0.0.1 {primary_port}")
            await stack.enter_async_context(valkey(*KEEPS, *own))
        configuration = folder / "sentinel.conf"
        configuration.write_text(SENTINEL.format(port=port, folder=folder, primary=primary_port))
        sentinel = await asyncio.create_subprocess_exec(primary.program, configuration, "--sentinel")
        stack.push_async_callback(sentinel.wait)
        stack.callback(lambda: sentinel.returncode is not None or sentinel.terminate())
        hosts = f"127.0.0.1:{free_port()},127.0.0.1:{port}"
        asking = await stack.enter_async_context(Redis(port=port, password="watched", retry=AT_ONCE))

        async def sees_replicas() -> bool:
            assert sentinel.returncode is None, (folder / "sentinel.log").read_text()
            with contextlib.suppress(RedisError):
                return len(await asking.sentinel_slaves("state")) == 2
            return False

        await until(sees_replicas, "a Sentinel that knows both replicas")
        yield Watched(f"redis+sentinel://{hosts}/state?sentinel_password=watched", primary)


@pytest.mark.timeout(300)
@pytest.mark.invariant("What is acknowledged is on disk.")
async def test_a_promoted_replica_has_all_that_was_acknowledged_and_the_gateway_goes_on(
    configure: Configure, tmp_path: Path
) -> None:
    async with watched(tmp_path) as state:
        await check_failover(configure(redis_url=state.url), state.primary)


async def test_one_dead_sentinel_costs_no_retries_and_none_is_lost_from_the_list(tmp_path: Path) -> None:
    async with watched(tmp_path) as state:
        began = time.monotonic()
        with open_redis(state.url) as redis:
            assert redis.ping()
        async with open_async_redis(state.url) as one:
            manager: Any = one.connection_pool.sentinel_manager
            named = set(manager.sentinels)
            await asyncio.gather(*(one.ping() for _ in range(4)))
            assert set(manager.sentinels) == named
        assert time.monotonic() - began < 2


async def test_the_password_of_sentinels_is_read_at_each_connection(tmp_path: Path) -> None:
    password = ["wrong"]
    async with watched(tmp_path) as state:
        url = state.url.partition("?")[0]
        async with make_client(url, sentinel_password=lambda: password[0]) as redis:
            with pytest.raises(RedisError, match="No master found"):
                await redis.ping()
            password[0] = "watched"
            assert await redis.ping()


@pytest.mark.parametrize(
    "address", ["redis+sentinel://h:26379", "redis+sentinel:///state", "redis+sentinel://h,/state"]
)
def test_sentinels_without_a_name_or_host_are_refused(configure: Configure, address: str) -> None:
    with pytest.raises(ValueError, match=r"redis_url: .*HOST:PORT,HOST:PORT/PRIMARY"):
        Settings(**configure(redis_url=address))


def test_a_url_of_sentinels_says_how_they_and_redis_are_reached() -> None:
    url = "rediss+sentinel://u:p%40ss@[::1]:1,two/state/3?ssl_ca_certs=%2Fca.pem&sentinel_password=own"
    pool: Any = open_redis(url, socket_timeout=30).connection_pool
    options = pool.connection_kwargs
    assert (pool.service_name, options["username"], options["password"], options["db"]) == ("state", "u", "p@ss", 3)
    assert (options["ssl_ca_certs"], options["socket_timeout"]) == ("/ca.pem", 30)
    assert "sentinel_password" not in options
    asked = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
    kept = [each.connection_kwargs for each in asked]
    assert [(each["host"], each["port"], each["password"]) for each in kept] == [
        ("::1", 1, "own"),
        ("two", 26379, "own"),
    ]
    assert {each["ssl_ca_certs"] for each in kept} == {"/ca.pem"}
    assert all("SSL" in each.connection_class.__name__ for each in (pool, *asked))
