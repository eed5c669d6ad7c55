"""The connection to Redis where its address leads to another process: real Valkeys behind a name that moves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.errors import StateError
from gateway.state import embedded_valkey, redis_options
from gateway.state.redis import Lives, open_state
from serving.object_store import Change, ObjectStore, Unchanged, change_together
from tests.fakes.valkey import APPENDS, valkey

Write = Callable[[Redis, str], Awaitable[Any]]
SCRIPT = "redis.call('SET', KEYS[1], ARGV[1])"


def write_several(redis: Redis, value: str, transaction: bool = False) -> Awaitable[Any]:
    return redis.pipeline(transaction=transaction).set("key", value).get("key").execute()


@pytest.mark.parametrize(
    "write",
    [
        lambda redis, value: redis.set("key", value),
        lambda redis, value: redis.register_script(SCRIPT)(keys=["key"], args=[value]),
        partial(write_several, transaction=True),
        write_several,
    ],
    ids=["command", "script", "transaction", "pipeline"],
)
async def test_a_write_goes_to_the_new_primary_though_the_old_one_lives_on_as_a_replica(write: Write) -> None:
    """As behind a Service: it leads new connections to the new primary, and leaves those that there are."""
    async with valkey(*APPENDS) as old, valkey(*APPENDS) as new:
        name = old.folder / "service.sock"
        name.symlink_to(old.socket)
        async with open_state(f"unix://{name}", Path("unused")) as redis, Redis(unix_socket_path=str(old.socket)) as at:
            await write(redis, "1")
            name.unlink()
            name.symlink_to(new.socket)
            await at.execute_command("REPLICAOF", "127.0.0.1", "1")  # type: ignore[no-untyped-call]
            await write(redis, "2")
            assert await redis.get("key") == b"2"
            assert await at.get("key") == b"1"


async def test_a_redis_without_the_state_is_as_one_that_is_away_until_it_has_it_again() -> None:
    lives = Lives()
    async with valkey(*APPENDS) as ours, valkey() as empty:
        name = ours.folder / "service.sock"
        name.symlink_to(ours.socket)
        async with open_state(f"unix://{name}", Path("unused"), lives) as redis:
            await lives.stay_with(redis)
            await ours.end()
            name.unlink()
            name.symlink_to(empty.socket)
            with pytest.raises(RedisError, match="start all gateways again"):
                await redis.set("key", "1")
            await ours.start()
            name.unlink()
            name.symlink_to(ours.socket)
            assert await redis.set("key", "1")


async def test_silent_redis_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_options, "CONNECTION", {**redis_options.CONNECTION, "socket_timeout": 0.1})
    asked = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read(1))
        await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(listen, tmp_path / "s"):
        client = redis_options.make_client(redis_options.address_of(tmp_path / "s"))
        with pytest.raises(RedisError, match="Timeout"):
            await client.get("key")
        await client.aclose()
    assert len(asked) == 1


@pytest.mark.parametrize("others", [(), ("b",), ("a", "c")])
async def test_a_step_whose_answer_was_lost_with_its_connection_is_taken_once(
    redis: Redis, valkey_socket: str, tmp_path: Path, others: tuple[str, ...]
) -> None:
    lost: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_valkey, to_valkey = await asyncio.open_unix_connection(valkey_socket)
        while asked := await reader.read(1 << 16):
            to_valkey.write(asked)
            answer = await from_valkey.read(1 << 16)
            if b"EVALSHA" in asked and not answer.startswith(b"-") and not lost:
                lost.append(answer)
                for other in others:
                    await ObjectStore(redis, "callers").put(other, {"name": "of another gateway"})
                break
            writer.write(answer)
        writer.close()
        to_valkey.close()

    async with await asyncio.start_unix_server(serve, tmp_path / "s"):
        client = redis_options.make_client(redis_options.address_of(tmp_path / "s"))
        made = Change(ObjectStore(client, "callers"), "a", {"name": "a"}, 0)
        kept = Unchanged(ObjectStore(client, "aliases"), "b", 0)
        assert await change_together(client, [kept, made]) == 1
        await client.aclose()
    assert len(lost) == 1
    assert await ObjectStore(redis, "callers").generations() == {"a": 1 + others.count("a")} | dict.fromkeys(
        (other for other in others if other != "a"), 1
    )


@pytest.mark.parametrize("turns", range(12))
async def test_a_cancelled_command_ends_its_task_in_whichever_turn_of_the_loop_it_comes(
    valkey_socket: str, turns: int
) -> None:
    """Python 3.11's `wait_for` takes a cancellation for nothing in one of them, and the task goes on for ever."""
    async with open_state(f"unix://{valkey_socket}", Path("unused")) as redis:

        async def ask_for_ever() -> None:
            while True:
                await redis.get("key")

        asking = asyncio.create_task(ask_for_ever())
        for _ in range(turns):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.wait([asking], timeout=5)
        assert asking.cancelled()
        assert await redis.ping()


@pytest.mark.parametrize("turns", range(0, 60, 2))
async def test_a_closed_client_has_no_connection_and_opens_none(valkey_socket: str, turns: int) -> None:
    """Whatever its last command waits for as it is closed: of a job that did not stop in time."""
    async with open_state(f"unix://{valkey_socket}", Path("unused")) as redis:
        pool: Any = redis.connection_pool
        await pool.disconnect()
        asking = asyncio.create_task(redis.get("key"))
        for _ in range(turns):
            await asyncio.sleep(0)
    await asyncio.gather(asking, return_exceptions=True)
    with pytest.raises(RedisError, match="closed"):
        await redis.get("key")
    assert not [each for each in pool._available_connections if each.is_connected]


async def test_redis_that_asks_for_a_password_is_told_with_the_setting(tmp_path: Path) -> None:
    async with valkey() as at:
        async with Redis.from_url(at.url) as redis:
            await redis.config_set("requirepass", "secret")
        for url, advice in (
            (at.url, r"asks for a password: set redis_password_file\.$"),
            (f"{at.url}?password=wrong", r"refuses the password \(.*[^.]\): fix it in redis_password_file or"),
        ):
            with pytest.raises(StateError, match=advice):
                await open_state(url, tmp_path).__aenter__()


async def test_valkey_that_can_not_start_on_a_full_disk_is_told_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_valkey, "FREE_BYTES_MIN", 1 << 60)
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "appendonlydir").write_text("no folder")
    with pytest.raises(StateError, match=r"stopped at its start: the disk is full: make room, and see .*valkey\.log"):
        await open_state(None, tmp_path).__aenter__()


async def test_a_start_that_is_cancelled_leaves_no_valkey(tmp_path: Path) -> None:
    opening = asyncio.create_task(open_state(None, tmp_path).__aenter__())
    while not (log := tmp_path / "valkey" / "valkey.log").exists():
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    with (log.parent / "valkey.lock").open("w") as alive:
        assert embedded_valkey._try_lock(alive)
