"""Real Prometheus and Alertmanager processes for tests, from Debian's packages, on free ports of the loopback."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.fakes.ports import free_port
from tests.programs import program

DEADLINE_SECONDS = 60.0


def run(name: str, *arguments: str | Path, folder: Path) -> str:
    """A program's output; it has to end well."""
    command = [program(name), *map(str, arguments)]
    environment = {**os.environ, "GOGC": "400"}  # promtool collects garbage for a quarter of its time else
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def write_history(lines: Iterable[str], folder: Path) -> Path:
    """A database with these lines of OpenMetrics text, each with its time; where it is."""
    text, data = folder / "history.txt", folder / "data"
    with text.open("w", encoding="utf-8") as file:
        file.writelines(lines)
    run("promtool", "tsdb", "create-blocks-from", "openmetrics", text, data, folder=folder)
    return data


@contextmanager
def prometheus(
    configuration: Path, data: Path, history_step_seconds: int | None = None, options: Iterable[str] = ()
) -> Iterator[httpx.Client]:
    """A Prometheus with this configuration, this folder of data and more options; a client of its HTTP API.

    A written history has no mark where a series ends: with its step, a series without a sample in two is at its end.
    """
    port = free_port()
    command = [program("prometheus"), f"--config.file={configuration}", f"--storage.tsdb.path={data}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--storage.tsdb.retention.time=90d", "--log.level=warn"]
    command += options
    command += [f"--query.lookback-delta={2 * history_step_seconds}s"] if history_step_seconds else []
    with _running(command, f"http://127.0.0.1:{port}", data.parent / "prometheus.log") as client:
        yield client


@contextmanager
def alertmanager(configuration: Path, folder: Path) -> Iterator[httpx.Client]:
    """An Alertmanager with this configuration, alone; a client of its HTTP API."""
    port = free_port()
    command = [program("prometheus-alertmanager"), f"--config.file={configuration}", f"--storage.path={folder}"]
    command += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=", "--log.level=warn"]
    with _running(command, f"http://127.0.0.1:{port}", folder / "alertmanager.log") as client:
        yield client


def asked(client: httpx.Client, path: str, **parameters: Any) -> Any:
    """The data of an answer of Prometheus' API; there has to be no error and no warning."""
    answer = client.get(f"/api/v1/{path}", params=parameters)
    told = answer.json()
    assert told["status"] == "success", f"{parameters}: {told.get('error')}"
    assert not told.get("warnings"), f"{parameters}: {told['warnings']}"
    return told["data"]


@contextmanager
def _running(command: list[str], url: str, log: Path) -> Iterator[httpx.Client]:
    with log.open("wb") as written, httpx.Client(base_url=url, timeout=60) as client:
        process = subprocess.Popen(command, stdout=written, stderr=written)
        try:
            _wait_until_ready(client, process, log)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=60)


def _wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(encoding="utf-8")
        try:
            if client.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"it did not start within {DEADLINE_SECONDS:.0f} s: {log.read_text(encoding='utf-8')}")
