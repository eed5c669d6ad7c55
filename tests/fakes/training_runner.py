"""A place elsewhere that runs trainings: it answers as a webhook, as Kubernetes and as Ray, and starts what it gets.

It starts the real remote_trainer.py, and this one tests/fakes/trainer.py's program in place of Python.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from serving.training.trainer import REMOTE_TRAINER

DRIVER = "import runpy, sys; sys.executable = sys.argv.pop(1); runpy.run_path(sys.argv[0], run_name='__main__')"


class TrainingRunner:
    """The processes that were launched, each by its name."""

    def __init__(self, folder: Path, trainer: Path) -> None:
        self.folder = folder
        self.trainer = trainer
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.asked.append((path, body))
        if path == "/hook":
            name, variables = body["id"], {"TRAINING_URL": body["url"], "TRAINING_TOKEN": body["token"]}
        elif path == "/api/jobs/":
            name, variables = body["submission_id"], body["runtime_env"]["env_vars"]
        else:
            (container,) = body["spec"]["template"]["spec"]["containers"]
            name = body["metadata"]["name"]
            variables = {each["name"]: each["value"] for each in container["env"]}
        if name in self.processes:
            return 409, {"message": "it exists already"}
        program = f"import sys; sys.argv[0] = {str(REMOTE_TRAINER)!r}; {DRIVER}"
        command = [sys.executable, "-c", program, str(self.trainer), str(self.folder / name)]
        self.processes[name] = subprocess.Popen(command, env={**os.environ, **variables}, start_new_session=True)
        return 201, {}

    def status(self, name: str) -> dict[str, Any]:
        code = self.processes[name].poll()
        kind = None if code is None else ("Complete" if code == 0 else "Failed")
        conditions = [] if kind is None else [{"type": kind, "status": "True", "reason": "BackoffLimitExceeded"}]
        return {"status": {"conditions": conditions}}


@contextmanager
def run_elsewhere(folder: Path, trainer: Path) -> Iterator[tuple[str, TrainingRunner]]:
    """The runner, and its address."""
    runner = TrainingRunner(folder, trainer)

    class Answering(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            self._send(*runner.answer(self.path, body))

        def do_GET(self) -> None:
            self._send(200, runner.status(self.path.rsplit("/", 1)[1]))

        def _send(self, status: int, told: dict[str, Any]) -> None:
            written = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(written)))
            self.end_headers()
            self.wfile.write(written)

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", runner
        finally:
            server.shutdown()
            serving.join()
            for process in runner.processes.values():
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # a trainer may wait after its driver has ended
                process.wait()
