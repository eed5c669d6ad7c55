"""Do the panels and alerts show what they are for? `python -m benchmarks.panels [--json] [--full] [--seconds N]`.

A real Prometheus with our rules scrapes a real gateway and its fake engines, while callers ask, judge and hang up,
engines fail and admins swap adapters. Then every query of every dashboard and rule is asked of it. The exit code is 1
where one is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    FOLDER,
    ROOT,
    Goal,
    Running,
    answers,
    conclude,
    options,
    require,
    say,
    table,
)
from benchmarks.panel_queries import (
    KINDS,
    STATES,
    Finding,
    Json,
    Query,
    count_states,
    judge_item,
    read_board,
    read_names,
    read_rules,
)
from benchmarks.soak import CALLERS, World
from benchmarks.soak_load import Load
from benchmarks.subjects import TASK
from tests.fakes.ports import free_port
from tests.tools.dashboards.boards import BOARDS

SECONDS, SECONDS_FULL = 25, 300
SCRAPE_SECONDS = 1
START_SECONDS_MAX = 30.0
ALERTS = ROOT / "monitoring" / "alerts"
WATCHED: Mapping[str, Any] = {
    "checks": {"holdout": {"mode": "enforce", "share": 0.1}, "degraded": {"mode": "enforce"}},
    "monitor": {"shadow_share": 0.5, "reviews": {"per_week": 10_000}, "tuning_usd": 1},
}
"""What the task has here beside the soak's: shares of its requests for both arms and for reviews."""
GOALS = tuple(Goal(f"{kind}s_broken", at_most=0) for kind in KINDS)


class Prometheus:
    """The HTTP API of one that runs here. It is asked of the time from `began_at` to `ended_at` (Unix seconds)."""

    def __init__(self, port: int, began_at: float, ended_at: float) -> None:
        self._url = f"http://127.0.0.1:{port}/api/v1/"
        self._began_at = began_at
        self._ended_at = ended_at

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer. Raises ValueError with Prometheus' own words."""
        try:
            with urllib.request.urlopen(
                f"{self._url}{path}?{urllib.parse.urlencode(parameters)}", timeout=30
            ) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]) from error

    def find_series(self, query: Query) -> list[Json]:
        """The series of an answer, at the end or over the whole time. Raises ValueError."""
        span = {"start": self._began_at, "end": self._ended_at, "step": SCRAPE_SECONDS}
        path, when = ("query", {"time": self._ended_at}) if query.instant else ("query_range", span)
        found: list[Json] = self.ask(path, query=query.expr, **when)["result"]
        return found


def start_prometheus(stack: ExitStack, folder: Path, gateway: int, engines: Sequence[int]) -> int:
    """Prometheus with our rules, on the gateway and its engines. Its port. Raises Unmeasurable."""
    every = f"{SCRAPE_SECONDS}s"
    configuration = {
        "global": {"scrape_interval": every, "evaluation_interval": every},
        "rule_files": [f"{ALERTS}/*.yaml"],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for job, ports in (("apprentice", [gateway]), ("engines", engines))
        ],
    }
    path, port = folder / "prometheus.yaml", free_port()
    path.write_text(json.dumps(configuration), encoding="utf-8")  # JSON is YAML
    command = [require("prometheus", "prometheus"), f"--config.file={path}", f"--web.listen-address=127.0.0.1:{port}"]
    command += [f"--storage.tsdb.path={folder / 'prometheus'}", "--log.level=warn"]
    running = stack.enter_context(Running("Prometheus", command, None, folder / "prometheus.log"))
    running.wait_until(lambda: answers(port, "/-/ready"), START_SECONDS_MAX)
    scraped = Query(f"count(up == 1) == {1 + len(engines)}", instant=True)
    running.wait_until(lambda: bool(Prometheus(port, 0, time.time()).find_series(scraped)), START_SECONDS_MAX)
    return port


def judge_all(source: Prometheus, range_seconds: int) -> list[Finding]:
    """Every query of every dashboard and rule."""
    groups = source.ask("rules")["groups"]
    names = read_names(source.ask("metadata"), groups)
    items = [item for name, board in BOARDS.items() for item in read_board(name, board, range_seconds, SCRAPE_SECONDS)]
    failed = {
        f"{group['name']}: {rule['name']}": str(rule["lastError"])
        for group in groups
        for rule in group["rules"]
        if rule.get("lastError")
    }
    return [
        Finding(item, "broken", failed[item.place]) if item.place in failed else judge_item(item, source, names)
        for item in (*items, *read_rules(groups))
    ]


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """One run. Raises Unmeasurable."""
    began = time.monotonic()
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="panels-", dir=FOLDER) as name, ExitStack() as stack:
        folder = Path(name)
        say("Starting engines, gateway and Prometheus")
        world = World(stack, folder, WATCHED)
        port = start_prometheus(stack, folder, world.port, world.engines)
        began_at = time.time()
        say(f"{asked.seconds} s of load")
        load = Load(world.port, world.key, world.admin_key, world.engines, world.versions, asked.seed * 100, CALLERS)
        asyncio.run(load.run(asked.seconds / 2))
        for version in world.versions:
            pin = {"verdict": "suspect", "reason": "a changed verdict to be shown"}
            world.ask_admin("POST", f"tasks/{TASK}/quality/{version}/pin", pin)
        asyncio.run(load.run(began_at + asked.seconds - time.time()))
        ended_at = began_at + asked.seconds
        findings = judge_all(Prometheus(port, began_at, ended_at), asked.seconds)
    empty = [
        {"kind": one.item.kind, "state": one.state, "place": one.item.place, "why": one.why}
        for one in findings
        if one.state != "data"
    ]
    report = {
        "seed": asked.seed,
        "requests": load.counts["requests"],
        "took_seconds": round(time.monotonic() - began, 1),
        "figures": count_states(findings),
        "empty": empty,
    }
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The table for people, then everything that shows nothing."""
    figures = report["figures"]
    rows = [[f"{kind}s", *(figures[f"{kind}s_{state}"] for state in STATES)] for kind in KINDS]
    lines = [f"{one['state']:7} {one['kind']} {one['place']}  ({one['why']})" for one in report["empty"]]
    return "\n".join([table(["", *STATES], rows), "", *lines])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("panels", "Dashboards and rules on a live Prometheus.", full=f"{SECONDS_FULL} s of load")
    parser.add_argument("--seconds", type=int, help=f"whole seconds of load (default {SECONDS})")
    asked = parser.parse_args(arguments)
    asked.seconds = asked.seconds or (SECONDS_FULL if asked.full else SECONDS)
    return conclude("panels", lambda: measure(asked), GOALS, None if asked.json else show, strict=True)


if __name__ == "__main__":
    sys.exit(main())
