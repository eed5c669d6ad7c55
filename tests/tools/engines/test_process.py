"""Children are real processes here: tests/tools/engines/small_engine.py."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from tests.fakes.ports import free_port
from tests.waiting import until
from tools.engines import process
from tools.engines.errors import LaunchError
from tools.engines.process import Child, EngineProcess, EngineState, run_to_end, wait_until_healthy

HERE = Path(__file__).parent
DEADLINE_SECONDS = 60.0


def small_engine(port: int, *flags: str) -> list[str]:
    return [sys.executable, str(HERE / "small_engine.py"), str(port), *flags]


def runs(pid: int) -> bool:
    """True if a process is there and not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def core_pid(log_path: Path) -> int:
    """The process id that the newest small engine said of its own child."""
    return int(re.findall(r"core (\d+)", log_path.read_text())[-1])


def engine_on(port: int, log_path: Path, said: list[str], *flags: str) -> EngineProcess:
    return EngineProcess(
        name="small",
        url=f"http://127.0.0.1:{port}",
        command=small_engine(port, *flags),
        environment={},
        log_path=log_path,
        say=said.append,
    )


def nothing(_: str) -> None:
    """A hint that nobody sees."""


async def test_engine_that_fallbacks_with_zero_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    log_path = tmp_path / "engine.log"
    engine = engine_on(free_port(), log_path, said)
    await engine.start(DEADLINE_SECONDS, nothing)
    try:
        first_pid, first_core = engine.pid, core_pid(log_path)
        async with httpx.AsyncClient() as client:
            await client.post(f"{engine.url}/exit")
        await until(lambda: engine.restarts == 1)
        assert engine.pid != first_pid
        await until(lambda: not runs(first_core))
        async with httpx.AsyncClient() as client:
            await until(lambda: "core" in log_path.read_text() and core_pid(log_path) != first_core)
            await until(lambda: engine.state is EngineState.RUNNING)
            assert await process.is_healthy(client, f"{engine.url}/health")
    finally:
        await engine.stop(5)
    assert "ended after" in said[0]
    assert "exit code 0: ValueError: no such adapter" in said[0]
    assert "starts again in 1 s" in said[0]
    assert re.fullmatch(r"The engine small is back after \d+ s\.", said[1])


async def test_engine_that_ends_again_while_it_starts_is_told_again(tmp_path: Path) -> None:
    said: list[str] = []
    broken = tmp_path / "broken"
    engine = engine_on(free_port(), tmp_path / "engine.log", said, "--unless", str(broken))
    await engine.start(DEADLINE_SECONDS, nothing)
    try:
        broken.touch()
        async with httpx.AsyncClient() as client:
            await client.post(f"{engine.url}/exit")
        await until(lambda: len(said) == 2)
        broken.unlink()
        await until(lambda: engine.state is EngineState.RUNNING)
    finally:
        await engine.stop(5)
    assert "exit code 1: no memory left; it starts again in 2 s" in said[1]
    assert "is back after" in said[2]


async def test_what_an_earlier_run_has_logged_is_no_progress(tmp_path: Path) -> None:
    log_path, hints = tmp_path / "engine.log", []
    log_path.write_text("INFO 11-25 01:52:20 [launcher.py:38] Route: /health, Methods: GET\n")
    engine = engine_on(free_port(), log_path, [], "--slow-start", "0.3")
    await engine.start(DEADLINE_SECONDS, hints.append)
    await engine.stop(5)
    assert set(hints) == {""}


async def test_stopped_engine_leaves_nothing_and_does_not_come_back(tmp_path: Path) -> None:
    said: list[str] = []
    log_path = tmp_path / "engine.log"
    engine = engine_on(free_port(), log_path, said)
    await engine.start(DEADLINE_SECONDS, nothing)
    pid, core = engine.pid, core_pid(log_path)
    assert pid is not None
    await engine.stop(5)
    assert engine.state is EngineState.STOPPED
    assert engine.pid is None
    await until(lambda: not runs(pid) and not runs(core))
    assert said == []


async def test_engine_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    log_path = tmp_path / "engine.log"
    engine = engine_on(free_port(), log_path, [], "--stubborn")
    await engine.start(DEADLINE_SECONDS, nothing)
    pid, core = engine.pid, core_pid(log_path)
    assert pid is not None
    began = time.monotonic()
    await engine.stop(0.3)
    assert 0.3 <= time.monotonic() - began < 30
    await until(lambda: not runs(pid) and not runs(core))


async def test_killed_engine_does_not_come_back(tmp_path: Path) -> None:
    said: list[str] = []
    engine = engine_on(free_port(), tmp_path / "engine.log", said)
    await engine.start(DEADLINE_SECONDS, nothing)
    engine.kill()
    await until(lambda: engine.pid is None)
    await engine.stop(5)
    assert engine.restarts == 0
    assert said == []


async def test_engine_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    engine = engine_on(free_port(), tmp_path / "engine.log", [], "--slow-start", "60")
    start = asyncio.create_task(engine.start(DEADLINE_SECONDS, nothing))
    await until(lambda: engine.pid is not None)
    pid = engine.pid
    assert pid is not None
    start.cancel()
    await asyncio.wait([start])
    await engine.stop(5)
    assert not runs(pid)


async def test_engine_that_ends_while_starting_is_one_sentence_with_its_last_words(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('there is no such model')"]
    child = await Child.start(command, tmp_path / "engine.log")
    url = f"http://127.0.0.1:{free_port()}/health"
    with pytest.raises(
        LaunchError, match=r"The engine small ended while starting \(exit code 1: there is no such model\); its log"
    ):
        await wait_until_healthy(child, "The engine small", url, DEADLINE_SECONDS, nothing)


async def test_engine_that_is_never_healthy_is_given_up_at_the_limit(tmp_path: Path) -> None:
    child = await Child.start([sys.executable, "-c", "import signal; signal.pause()"], tmp_path / "engine.log")
    url = f"http://127.0.0.1:{free_port()}/health"
    try:
        with pytest.raises(LaunchError, match="did not become healthy in 1 s"):
            await wait_until_healthy(child, "The engine small", url, 1.0, nothing)
    finally:
        await child.stop(5)


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
async def test_parent_killed_leaves_no_orphan(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable,
        str(HERE / "parent.py"),
        str(free_port()),
        str(tmp_path / "engine.log"),
        stdout=asyncio.subprocess.PIPE,
        cwd=HERE.parents[2],
        env={**os.environ, "PYTHONPATH": str(HERE.parents[2])},
    )
    assert parent.stdout is not None
    pid = int(await parent.stdout.readline())
    assert runs(pid)
    parent.kill()
    await parent.wait()
    await until(lambda: not runs(pid))
    # The small engine's own child is that engine's to end; here the test does.
    os.kill(core_pid(tmp_path / "engine.log"), signal.SIGKILL)


async def test_command_that_fails_is_one_sentence_with_its_last_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('one'); raise SystemExit('no space left')"]
    with pytest.raises(LaunchError, match=r"failed \(no space left\); its log is"):
        await run_to_end(command, tmp_path / "step.log", nothing, DEADLINE_SECONDS)


async def test_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    command = ["sh", "-c", "echo $$; exec sleep 600"]  # a Python may need longer to begin
    log_path = tmp_path / "step.log"
    with pytest.raises(LaunchError, match="took longer than 1 s"):
        await run_to_end(command, log_path, nothing, 1.0)
    assert not runs(int(log_path.read_text()))


def test_restart_delay_doubles_to_its_limit_and_falls_back_after_a_settled_life() -> None:
    delays, delay = [], 0.0
    for _ in range(8):
        delay = process.compute_restart_delay_seconds(delay, lived_seconds=1)
        delays.append(delay)
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    assert process.compute_restart_delay_seconds(30, lived_seconds=process.SETTLED_SECONDS) == 1


def test_log_beyond_its_limit_is_set_aside(tmp_path: Path) -> None:
    log_path = tmp_path / "logs" / "engine.log"
    process.rotate_log(log_path)
    with log_path.open("wb") as log:
        log.truncate(process.LOG_BYTES_MAX + 1)
    process.rotate_log(log_path)
    assert not log_path.exists()
    assert (tmp_path / "logs" / "engine.old.log").stat().st_size == process.LOG_BYTES_MAX + 1
