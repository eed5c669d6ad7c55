"""A process that has loaded a gateway, and forks one for each connection: 0.8 s of CPU time less for each than a start.

`python -m tests.walks.fork_server SOCKET` ends with its standard input. A connection sends a line of JSON with the
descriptor that takes the gateway's output; it is told the gateway's number, and its exit code in the end.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import selectors
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from importlib import import_module
from pathlib import Path
from subprocess import PIPE, Popen

from gateway.cli.entry import main

ROOT = Path(__file__).parents[2]
LOADED = ("gateway.cli.serve", "gateway.app", "gateway.graceful_server", "gateway.parent_process", "monitoring.logs")
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


@contextmanager
def run_fork_server() -> Iterator[Path]:
    """The socket of one, which ends with the block."""
    with tempfile.TemporaryDirectory(prefix="fk") as folder:
        path = Path(folder) / "socket"
        with Popen((sys.executable, "-m", __name__, path), stdin=PIPE, stdout=PIPE, cwd=ROOT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield path
            process.stdin.close()


@asynccontextmanager
async def fork_gateway(server: Path, words: Sequence[str], environment: Mapping[str, str]) -> AsyncIterator[Forked]:
    """A gateway that runs `apprentice` with these words. Who enters the block ends it there."""
    with ExitStack() as stack:
        connection = stack.enter_context(socket.socket(socket.AF_UNIX))
        connection.connect(str(server))
        out, into = os.pipe()
        socket.send_fds(connection, [json.dumps([words, dict(environment)]).encode()], [into])
        connection.shutdown(socket.SHUT_WR)
        os.close(into)
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
    return None


def _become(connection: socket.socket) -> bool:
    """Take the job, and be its gateway; what remains waits for that and tells how it ended, and is False."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    raw, (into,), _, _ = socket.recv_fds(connection, JOB_BYTES_MAX, 1)
    while more := connection.recv(JOB_BYTES_MAX):
        raw += more
    pid = os.fork()
    if pid:
        os.close(into)
        connection.sendall(f"{pid}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n".encode())
        return False
    connection.close()
    for number in (1, 2):
        os.dup2(into, number)
    os.close(into)
    words, environment = json.loads(raw)
    sys.argv = ["apprentice", *words]
    os.environ.clear()
    os.environ.update(environment)
    os.umask(0o022)
    return True


def _serve() -> None:
    gc.disable()
    for module in LOADED:
        import_module(module)
    gc.freeze()  # so the pages of what is loaded stay shared
    gc.enable()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    connection = _accept(sys.argv[1])
    if connection is not None and _become(connection):
        main()


if __name__ == "__main__":
    _serve()
