"""Draws the dashboards into docs/dashboards/*.png: `python -m tests.tools.dashboards.draw`.

The made-up day (story.py) goes into a real Prometheus with our rules; each panel's query is asked of it as Grafana
would; Grafana's own components draw the answers in a headless Chromium. It needs
`apt-get install chromium fonts-inter nodejs npm pngquant prometheus`, and in tools/dashboards/draw
`npm install --no-package-lock`; `npm run schema` there checks the JSON against Grafana's schema. Look at the pictures.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.fakes.prometheus import asked, prometheus, run, write_history
from tests.monitoring.test_alerts import ALERTS
from tests.style.source import ROOT
from tests.tools.dashboards.boards import BOARDS, Json, filled, panels
from tests.tools.dashboards.story import INTERVAL_SECONDS, told

PROJECT = ROOT / "tools" / "dashboards" / "draw"
DAY_SECONDS, SHOWN_SECONDS, STEP_SECONDS = 8 * 3600, 6 * 3600, 120
WIDTH, CELL = 1440, 36
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    "--enable-logging=stderr",
]


def main(folder: Path = ROOT / "docs" / "dashboards") -> None:
    """Draw all of them into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["npm", "run", "--silent", "page"], cwd=PROJECT, check=True)
    end = time.time() // STEP_SECONDS * STEP_SECONDS
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        configuration = work / "prometheus.yaml"
        configuration.write_text(yaml.safe_dump({"rule_files": [str(path) for path in ALERTS]}))
        data = write_history(told(end - DAY_SECONDS, DAY_SECONDS), work)
        with prometheus(configuration, data, INTERVAL_SECONDS) as client:
            _record(client, end, work, data)
        with prometheus(configuration, data, STEP_SECONDS) as client:
            for board, content in BOARDS.items():
                answers = {panel["id"]: _answers(client, panel, end) for panel in panels(content)}
                page = _page(content, answers, _marks(client, content, end), end)
                _shoot(page, _height(content), work, folder / f"{board}.png")


def _record(client: httpx.Client, end: float, work: Path, data: Path) -> None:
    """Have what rules would have recorded in the meantime written into the folder of data."""
    span = [f"--start={end - SHOWN_SECONDS:.0f}", f"--end={end:.0f}", "--eval-interval=120s"]
    rules = str(ROOT / "monitoring" / "alerts" / "recording.yaml")
    run(
        "promtool",
        "tsdb",
        "create-blocks-from",
        "rules",
        *span,
        f"--url={client.base_url}",
        "--output-dir=data",
        rules,
        folder=work,
    )
    assert data.name == "data"


def _answers(client: httpx.Client, panel: Json, end: float) -> dict[str, Any]:
    found = {}
    for target in panel["targets"]:
        expr = filled(target["expr"], SHOWN_SECONDS)
        span = {"start": end - SHOWN_SECONDS, "end": end, "step": STEP_SECONDS}
        path, when = ("query", {"time": end}) if target["instant"] else ("query_range", span)
        found[target["refId"]] = asked(client, path, query=expr, **when)["result"]
    return found


def _marks(client: httpx.Client, board: Json, end: float) -> list[dict[str, Any]]:
    found = []
    for event in board["annotations"]["list"]:
        expr = filled(event["target"]["expr"], SHOWN_SECONDS, STEP_SECONDS)
        span = {"start": end - SHOWN_SECONDS, "end": end, "step": STEP_SECONDS}
        for one in asked(client, "query_range", query=expr, **span)["result"]:
            found += [{"time": at, "colour": event["iconColor"]} for at, value in one["values"] if float(value) > 0]
    return found


def _page(board: Json, answers: dict[int, Any], marks: list[dict[str, Any]], end: float) -> str:
    told_to_page: dict[str, Any] = {"BOARD": board, "ANSWERS": answers, "EVENTS": marks, "STEP": STEP_SECONDS}
    told_to_page["SPAN"] = [end - SHOWN_SECONDS, end]
    script = "".join(f"window.{name}={json.dumps(value)};" for name, value in told_to_page.items()).replace(
        "</", "<\\/"
    )
    styles = '<link rel="stylesheet" href="page.css">' if (PROJECT / "build" / "page.css").exists() else ""
    return (
        f'<!doctype html><meta charset="utf-8">{styles}<div id="board"></div>'
        f'<script>{script}</script><script src="page.js"></script>'
    )


def _height(board: Json) -> int:
    ends: list[int] = [panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"]]
    return max(ends) * CELL + 48


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    """The page's files over HTTP: Grafana's icons can't be read from a disk."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _shoot(page: str, height: int, work: Path, picture: Path) -> None:
    for built in (PROJECT / "build").glob("page.*"):
        shutil.copy(built, work)
    icons = work / "public" / "build" / "img" / "icons"
    shutil.copytree(PROJECT / "node_modules/@grafana/ui/dist/public/img/icons", icons, dirs_exist_ok=True)
    (work / "page.html").write_text(page, encoding="utf-8")
    flags = [*FLAGS, f"--window-size={WIDTH},{height}", "--virtual-time-budget=15000", f"--screenshot={picture}"]
    with _served(work) as url:
        command = ["chromium", *flags, f"--user-data-dir={work / 'chromium'}", f"{url}/page.html"]
        told_by_page = subprocess.run(command, check=True, timeout=300, capture_output=True, text=True).stderr
    faults = [line for line in told_by_page.splitlines() if "CONSOLE" in line and "Uncaught" in line]
    assert not faults, faults[0]
    subprocess.run(["pngquant", "--force", "--ext=.png", "--strip", "48", str(picture)], check=True)
    print(f"{picture.name}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
