"""The whole way of an alert: our metrics, Prometheus with our rules, Alertmanager, and a webhook that hears of it."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.metrics import Meters
from tests.fakes.prometheus import alertmanager, prometheus
from tests.monitoring.test_alerts import ALERTS
from tests.monitoring.test_provisioning import PROVISIONING

Heard = queue.Queue[dict[str, Any]]
WITHIN_SECONDS = 120.0
RUNBOOKS_URL = "https://docs.example.com/reference/alerts.html"


@contextmanager
def listening(get: Callable[[], tuple[bytes, str]], post: Callable[[bytes], None]) -> Iterator[str]:
    """An HTTP server of the loopback that answers GET with what `get` says, and gives bodies of POST to `post`."""

    class Answering(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body, content_type = get()
            self.send_response(200)
            self.send_header("content-type", content_type)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            post(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chain(meters: Meters, folder: Path) -> Iterator[Heard]:
    """Both with the files in the repository, but for addresses and times; what the webhook hears."""
    heard: Heard = queue.Queue()
    with listening(meters.exposition, lambda body: heard.put(json.loads(body))) as address:
        (folder / "webhook_url").write_text(f"http://{address}/\n", encoding="utf-8")
        routes = (PROVISIONING / "alertmanager.yaml").read_text(encoding="utf-8")
        routes = routes.replace("/run/secrets", str(folder)).replace("group_wait: 10s", "group_wait: 0s")
        (folder / "alertmanager.yaml").write_text(routes.replace("group_interval: 5m", "group_interval: 1s"))
        with alertmanager(folder / "alertmanager.yaml", folder) as sender:
            scraped = yaml.safe_load((PROVISIONING / "prometheus.yaml").read_text(encoding="utf-8"))
            scraped["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
            scraped["global"]["external_labels"] = {"runbooks": RUNBOOKS_URL}
            scraped["rule_files"] = [str(path) for path in ALERTS]
            scraped["alerting"]["alertmanagers"] = [
                {"static_configs": [{"targets": [sender.base_url.netloc.decode()]}]}
            ]
            scraped["scrape_configs"] = [{"job_name": "apprentice", "static_configs": [{"targets": [address]}]}]
            (folder / "prometheus.yaml").write_text(yaml.safe_dump(scraped))
            with prometheus(folder / "prometheus.yaml", folder / "data"):
                yield heard


def next_of(heard: Heard, alertname: str, status: str) -> dict[str, Any]:
    """The next message about an alert in a state; others are let pass."""
    while True:
        message = heard.get(timeout=WITHIN_SECONDS)
        if message["commonLabels"].get("alertname") == alertname and message["status"] == status:
            return message


@pytest.mark.timeout(600)
def test_a_degraded_version_reaches_the_webhook_and_so_does_its_recovery(tmp_path: Path) -> None:
    meters = Meters()
    meters.verdict.set(2, "returns", "returns@v1")
    meters.requests.add(1, "returns", "returns@v1", "small", "adapter", "ok")
    with chain(meters, tmp_path) as heard:
        message = next_of(heard, "AdapterDegraded", "firing")
        meters.verdict.set(0, "returns", "returns@v1")
        resolved = next_of(heard, "AdapterDegraded", "resolved")
    assert message["version"] == "4"
    assert message["receiver"] == resolved["receiver"] == "page"
    (alert,) = message["alerts"]
    assert alert["labels"] == {
        "alertname": "AdapterDegraded",
        "severity": "critical",
        "task": "returns",
        "version": "returns@v1",
    }
    assert alert["annotations"]["runbook_url"] == f"{RUNBOOKS_URL}#adapterdegraded"
    assert alert["annotations"]["summary"].startswith("returns@v1 is degraded")
