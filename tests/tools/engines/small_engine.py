"""A process with an engine's manners: GET /health, POST /fallback, and a child of its own.

POST /fallback ends it at once, with code 0 and an error in its log. It does not start while there is a file UNLESS.

python small_engine.py PORT [--stubborn] [--slow-start SECONDS] [--unless UNLESS]
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(b"ok")

    def do_POST(self) -> None:
        self._answer(b"bye")
        print("(EngineCore pid=12) ERROR 11-25 02:00:01 [core.py:710] ValueError: no such adapter", flush=True)
        os._exit(0)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    if "--unless" in sys.argv and os.path.exists(sys.argv[sys.argv.index("--unless") + 1]):
        sys.exit("no memory left")
    if "--stubborn" in sys.argv:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    core = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    print(f"core {core.pid}", flush=True)
    if "--slow-start" in sys.argv:
        time.sleep(float(sys.argv[sys.argv.index("--slow-start") + 1]))
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
