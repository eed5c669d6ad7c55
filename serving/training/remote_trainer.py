"""Runs a gateway's training on another machine: it fetches the files and the trainer, reports the progress to the
gateway, and sends the adapter. It needs only Python; the trainer beside it needs torch, transformers and peft.

    TRAINING_URL=… TRAINING_TOKEN=… python remote_trainer.py FOLDER [options of lora_trainer.py]

A second start with the same FOLDER continues from the checkpoint there.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TRAINER = "lora_trainer.py"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TRIES = 60
PAUSE_SECONDS = 2.0
TIMEOUT_SECONDS = 600.0
REFUSED = frozenset({400, 404, 413, 422})
MAY_BE_MISSED = frozenset({"step", "heldout"})


class GatewayFailure(Exception):
    """The gateway refuses, or does not answer; the message has its words."""


class TrainingGateway:
    """The gateway, as one training sees it."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._token = token

    def fetch(self, folder: Path) -> None:
        """Fetch the files of the training, and the trainer. Raises GatewayFailure."""
        written = self._ask("/files/job.json")
        job = json.loads(written)
        for name in (TRAINER, job["rows"], job["heldout"], *job.pop("fetched", ())):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(self._ask(f"/files/{Path(name).name}"))
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")

    def tell(self, line: bytes) -> None:
        """Pass on a message of the trainer; a message on its progress may be missed. Raises GatewayFailure."""
        kind = json.loads(line)["kind"]
        try:
            self._ask("/messages", line, "application/json", tries=1 if kind in MAY_BE_MISSED else TRIES)
        except TimeoutError:
            print(f"the gateway missed a message: {kind}", file=sys.stderr)

    def send(self, result: Path) -> None:
        """Send the adapter as a form. Raises GatewayFailure."""
        boundary = f"adapter-{time.time_ns()}"
        parts: list[bytes] = []
        for name in ADAPTER_FILES:
            head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'
            parts += [head.encode(), (result / name).read_bytes(), b"\r\n"]
        form = b"".join([*parts, f"--{boundary}--\r\n".encode()])
        self._ask("/result", form, f"multipart/form-data; boundary={boundary}")

    def _ask(self, path: str, body: bytes | None = None, kind: str = "", tries: int = TRIES) -> bytes:
        """The gateway's answer. Raises GatewayFailure; TimeoutError if a single try got no answer."""
        headers = {"Authorization": f"Bearer {self._token}"} | ({"Content-Type": kind} if kind else {})
        request = urllib.request.Request(self._url + path, data=body, headers=headers)  # noqa: S310 - as it was given
        fault = ""
        for number in range(tries):
            if number:
                time.sleep(PAUSE_SECONDS)
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
                    return bytes(answer.read())
            except urllib.error.HTTPError as error:
                fault = f"{error.code}: {error.read(500).decode(errors='replace')}"
                # A file may be ready later, or with another gateway. A stopped training does not come back.
                if error.code in REFUSED or (error.code in (401, 403, 409) and body is not None):
                    raise GatewayFailure(f"The gateway refuses {path}: {fault}") from None
            except (OSError, http.client.HTTPException) as error:  # the latter if an answer ends too early
                fault = str(error)
        if tries == 1:
            raise TimeoutError(fault)
        raise GatewayFailure(f"The gateway does not answer to {path}: {fault}")


def run_trainer(gateway: TrainingGateway, folder: Path, options: list[str]) -> int:
    """Run the trainer, pass on its messages, and send the adapter; returns its exit code. Raises GatewayFailure."""
    gateway.fetch(folder)
    command = [sys.executable, "-P", str(folder / TRAINER), str(folder), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as trainer:
        assert trainer.stdout is not None, "it is a pipe"
        try:
            for line in trainer.stdout:
                sys.stdout.buffer.write(line)
                sys.stdout.flush()
                if line.startswith(b"{"):
                    gateway.tell(line)
        finally:
            if sys.exc_info()[0] is not None:
                trainer.kill()
    if trainer.returncode == 0:
        gateway.send(folder / "result")
    elif trainer.returncode < 0:  # it was killed, and reported nothing
        text = f"The trainer was ended by signal {-trainer.returncode}, mostly because memory ran out: halve --batch."
        gateway.tell(json.dumps({"kind": "failed", "text": text}).encode())
    return trainer.returncode


def main() -> None:
    """Run the training that the environment names; the exit code is 1 if it failed."""
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    gateway = TrainingGateway(os.environ["TRAINING_URL"], os.environ["TRAINING_TOKEN"])
    try:
        code = run_trainer(gateway, folder, sys.argv[2:])
    except GatewayFailure as failure:
        print(failure, file=sys.stderr)
        code = 1
    sys.exit(min(1, abs(code)))


if __name__ == "__main__":
    main()
