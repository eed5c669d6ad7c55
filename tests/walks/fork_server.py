"""A process that has loaded a gateway and its helpers, and forks one for each connection, where a start would import.

`python -m tests.walks.fork_server SOCKET` ends with its standard input. A connection sends a line of JSON with the
three standard descriptors; it is told the number of the process, and its exit code in the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from importlib import import_module
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired
from typing import Any, NoReturn

from gateway.cli.entry import main

ROOT = Path(__file__).parents[2]
LOADED = (
    "gateway.cli.adopt",
    "gateway.cli.serve",
    "gateway.app",
    "gateway.graceful_server",
    "gateway.parent_process",
    "monitoring.logs",
)
HELPERS = (
    "gateway.features.diagnosis.run",
    "gateway.features.evaluations.run",
    "gateway.features.readiness.run",
    "monitoring.archive.bucket",
    "monitoring.archive.run",
    "monitoring.datasets.build_run",
    "monitoring.datasets.export_run",
    "monitoring.datasets.hard_run",
    "monitoring.erasure_run",
    "monitoring.labels.report",
    "monitoring.quality.signals.run",
    "monitoring.request_search",
    "monitoring.text_reader",
    "monitoring.training.preparation",
    "router.fitting.run",
    "serving.adapters.sources.fetching",
)
"""Each is the main module of its process."""
JOB_BYTES_MAX = 1 << 18


class Forked:
    """A gateway's process that was forked, as one of asyncio's."""

    def __init__(self, pid: int, stdout: asyncio.StreamReader, told: asyncio.StreamReader) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = stdout
        self._told = told

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal. Raises ProcessLookupError where it has ended."""
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)

    async def wait(self) -> int:
        """Wait for its end. Its exit code, negative for a signal."""
        if self.returncode is None:
            self.returncode = int(await self._told.readline())
        return self.returncode


class ForkServer:
    """One that starts when it is first asked for, and ends when it is closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._path: Path | None = None

    def path(self) -> Path:
        """Its socket."""
        with self._lock:
            if self._path is None:
                self._path = self._start()
            return self._path

    def close(self) -> None:
        """End it. Those that it has forked go on."""
        self._stack.close()

    def _start(self) -> Path:
        path = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="fk"))) / "socket"
        process = Popen((sys.executable, "-m", __name__, path), stdin=PIPE, stdout=PIPE, cwd=ROOT)
        self._stack.enter_context(process)  # closes its input, and waits
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        return path


class ForkedProgram:
    """A program that was forked, with what `ChildProcess` uses of a Popen."""

    def __init__(self, server: Path, words: Sequence[str], environment: Mapping[str, str], stderr: int = 2) -> None:
        taken, stdin = os.pipe()
        stdout, told = os.pipe()
        self._connection = ask_for_fork(server, words, environment, (taken, told, stderr))
        for descriptor in (taken, told):
            os.close(descriptor)
        self._told = self._connection.makefile("rb")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None
        self.stdin, self.stdout = os.fdopen(stdin, "wb"), os.fdopen(stdout, "rb")

    def wait(self) -> int:
        """Wait for its end. Its exit code, negative for a signal."""
        if self.returncode is None:
            self.returncode = int(self._told.readline())
            self._told.close()
            self._connection.close()
        return self.returncode

    def __enter__(self) -> ForkedProgram:
        return self

    def __exit__(self, *_: object) -> None:
        self.stdout.close()
        try:
            self.stdin.close()
        finally:
            self.wait()


class ForkingSubprocess:
    """In the place of the module subprocess where a gateway starts helpers: those that are known are forked."""

    PIPE = PIPE

    def __init__(self, server: ForkServer) -> None:
        self._server = server

    def Popen(self, command: Sequence[str], **options: Any) -> Popen[bytes] | ForkedProgram:  # noqa: N802 - its name there
        """A process that runs the command."""
        *python, module = command
        if python == [sys.executable, "-P", "-m"] and module in HELPERS:
            return ForkedProgram(self._server.path(), ("-m", module), os.environ)
        return Popen(command, **options)


class ForkedServe:
    """`apprentice serve` that was forked, with what benchmarks use of a Popen."""

    def __init__(self, server: Path, words: Sequence[str], environment: Mapping[str, str], output: int) -> None:
        with open(os.devnull, "rb") as nothing:
            self._connection = ask_for_fork(server, words, environment, (nothing.fileno(), output, output))
        self._told = self._connection.makefile("rb")
        self.pid = int(self._told.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        with suppress(TimeoutExpired):
            return self.wait(0.0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end. Raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._connection], [], [], timeout)[0]:
                raise TimeoutExpired("apprentice serve", timeout or 0.0)
            self.returncode = int(self._told.readline())
            self._told.close()
            self._connection.close()
        return self.returncode

    def terminate(self) -> None:
        """Send it SIGTERM, if it has not ended."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL, if it has not ended."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class ServingSubprocess:
    """In the place of the module subprocess where a benchmark starts processes: gateways are forked."""

    DEVNULL, STDOUT, TimeoutExpired = DEVNULL, STDOUT, TimeoutExpired

    def __init__(self, server: ForkServer) -> None:
        self._server = server

    def Popen(self, command: Sequence[str], **options: Any) -> Popen[bytes] | ForkedServe:  # noqa: N802 - its name there
        """A process that runs the command."""
        if Path(command[0]).name == "apprentice":
            return ForkedServe(self._server.path(), command[1:], options["env"], options["stdout"].fileno())
        return Popen(command, **options)


def run_forked(server: Path, words: Sequence[str], environment: Mapping[str, str]) -> tuple[int, str, str]:
    """Run `apprentice` with these words to its end: its code, its output, and its errors."""
    with (
        tempfile.TemporaryFile() as errors,
        ForkedProgram(server, words, environment, errors.fileno()) as program,
    ):
        program.stdin.close()
        out, code = program.stdout.read(), program.wait()
        errors.seek(0)
        return code, out.decode(), errors.read().decode()


def ask_for_fork(
    server: Path, words: Sequence[str], environment: Mapping[str, str], standard: Sequence[int]
) -> socket.socket:
    """The connection to a process that was asked for, with these words and standard descriptors."""
    with ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(server))
        socket.send_fds(connection, [json.dumps([words, dict(environment)]).encode()], standard)
        connection.shutdown(socket.SHUT_WR)
        stack.pop_all()
    return connection


@asynccontextmanager
async def fork_gateway(server: Path, words: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Forked]:
    """A gateway that runs `apprentice` with these words. Who enters the block ends it there."""
    with ExitStack() as stack:
        nothing, (out, into) = os.open(os.devnull, os.O_RDONLY), os.pipe()
        connection = stack.enter_context(ask_for_fork(server, words, environment, (nothing, into, into)))
        for descriptor in (nothing, into):
            os.close(descriptor)
        told, writer = await asyncio.open_unix_connection(sock=connection)
        stdout = asyncio.StreamReader()
        reading, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stdout), stack.enter_context(os.fdopen(out, "rb", 0))
        )
        try:
            yield Forked(int(await told.readline()), stdout, told)
        finally:
            reading.close()
            writer.close()


def _accept(path: str) -> socket.socket | None:
    """The connection that this process is forked for; None at the end of the standard input."""
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
        server.bind(path)
        server.listen()
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while all(key.fileobj is server for key, _ in selector.select()):
            connection, _ = server.accept()
            if os.fork() == 0:
                return connection
            connection.close()
            _reap()
    _reap()
    return None


def _reap() -> None:
    """Wait for those that have ended, so that their CPU time is counted as this process's children's."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _become(connection: socket.socket) -> None:
    """Take the job, and be its process; what remains waits for that and tells how it ended."""
    raw, standard, _, _ = socket.recv_fds(connection, JOB_BYTES_MAX, 3)
    while more := connection.recv(JOB_BYTES_MAX):
        raw += more
    pid = os.fork()
    if pid:
        for descriptor in (0, *standard):
            os.close(descriptor)
        connection.sendall(f"{pid}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        os._exit(0)  # else all that is loaded is freed, and each page of it copied
    connection.close()
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    words, environment = json.loads(raw)
    sys.argv = ["apprentice", *words]
    os.environ.clear()
    os.environ.update(environment)
    os.umask(0o022)


def _serve() -> None:
    gc.disable()
    for module in (*LOADED, *HELPERS):
        import_module(module)
    for module in HELPERS:
        del sys.modules[module]  # each will be __main__
    gc.freeze()  # so the pages of what is loaded stay shared
    gc.enable()
    connection = _accept(sys.argv[1])
    if connection is not None:
        _become(connection)
        if sys.argv[1] == "-m":
            os.setsid()  # as a gateway starts its helpers
            runpy.run_module(sys.argv[2], run_name="__main__", alter_sys=True)
        else:
            sys.modules["gateway.cli.adopt"].run_command = _run_in_fork  # type: ignore[attr-defined]
            _command()


def _command() -> NoReturn:
    """Run a command, and end without freeing what is loaded: each page of it would be copied."""
    code: object = 0
    try:
        main()
    except SystemExit as ended:
        code = ended.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as each process does at its end
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _run_in_fork(command: Sequence[str], *_: object) -> tuple[int, bytes]:
    """A step of `apprentice adopt`, forked by that itself."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(writing, sys.stdout.fileno())
        os.close(writing)
        sys.argv = ["apprentice", *command[4:]]
        _command()
    os.close(writing)
    with os.fdopen(reading, "rb") as output:
        said = output.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said


if __name__ == "__main__":
    _serve()
