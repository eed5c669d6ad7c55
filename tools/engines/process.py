"""Child processes: run one to its end, keep one running, stop it with all that it started."""

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
from tools.engines.engine_log import lines_of, stage_of, why_ended
from tools.engines.errors import LaunchError

POLL_SECONDS = 0.25
HEALTH_TIMEOUT_SECONDS = 2.0
LOG_BYTES_MAX = 16 * 1024 * 1024
TAIL_BYTES = 16 * 1024
RESTART_DELAY_SECONDS_MIN = 1.0
RESTART_DELAY_SECONDS_MAX = 30.0
# An engine that lived this long had started properly: its next restart waits the shortest delay again.
SETTLED_SECONDS = 120.0


def tail_of(log_path: Path, begin: int = 0) -> str:
    """The end of a log, nothing of it from before the byte `begin`; empty where there is none."""
    try:
        with log_path.open("rb") as log:
            log.seek(max(begin, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def make_room(log_path: Path) -> None:
    """Make the log's folder; set a log beyond LOG_BYTES_MAX aside as `.old.log`, instead of the last such."""
    log_path.parent.mkdir(parents=True, exist_ok=True)
    if log_path.exists() and log_path.stat().st_size > LOG_BYTES_MAX:
        log_path.replace(log_path.with_suffix(".old.log"))


class Child:
    """One running process in a group of its own, writing to a log, told to stop when this process is gone."""

    def __init__(self, process: asyncio.subprocess.Process, log_path: Path, log_begin: int) -> None:
        """`log_begin` is where in the log its own lines begin."""
        self._process = process
        self._log_begin = log_begin
        self._group_is_gone = False
        self.log_path = log_path

    @classmethod
    async def start(cls, command: Sequence[str], log_path: Path, environment: Mapping[str, str] | None = None) -> Child:
        """Start `command` with `environment` added to ours. Raises LaunchError where it can't be run."""
        make_room(log_path)
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
    def said(self) -> str:
        """The end of what it has logged."""
        return tail_of(self.log_path, self._log_begin)

    @property
    def pid(self) -> int:
        """The process id, which is that of its group too."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.returncode

    async def ended(self) -> int:
        """Wait until it has ended, end what it left behind in its group, and give its exit code."""
        code = await self._process.wait()
        self.kill()
        self._group_is_gone = True
        return code

    def terminate(self) -> None:
        """Ask it, and not its own children, to stop: an engine drains, then ends them itself."""
        if self._process.returncode is None:
            self._process.terminate()

    def kill(self) -> None:
        """End its whole group at once. Nothing happens where it has ended before: its number may be another's."""
        if self._group_is_gone:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def stop(self, grace_seconds: float) -> int:
        """Ask it to stop, end its group after `grace_seconds`, and give its exit code."""
        self.terminate()
        try:
            async with asyncio.timeout(grace_seconds):
                return await self.ended()
        except TimeoutError:
            self.kill()
            return await self.ended()


async def run_to_end(
    command: Sequence[str],
    log_path: Path,
    hint: Callable[[str], None],
    timeout_seconds: float,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run `command`, its last line as the hint. Raises LaunchError if it fails or takes too long."""
    child = await Child.start(command, log_path, environment)
    try:
        async with asyncio.timeout(timeout_seconds):
            while child.exit_code is None:
                hint("".join(lines_of(child.said)[-1:]))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        message = f"{Path(command[0]).name} took longer than {timeout_seconds:.0f} s; its log is {log_path}."
        raise LaunchError(message) from error
    finally:
        child.kill()
        code = await child.ended()
    if code != 0:
        said = "".join(lines_of(child.said)[-1:])
        raise LaunchError(f"{Path(command[0]).name} failed ({said}); its log is {log_path}.")


async def answers(client: httpx.AsyncClient, url: str) -> bool:
    """Whether a GET of `url` is answered with 200."""
    try:
        return (await client.get(url)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


async def wait_until_healthy(
    child: Child, name: str, url: str, timeout_seconds: float, hint: Callable[[str], None]
) -> None:
    """Wait until `url` answers 200, the stage of its start as the hint.

    Raises LaunchError after `timeout_seconds` or if the child ends.
    """
    try:
        async with (
            asyncio.timeout(timeout_seconds),
            httpx.AsyncClient(timeout=HEALTH_TIMEOUT_SECONDS, trust_env=False, verify=False) as client,  # noqa: S501
        ):
            while not await answers(client, url):
                if child.exit_code is not None:
                    why = why_ended(child.exit_code, child.said, last_line=True)
                    raise LaunchError(f"{name} ended while starting ({why}); its log is {child.log_path}.")
                hint(stage_of(child.said))
                await asyncio.sleep(POLL_SECONDS)
    except TimeoutError as error:
        message = f"{name} did not become healthy in {timeout_seconds:.0f} s; its log is {child.log_path}."
        raise LaunchError(message) from error


def next_restart_delay_seconds(previous: float, lived_seconds: float) -> float:
    """How long to wait before a restart: twice the last delay, the shortest again after a settled life."""
    if lived_seconds >= SETTLED_SECONDS:
        return RESTART_DELAY_SECONDS_MIN
    return min(RESTART_DELAY_SECONDS_MAX, max(RESTART_DELAY_SECONDS_MIN, previous * 2))


class EngineState(StrEnum):
    """State of an EngineProcess: new → starting → running → waiting → starting … → stopping → stopped."""

    NEW = "new"
    STARTING = "starting"
    RUNNING = "running"
    WAITING = "waiting"
    STOPPING = "stopping"
    STOPPED = "stopped"


class EngineProcess:
    """A local engine, started again whenever it ends, whatever its exit code: a dying engine exits 0."""

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
        """The engine's process id; None while there is none."""
        return None if self._child is None or self._child.exit_code is not None else self._child.pid

    async def start(self, timeout_seconds: float, hint: Callable[[str], None]) -> None:
        """Start the engine and wait until it is healthy; from then on it is kept running.

        Raises LaunchError if it ends or is not healthy in `timeout_seconds`: the first start is tried once.
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
            code = await child.ended()
            ended = time.monotonic()
            lived_seconds = ended - started
            delay_seconds = next_restart_delay_seconds(delay_seconds, lived_seconds)
            self.state = EngineState.WAITING
            self._say(
                f"The engine {self.name} ended after {lived_seconds:.0f} s: {why_ended(code, child.said, starting)};"
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
        """Wait until the engine that ended at `ended` (monotonic seconds) is healthy again; False if it is not."""
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
        """Ask the engine to finish what it runs, end it after `grace_seconds`. Nothing of it is left."""
        self.state = EngineState.STOPPING
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        if self._child is not None:
            await self._child.stop(grace_seconds)
        self.state = EngineState.STOPPED

    def kill(self) -> None:
        """End the engine at once and for good. Call `stop` too: it waits for the end."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._child is not None:
            self._child.kill()
