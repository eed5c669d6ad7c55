"""A gateway as a process of its own, `apprentice serve`, for walks that send it signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import yaml
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.fakes.engine import FakeEngine
from tests.fakes.valkey import AT_ONCE
from tests.walks.fork_server import Forked, fork_gateway

APPRENTICE = (sys.executable, "-m", "gateway.cli.entry")
ASK = {"model": "general", "messages": [{"role": "user", "content": "How many days are in a week?"}]}


Served = Callable[..., AbstractAsyncContextManager["Process"]]
"""As `served` below, or the fixture `forked`."""


@dataclass
class Process:
    """A gateway's process, its address, and all that it has said."""

    process: asyncio.subprocess.Process | Forked
    url: str
    said: list[str]

    async def stop(self, number: signal.Signals) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return await self.process.wait()


async def run_program(*words: str | Path, folder: Path, variables: Mapping[str, str]) -> tuple[int | None, str, str]:
    """Run a program to its end: its code, its output, and its errors."""
    process = await asyncio.create_subprocess_exec(
        *words, cwd=folder, env=variables, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@asynccontextmanager
async def served(
    config: Path,
    key: str | None,
    *options: str,
    apprentice: Sequence[str] = APPRENTICE,
    folder: Path | None = None,
    fork_server: Path | None = None,
) -> AsyncIterator[Process]:
    """`apprentice serve` with these options in this working folder, until the block ends.

    It is forked where a server for that is given: for a test of what a gateway's death leaves, not of its start.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("APPRENTICE_")}
    if key is not None:
        environment["APPRENTICE_ADMIN_KEY"] = key
    words = ("serve", "--config", str(config), *options)
    async with AsyncExitStack() as stack:
        process: asyncio.subprocess.Process | Forked
        if fork_server is not None:
            process = await stack.enter_async_context(fork_gateway(fork_server, words, environment))
        else:
            process = await asyncio.create_subprocess_exec(
                *(*apprentice, *words),
                cwd=folder,
                env=environment,
                umask=0o022,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
        assert process.stdout is not None
        said: list[str] = []
        reading: asyncio.Task[None] | None = None
        try:  # from its start on: one that ends there is waited for, too
            url = ""
            async with asyncio.timeout(60):
                while not url:
                    line = (await process.stdout.readline()).decode()
                    assert line, f"the gateway ended: {said}"
                    said.append(line)
                    found = re.search(r"running on (http://[0-9.:]+)", line)
                    url = found[1] if found else ""
            reading = asyncio.create_task(_read_on(process.stdout, said))
            yield Process(process, url, said)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()
            if reading is not None:
                await reading


async def _read_on(reader: asyncio.StreamReader, said: list[str]) -> None:
    while line := await reader.readline():
        said.append(line.decode())


@pytest.fixture
async def config() -> AsyncIterator[Path]:
    """A configuration with one engine and the embedded Valkey, which is stopped in the end."""
    with tempfile.TemporaryDirectory(prefix="gw") as folder:
        async with FakeEngine("large", n_tokens=30, token_delay_seconds=0.02) as engine:
            content = {
                "listen": {"port": 0},
                "data_folder": folder,
                "log_format": "text",
                "pools": {
                    "general": {
                        "base_model": "large",
                        "callable": True,
                        "replicas": [{"name": "general-0", "url": engine.url}],
                    }
                },
            }
            path = Path(folder) / "apprentice.yaml"
            path.write_text(yaml.safe_dump(content))
            yield path
        redis = Redis(unix_socket_path=f"{folder}/valkey/valkey.sock", retry=AT_ONCE)
        with contextlib.suppress(RedisError):
            await redis.shutdown(nosave=True)
        await redis.aclose()


def client(process: Process, key: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=process.url, headers={"Authorization": f"Bearer {key}"}, timeout=60)
