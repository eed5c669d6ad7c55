"""Child processes: run one to its end, or keep one running; stop it with its own children."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import httpx

from tools.engines import tether
from tools.engines.engine_log import describe_end, find_stage, split_lines
from tools.engines.errors import LaunchError

POLL_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 2.0
LOG_BYTES_MAX = 16 * 1024 * 1024
TAIL_BYTES = 16 * 1024
RESTART_DELAY_SECONDS_MIN = 1.0
RESTART_DELAY_SECONDS_MAX = 30.0
SETTLED_SECONDS = 120.0
"""After this time of life, an engine's restart delay is the shortest again."""


def read_tail(log_path: Path, begin: int = 0) -> str:
    """The end of a log after the byte `begin`; empty without a log."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(begin, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def rotate_log(log_path: Path) -> None:
    """Make the log's folder. Rename a log of more than LOG_BYTES_MAX to `.old.log`."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX:
        log_path.replace(log_path.with_suffix(".old.log"))


class Child:
    """A running process in its own process group, with a log. It is asked to stop when this process dies."""

    def __init__(self, process: asyncio.subprocess.Process, log_path: Path, log_begin: int) -> None:
        """`log_begin` is the byte of the log at which the process's lines begin."""
        self._process = process
        self._log_begin = log_begin
        self._group_is_gone = False
        self.log_path = log_path

    @classmethod
    async def start(cls, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> Child:
        """Start `command` with `environment` added to ours. Raises LaunchError if it can't be run."""
        rotate_log(log_path)
        tethered = (sys.executable, "-I", tether.__file__, str(os.getpid()), *command)
        try:
            with log_path.open("ab") as log:
                begin = log.seek(0, os.SEEK_END)
                process = await asyncio.create_subprocess_exec(
                    *tethered,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=asyncio.subprocess.STDOUT,
                    env={**os.environ, **(environment or {})},
                    start_new_session=True,
                )
        except OSError as error:
            raise LaunchError(f"{command[0]} can't be started ({error}).") from error
        return cls(process, log_path, begin)

    @property
    def log_tail(self) -> str:
        """The end of its log."""
        return read_tail(self.log_path, self._log_begin)

    @property
    def pid(self) -> int:
        """The id of the process and of its group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for a signal."""
        return self._process.returncode

    async def wait_until_ended(self) -> int:
        """Wait for its end, kill the rest of its group, and return the exit code."""
        code = await self._process.wait()
        self.kill()
        self._group_is_gone = True
        return code

    def terminate(self) -> None:
        """Ask the process, but not its children, to stop: an engine drains and then ends them itself."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill the whole group, unless it has ended: its id may belong to another process by now."""
        if self._group_is_gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> int:
        """Ask it to stop, kill its group after `grace_seconds`, and return the exit code."""
        self.terminate()
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.wait_until_ended()
        except TimeoutError:
            self.kill()
            return await self.wait_until_ended()


async def run_to_end(
    command: Sequence[str],
    log_path: Path,
    hint: Callable[[str], None],
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command` and show its last line as the hint. Raises LaunchError if it fails or takes too long."""
    child = await Child.start(command, log_path, environment)
    try:
        async with asyncio.timeout(timeout_seconds):
            while child.exit_code is None:
                hint("".join(split_lines(child.log_tail)[-1:]))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        message = f"{Path(command[0]).name} took longer than {timeout_seconds:.0f} s; its log is {log_path}."
        raise LaunchError(message) from error
    finally:
        child.kill()
        code = await child.wait_until_ended()
    if code != 0:
        last_line = "".join(split_lines(child.log_tail)[-1:])
        raise LaunchError(f"{Path(command[0]).name} failed ({last_line}); its log is {log_path}.")


async def is_healthy(client: httpx.AsyncClient, url: str) -> bool:
    """True if a GET of `url` gets status 200."""
    try:
        return (await client.get(url)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


async def wait_until_healthy(
    child: Child, name: str, url: str, timeout_seconds: float, hint: Callable[[str], None]
) -> None:
    """Wait until `url` answers with 200, and show the stage of the start as the hint.

    Raises LaunchError after `timeout_seconds`, or if the child ends.
    """
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            httpx.AsyncClient(timeout=HEALTH_TIMEOUT_SECONDS, trust_env=False, verify=False) as client,  # noqa: S501
        ):
            while not await is_healthy(client, url):
                if child.exit_code is not None:
                    why = describe_end(child.exit_code, child.log_tail, last_line=True)
                    raise LaunchError(f"{name} ended while starting ({why}); its log is {child.log_path}.")
                hint(find_stage(child.log_tail))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        message = f"{name} did not become healthy in {timeout_seconds:.0f} s; its log is {child.log_path}."
        raise LaunchError(message) from error


def compute_restart_delay_seconds(previous: float, lived_seconds: float) -> float:
    """The delay before a restart: twice the last one, or the shortest after SETTLED_SECONDS of life."""
    if lived_seconds >= SETTLED_SECONDS:
        return RESTART_DELAY_SECONDS_MIN
    return min(RESTART_DELAY_SECONDS_MAX, max(RESTART_DELAY_SECONDS_MIN, previous * 2))


class EngineState(StrEnum):
    """States of an EngineProcess: new → starting → running → waiting → starting … → stopping → stopped."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"


class EngineProcess:
    """A local engine that is restarted after every end, whatever its exit code: a dying engine exits with 0."""

    def __init__(
        self,
        *,
        name: str,
        url: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log_path: Path,
        say: Callable[[str], None],
    ) -> None:
        self.name = name
        self.url = url
        self.restarts = 0
        self._command = tuple(command)
        self._environment = dict(environment)
        self._log_path = log_path
        self._say = say
        self.state = EngineState.NEW
        # While it runs:
        self._start_seconds_max = 0.0
        self._child: Child | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The engine's process id, or None while no process runs."""
        return None if self._child is None or self._child.exit_code is not None else self._child.pid

    async def start(self, timeout_seconds: float, hint: Callable[[str], None]) -> None:
        """Start the engine, wait until it is healthy, and restart it from then on.

        Raises LaunchError if the first start fails or takes more than `timeout_seconds`.
        """
        self.state = EngineState.STARTING
        self._start_seconds_max = timeout_seconds
        self._child = await Child.start(self._command, self._log_path, self._environment)
        await wait_until_healthy(self._child, f"The engine {self.name}", f"{self.url}/health", timeout_seconds, hint)
        self.state = EngineState.RUNNING
        self._keeper = asyncio.create_task(self._keep(self._child), name=f"keep engine {self.name}")

    async def _keep(self, child: Child) -> None:
        delay_seconds, started, starting = 0.0, time.monotonic(), False
        while True:
            code = await child.wait_until_ended()
            ended = time.monotonic()
            lived_seconds = ended - started
            delay_seconds = compute_restart_delay_seconds(delay_seconds, lived_seconds)
            self.state = EngineState.WAITING
            reason = describe_end(code, child.log_tail, last_line=starting)
            self._say(
                f"The engine {self.name} ended after {lived_seconds:.0f} s: {reason};"
                f" it starts again in {delay_seconds:.0f} s. Its log is {self._log_path}"
            )
            await asyncio.sleep(delay_seconds)
            try:
                self._child = child = await Child.start(self._command, self._log_path, self._environment)
            except LaunchError as error:
                self._say(str(error))
                continue
            self.restarts += 1
            self.state, started = EngineState.STARTING, time.monotonic()
            starting = not await self._comes_back(child, ended)

    async def _comes_back(self, child: Child, ended: float) -> bool:
        """Wait until the engine is healthy again; False if it is not. It ended at `ended`, in monotonic seconds."""
        try:
            health = f"{self.url}/health"
            await wait_until_healthy(child, f"The engine {self.name}", health, self._start_seconds_max, lambda _: None)
        except LaunchError as error:
            if child.exit_code is None:
                self._say(str(error))
            return False
        self.state = EngineState.RUNNING
        self._say(f"The engine {self.name} is back after {time.monotonic() - ended:.0f} s.")
        return True

    async def stop(self, grace_seconds: float) -> None:
        """Ask the engine to finish its requests, and kill it with its children after `grace_seconds`."""
        self.state = EngineState.STOPPING
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._child is not None:
            await self._child.stop(grace_seconds)
        self.state = EngineState.STOPPED

    def kill(self) -> None:
        """Kill the engine without a restart. Call `stop` too: it waits for the end."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._child is not None:
            self._child.kill()
