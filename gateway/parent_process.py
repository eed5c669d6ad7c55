"""The parent of a gateway's processes. It starts them on its sockets, restarts dead ones, and passes on signals,
reloads and messages. It merges the metrics of all (`monitoring/metrics.py`), and answers no requests itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import pickle
import selectors
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from gateway.app import build_app
from gateway.background.interpreter_tuning import freeze_garbage
from gateway.configuration.settings import Settings
from gateway.graceful_server import BoundSockets, GracefulServer, close
from gateway.sibling_processes import ANSWER_SECONDS_MAX, Channel, ProcessMessage, Questions, Siblings, Topic
from monitoring.metrics import Meters, merge_processes
from serving.shared_memory import SharedMemory

log = logging.getLogger(__name__)
HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
LONG_LIFE_SECONDS = 60.0
"""A process that ran at least this long is restarted at once, else after a wait that doubles each time."""
WAIT_SECONDS = 0.5
WAIT_SECONDS_MAX = 30.0
LAST_WORDS_SECONDS_MAX = 1.0
RELOAD_SECONDS_MAX = 60.0
"""A hung process among those that it waits for is ended before."""
KILLING_SIGNALS = 3
CHILD_SECONDS_MAX = ANSWER_SECONDS_MAX / 2
"""Longest wait for one process. The asking process waits longer, so it still gets the other processes' answers."""
START_SECONDS_MAX = 300.0
"""A process that is not ready after this time counts as hung."""
WATCH_SECONDS = 5.0
"""Time between two checks that a process is alive."""
SILENT_MAX = 3
"""A process that leaves this number of questions in a row unanswered counts as hung."""
CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")
ARGUMENTS_AT = 45
"""Index in /proc/self/stat, after the name, of the arguments' begin address. The next field is their end address."""


def count_cores() -> int:
    """The number of cores that this process may use, by its affinity and its control group."""
    cores = float(len(os.sched_getaffinity(0)))
    with contextlib.suppress(OSError, ValueError):
        quota, period = CGROUP_CPU.read_text().split()
        cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))


@dataclass
class ServingProcess:
    """One process slot, by its number: its present process, and facts about the process before."""

    number: int
    pid: int = 0
    """0: the process does not run."""
    end: socket.socket | None = None
    channel: Channel | None = None
    listening: asyncio.Task[None] | None = None
    watching: asyncio.Task[None] | None = None
    silent: int = 0
    """Number of questions in a row that it has left unanswered."""
    questions: Questions = field(default_factory=Questions)
    ready: bool = False
    settings: Settings | None = None
    """The settings with which it was started."""
    started_at: float = 0.0
    due_at: float = 0.0
    wait_seconds: float = 0.0
    measured: bytes = b""
    """Its last reported measurements: a killed process can't report them."""

    def send(self, message: ProcessMessage) -> None:
        """Send the process a message, if it runs."""
        if self.channel is not None:
            self.channel.send(message)


class Parent:
    """Owner of the processes, the sockets and the shared memory."""

    def __init__(self, settings: Settings, config: Path, processes: int, sockets: BoundSockets) -> None:
        """Raises SettingsError if a bound is too small for this number of processes."""
        self._settings = settings
        self._settings_message: ProcessMessage | None = None
        """The latest settings after a reload; None before."""
        self._config = config
        self._sockets = sockets
        self._memory = SharedMemory(processes)
        Siblings(self._memory).part_of(settings)
        self._children = [ServingProcess(number) for number in range(processes)]
        self._loop = asyncio.SelectorEventLoop(selectors.PollSelector())  # its state is not shared with a fork
        self._changed = asyncio.Event()
        self._ended = Meters(settings.series_max)
        """Measurements of processes that have ended."""
        self._began = False
        """True after the first process was ready."""
        self._stops = 0
        self._exit_code = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self) -> int:
        """Run until all processes have ended after a signal. Returns the exit code."""
        self._loop.add_signal_handler(signal.SIGTERM, self._stop)
        self._loop.add_signal_handler(signal.SIGINT, self._stop)
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        self._loop.add_signal_handler(signal.SIGCHLD, self._changed.set)
        freeze_garbage()  # the memory pages of imported modules stay shared
        while (child := self._loop.run_until_complete(self._next())) is not None:
            self._start(child)  # outside the loop: a fork must not inherit a running loop
        self._loop.close()
        return self._exit_code

    # Inside the loop.

    async def _next(self) -> ServingProcess | None:
        """Wait until a process has to be started, and return it; None after all have ended."""
        for child in self._children:
            if child.end is not None:
                child.channel = await Channel.over(child.end)
                child.end = None
                child.listening = asyncio.ensure_future(self._listen(child, child.channel))
                child.watching = self._begin(self._watch_start(child))
                for _ in range(self._stops):
                    child.send(ProcessMessage("stop"))
        while True:
            self._changed.clear()
            for child, code in self._reaped():
                await self._bury(child, code)
            if self._stops and not any(child.pid for child in self._children):
                return None
            due_at = float("inf")
            for child in self._children if self._began else self._children[:1]:  # the first one makes what is missing
                if not child.pid and not self._stops:
                    if child.due_at <= time.monotonic():
                        return child
                    due_at = min(due_at, child.due_at)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if due_at == float("inf") else due_at - time.monotonic()):
                    await self._changed.wait()

    def _reaped(self) -> Iterator[tuple[ServingProcess, int]]:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for child in self._children:
                    if child.pid == ended[0]:
                        yield child, os.waitstatus_to_exitcode(ended[1])

    async def _bury(self, child: ServingProcess, code: int) -> None:
        """Keep the measurements of an ended process, and plan the start of the next one in its place."""
        pid, child.pid = child.pid, 0  # before any wait: the number may belong to another process now
        if child.watching is not None:
            child.watching.cancel()
        if child.listening is not None:
            await asyncio.wait([child.listening], timeout=LAST_WORDS_SECONDS_MAX)
            child.listening.cancel()
            await asyncio.wait([child.listening])
        if child.channel is not None:
            child.channel.close()
        self._memory.forget(child.number)
        if child.measured:
            self._ended.add(child.measured, with_gauges=False)
        lived_seconds = time.monotonic() - child.started_at
        child.channel, child.listening, child.measured = None, None, b""
        child.ready, child.silent = False, 0
        if self._stops:
            self._exit_code = self._exit_code or max(code, 0)
            return
        if not self._began:
            self._exit_code = code if code > 0 else 1
            self._stop()
            return
        long = lived_seconds > LONG_LIFE_SECONDS or code == 0
        child.wait_seconds = 0.0 if long else min(max(2 * child.wait_seconds, WAIT_SECONDS), WAIT_SECONDS_MAX)
        child.due_at = time.monotonic() + child.wait_seconds
        self._ended.process_restarts.add(1)
        level, how = logging.ERROR, f"with the exit code {code}"
        if code == 0:
            level, how = logging.INFO, "in order"
        elif code < 0:
            how = f"by {signal.Signals(-code).name}, and its requests under way with it"
        text = "process %d (pid %d) has ended %s; it is started again in %.1f s"
        log.log(level, text, child.number, pid, how, child.wait_seconds)

    def _stop(self) -> None:
        """Stop all processes: the first call drains them, the second stops them at once, the third kills them."""
        self._stops += 1
        for child in self._children:
            if child.pid and self._stops >= KILLING_SIGNALS:
                os.kill(child.pid, signal.SIGKILL)
            child.send(ProcessMessage("stop"))
        self._changed.set()

    def _reload(self) -> None:
        self._begin(self._reload_by_one())

    async def _reload_by_one(self) -> None:
        """Make one process reload the configuration and inform the others. If it does not answer, ask the next one."""
        for child in self._children:
            if child.ready and await self._ask(child, "reload") is not None:
                return

    async def _watch(self, child: ServingProcess) -> None:
        """End a process that hangs. Its callers wait, and probes do not show it, since other processes answer them."""
        while child.silent < SILENT_MAX:
            answers = child.questions.answers
            await asyncio.sleep(WATCH_SECONDS)
            await self._ask(child, "ready")
            child.silent = child.silent + 1 if child.questions.answers == answers else 0  # a slow process is alive
        log.error("process %d (pid %d) hangs, and is ended", child.number, child.pid)
        os.kill(child.pid, signal.SIGKILL)

    async def _watch_start(self, child: ServingProcess) -> None:
        """End a process that does not become ready, so that it can be started again."""
        await asyncio.sleep(START_SECONDS_MAX)
        log.error("process %d (pid %d) is not ready in %g s, and is ended", child.number, child.pid, START_SECONDS_MAX)
        os.kill(child.pid, signal.SIGKILL)

    def _begin(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _listen(self, child: ServingProcess, channel: Channel) -> None:
        try:
            while (message := await channel.receive()) is not None:
                if message.topic == "answer":
                    child.questions.answered(message)
                elif message.topic == "ready":
                    child.ready = self._began = True
                    if self._settings_message is not None and child.settings is not self._settings:
                        child.send(self._settings_message)  # they were reloaded while it started
                    if child.watching is not None:
                        child.watching.cancel()
                    child.watching = self._begin(self._watch(child))
                    log.info("process %d of %d runs (pid %d)", child.number, len(self._children), child.pid)
                    self._changed.set()
                elif message.topic == "closed":
                    if self._stops:  # else connections would wait here until the end
                        close(self._sockets)
                elif message.topic == "metrics" and not message.number:
                    child.measured = message.payload
                else:
                    self._begin(self._relay(child, message))
        finally:
            if child.watching is not None:
                child.watching.cancel()
            child.questions.end()

    async def _relay(self, asker: ServingProcess, message: ProcessMessage) -> None:
        if message.topic == "settings":
            self._settings = pickle.loads(message.payload)  # noqa: S301 - our own process wrote it
            self._settings_message = ProcessMessage("settings", 0, message.payload)
            logging.getLogger().setLevel(self._settings.log_level)  # a process that is started later inherits it
        # The reader gets its settings too: of two reloads at the same time, the last one here is then last everywhere.
        others = [c for c in self._children if c.ready and (c is not asker or message.topic == "settings")]
        if not message.number:
            for child in others:
                child.send(message)
        elif message.topic == "metrics":
            answer = msgspec.msgpack.encode(await self._merged(message.payload.decode("latin-1")))
            asker.send(ProcessMessage("answer", message.number, answer))
        else:
            relayed = ProcessMessage(message.topic, 0, message.payload)
            asks = [
                self._tell(child, relayed) if child is asker else self._ask(child, message.topic, message.payload)
                for child in others
            ]
            answers = await asyncio.gather(*asks)
            if message.topic == "totals":  # all, or none: what one does not tell would be missing in the sums
                answers = [] if None in answers else [*answers, msgspec.msgpack.encode(self._ended.totals())]
            answer = msgspec.msgpack.encode([each for each in answers if each is not None])
            asker.send(ProcessMessage("answer", message.number, answer))

    async def _tell(self, child: ServingProcess, message: ProcessMessage) -> None:
        """Send a message in its order among the questions."""
        child.send(message)

    async def _ask(self, child: ServingProcess, topic: Topic, payload: bytes = b"") -> bytes | None:
        seconds_max = RELOAD_SECONDS_MAX if topic == "reload" else CHILD_SECONDS_MAX
        try:
            return await child.questions.ask(child.send, topic, payload, seconds_max)
        except TimeoutError:
            log.warning("process %d did not answer in %g s (%s)", child.number, seconds_max, topic)
            return None
        except ConnectionError:
            return None

    async def _merged(self, accept: str) -> tuple[bytes, bytes]:
        """The metrics of all processes, with those that have ended, and their content type."""
        live = [(child, child.questions) for child in self._children if child.ready and not child.silent]
        answers = await asyncio.gather(*(self._ask(child, "metrics") for child, _ in live))
        for (child, questions), answer in zip(live, answers, strict=True):
            if answer and child.ready and child.questions is questions:  # else it has ended after its answer
                child.measured = answer
        measured = [child.measured for child in self._children if child.measured]
        body, content_type = merge_processes(measured, self._ended, self._settings.series_max).exposition(accept)
        return body, content_type.encode()

    # Between two runs of the loop.

    def _start(self, child: ServingProcess) -> None:
        ours, theirs = socket.socketpair()
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
        child.started_at, child.questions, child.settings = time.monotonic(), Questions(), self._settings
        child.pid = os.fork()
        if not child.pid:
            ours.close()
            os._exit(self._exit_code_of(child.number, theirs))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        theirs.close()
        child.end = ours

    def _exit_code_of(self, number: int, end: socket.socket) -> int:
        """Run as a process until its end, without any work of the parent. Returns the exit code."""
        try:
            for child in self._children:
                if child.channel is not None:
                    child.channel.leave()
            signal.set_wakeup_fd(-1)
            for handled in HANDLED:
                signal.signal(handled, signal.SIG_IGN if handled == signal.SIGHUP else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
            name_process(f"apprentice: process {number} of {len(self._children)}")
            logging.getLogger().handlers[0].addFilter(partial(_note_number, number))
            self._memory.process = number
            siblings = Siblings(self._memory, end)
            GracefulServer(self._settings, build_app(self._settings, self._config, siblings), self._sockets).run()
            return 0
        except SystemExit as stopped:
            return stopped.code if isinstance(stopped.code, int) else 1
        except BaseException:
            log.exception("process %d failed", number)
            return 1
        finally:
            logging.shutdown()
            sys.stdout.flush()
            sys.stderr.flush()


def _note_number(number: int, record: logging.LogRecord) -> bool:
    """Give each line of the log the number of its process."""
    record.process_number = number
    return True


def name_process(title: str) -> None:
    """Make `ps` and `top` show this title for this process, instead of the arguments that it shares with its parent."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        Path("/proc/self/comm").write_text(title[-15:])
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begins, ends = map(int, fields[ARGUMENTS_AT : ARGUMENTS_AT + 2])
        with Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(begins)
            memory.write(title.encode()[: ends - begins - 1].ljust(ends - begins, b"\0"))
