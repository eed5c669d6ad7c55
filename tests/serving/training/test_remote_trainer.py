"""The trainer's way to its gateway from another machine: what breaks off there is asked for again."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from serving.training import remote_trainer


def test_a_file_whose_bytes_break_off_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_trainer, "PAUSE_SECONDS", 0.0)
    answers = [b"ro", b"rows"]

    class Cutting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(answers.pop(0))

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Cutting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        gateway = remote_trainer.TrainingGateway(f"http://127.0.0.1:{server.server_port}", "a-token")
        try:
            assert gateway._ask("/files/rows.jsonl") == b"rows"
        finally:
            server.shutdown()
