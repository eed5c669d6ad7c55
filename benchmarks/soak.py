"""Does anything leak? `python -m benchmarks.soak [--json] [--full] [--minutes N] [--seed S]`.

A real gateway with two fake engines is used by callers who ask, stream, judge and hang up at random moments, while
engines fail at random, admins swap adapters, make and revoke keys, set rules, cordon and reload. Rounds of load take
turns with quiet moments, in which everything that was taken has to be given back: what the gateway holds then, and what
the engines still work on, is compared with the first quiet moment after the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    FOLDER,
    ROOT,
    Goal,
    Running,
    Unmeasurable,
    answers,
    ask,
    conclude,
    options,
    say,
    table,
)
from benchmarks.harness import ratio as one_by_other
from benchmarks.soak_load import Load
from benchmarks.subjects import BASE_CONFIG, BASE_MODEL, BASE_NAME, TASK, apprentice, base_fingerprint
from benchmarks.swap_subjects import copy_of_adapter
from tests.fakes.ports import free_port

ADAPTERS = ROOT / "tests" / "engine" / "adapters"
CALLERS = 12
MINUTES, MINUTES_FULL = 1.5, 10.0
ROUNDS_WARM_UP = 2
ROUNDS = 10
"""Of load, each with a quiet moment after it; those of the warm-up are not judged."""
QUIET_SECONDS_MAX = 60.0
SETTLED_SECONDS = 1.5
START_SECONDS_MAX = 60.0
FULL = "10 minutes instead of 1.5"
RSS_MB_PER_1000_MAX = 0.5
RSS_MB_PER_1000_SHORT_MAX = 2.0
LONG_MINUTES = 5.0
"""From here on the handles of the latest requests are nearly full, and what still grows has no bound."""
SLACK = {"tasks": 4, "descriptors": 16, "series": 100}
"""What may be more by chance: a job that is at it; connections to Valkey, of which as many are kept as were used at
once; series of outcomes and errors that come up late, since each is rare."""
ENGINE_CONNECTIONS_MAX = 8 * CALLERS
"""As many are kept as were used at once, by callers, shadows and those who hung up, towards each engine."""
LEFT = ("in_flight", "engine_requests", "records_pending")
COUNTED = ("requests", "hang_ups", "faults", "swaps", "feedback", "admin_calls")


def goals_of(minutes: float) -> tuple[Goal, ...]:
    """What has to hold of a soak of this length."""
    rss = RSS_MB_PER_1000_MAX if minutes >= LONG_MINUTES else RSS_MB_PER_1000_SHORT_MAX
    return (
        Goal("rss_mb_per_1000_requests", at_most=rss),
        *(Goal(f"{name}_left", at_most=0) for name in LEFT),
        *(Goal(f"{name}_grown", at_most=more) for name, more in SLACK.items()),
        Goal("engine_connections", at_most=ENGINE_CONNECTIONS_MAX),
        Goal("internal_errors", at_most=0),
        Goal("measurements_lost", at_most=0),
        *(Goal(name, at_least=1) for name in COUNTED),
    )


SERIES = re.compile(r"^(apprentice_\w+?)(\{[^}]*\})? ([0-9.eE+-]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Held:
    """What the gateway holds at a quiet moment, and what the engines still work on. Sizes in MB.

    `descriptors` are those that do not lead to an engine: such connections are kept for the next request.
    """

    at_seconds: float
    requests: int
    rss_mb: float
    descriptors: int
    engine_connections: int
    tasks: int
    series: int
    in_flight: int
    records_pending: int
    engine_requests: int


class World:
    """The gateway and its engines, as they are asked from outside. `task` are more settings of the task."""

    def __init__(self, stack: ExitStack, folder: Path, task: Mapping[str, Any] | None = None) -> None:
        self.began = time.monotonic()
        self.engines = tuple(_start_engine(stack, folder) for _ in range(2))
        self.port = free_port()
        self.admin_key = f"sk-app-{secrets.token_hex(6)}-{secrets.token_urlsafe(32)}"
        self.log = folder / "gateway.log"
        config = folder / "apprentice.yaml"
        configured = _configuration(folder, self.engines, self.port)
        configured["tasks"][TASK] |= task or {}
        config.write_text(json.dumps(configured, indent=1))  # JSON is YAML
        command = [apprentice(), "serve", "--config", str(config)]
        gateway = Running("the gateway", command, None, self.log, {"APPRENTICE_ADMIN_KEY": self.admin_key})
        self.gateway = stack.enter_context(gateway)
        gateway.wait_until(lambda: answers(self.port, "/health/ready"), START_SECONDS_MAX)
        self.versions = tuple(self._place(folder, number) for number in (1, 2, 3))
        self.ask_admin("PUT", f"aliases/{TASK}", {"version": self.versions[0]})
        self.key = str(self.ask_admin("POST", "callers", {"name": "soak"})["key"])

    def _place(self, folder: Path, number: int) -> str:
        adapter = copy_of_adapter(folder / f"adapter-{number}", "fake", ADAPTERS / f"v{1 + number % 2}")
        if number > 2:  # the third has the bytes of the first, and is another version by its manifest
            manifest = json.loads((adapter / "manifest.yaml").read_text(encoding="utf-8"))
            manifest["provenance"] = {"notes": "the third"}
            (adapter / "manifest.yaml").write_text(json.dumps(manifest), encoding="utf-8")
        version = str(self.ask_admin("POST", "adapters", {"task": TASK, "path": str(adapter)})["version"])
        self.ask_admin("POST", f"adapters/{version}/stage?wait_seconds=60")
        return version

    def ask_admin(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The answer of the admin API. Raises Unmeasurable where it refuses."""
        status, _, answer = ask(self.port, method, f"/admin/v1/{path}", body, self.admin_key)
        if status >= 300:
            raise Unmeasurable(f"The gateway answered {status} to {method} {path}: {answer[:400].decode()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def metrics(self) -> dict[str, dict[str, float]]:
        """The gateway's metrics: name → labels → value."""
        found: dict[str, dict[str, float]] = {}
        for name, labels, value in SERIES.findall(ask(self.port, "GET", "/metrics")[2].decode()):
            found.setdefault(name, {})[labels] = float(value)
        return found

    def held(self) -> Held:
        """What is held now. Looking at it takes a connection of its own, which is counted too, each time."""
        told = self.metrics()
        engines = [json.loads(ask(port, "GET", "/__state")[2]) for port in self.engines]
        connections = sum(one["connections"] - 1 for one in engines)  # one is ours
        pages = int(Path(f"/proc/{self.gateway.pid}/statm").read_text(encoding="utf-8").split()[1])
        return Held(
            at_seconds=round(time.monotonic() - self.began, 1),
            requests=int(sum(told.get("apprentice_requests_total", {}).values())),
            rss_mb=pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            descriptors=len(os.listdir(f"/proc/{self.gateway.pid}/fd")) - connections,
            engine_connections=connections,
            tasks=int(sum(told["apprentice_tasks"].values())),
            series=sum(map(len, told.values())),
            in_flight=int(sum(told["apprentice_in_flight"].values())),
            records_pending=int(sum(told["apprentice_records_pending"].values())),
            engine_requests=sum(one["in_flight"] for one in engines),
        )

    async def quiet(self) -> Held:
        """Wait until nothing is under way, no longer than QUIET_SECONDS_MAX, and see what is still held."""
        until = time.monotonic() + QUIET_SECONDS_MAX
        while True:
            await asyncio.sleep(SETTLED_SECONDS)
            held = self.held()
            over = time.monotonic() > until
            if over or not (held.in_flight or held.records_pending or held.engine_requests):
                return held


def _start_engine(stack: ExitStack, folder: Path) -> int:
    port = free_port()
    command = [str(Path(apprentice()).with_name("python")), "-m", "tests.fakes.engine", "--port", str(port)]
    command += ["--model", BASE_MODEL, "--n-tokens", "24", "--token-delay-seconds", "0.002"]
    log = folder / f"engine-{port}.log"
    engine = stack.enter_context(Running(f"engine {port}", command, None, log, {"PYTHONPATH": str(ROOT)}))
    engine.wait_until(lambda: answers(port, "/health"), START_SECONDS_MAX)
    return port


def _configuration(folder: Path, engines: Sequence[int], port: int) -> dict[str, Any]:
    base = folder / BASE_NAME
    base.mkdir()
    (base / "config.json").write_text(json.dumps(BASE_CONFIG), encoding="utf-8")
    price = {"prompt_usd_per_million_tokens": 0.02, "completion_usd_per_million_tokens": 0.04}
    small = {"base_folder": str(base), "base_fingerprint": base_fingerprint(), "continues": True}
    urls = [f"http://127.0.0.1:{engine}" for engine in engines]
    return {
        "listen": {"host": "127.0.0.1", "port": port},
        "data_folder": str(folder / "data"),
        "import_folders": ["/"],
        "pools": {
            "small": {
                "base_model": BASE_MODEL,
                **small,
                "price": price,
                "replicas": [{"name": f"small-{number}", "url": url} for number, url in enumerate(urls)],
            },
            "general": {
                "base_model": BASE_MODEL,
                "callable": True,
                "continues": True,
                "price": price,
                "replicas": [{"name": "general-0", "url": urls[1]}],
            },
        },
        "tasks": {TASK: {"fallback_pool": "general", "max_tokens_max": 512}},
        "limits": {
            "first_token_timeout_seconds": 1.0,
            "inter_token_timeout_seconds": 1.0,
            "answer_timeout_seconds": 2.0,
        },
    }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line through points, by least squares; 0 where they are too few."""
    if len(points) < 2:
        return 0.0
    across = [x for x, _ in points]
    if len(set(across)) < 2:
        return 0.0
    return statistics.linear_regression(across, [y for _, y in points]).slope


def figures_of(
    quiet: Sequence[Held], counts: Mapping[str, int], told: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The figures by which is judged, from what was held at the quiet moments after the warm-up.

    The slope of the memory is that of the later half of them.
    """
    first, last, later = quiet[0], quiet[-1], quiet[len(quiet) // 2 :]
    growth = {f"{name}_grown": getattr(last, name) - getattr(first, name) for name in SLACK}
    left = {f"{name}_left": max(getattr(one, name) for one in quiet) for name in LEFT}
    refusals = told.get("apprentice_refusals_total", {})
    return {
        "rss_mb_per_1000_requests": 1000 * slope([(one.requests, one.rss_mb) for one in later]),
        "rss_mb_first": first.rss_mb,
        "rss_mb_last": last.rss_mb,
        **growth,
        **left,
        "engine_connections": max(one.engine_connections for one in quiet),
        "internal_errors": int(sum(value for labels, value in refusals.items() if "internal_error" in labels)),
        "measurements_lost": int(sum(told.get("apprentice_measurements_lost_total", {}).values())),
        **{name: counts.get(name, 0) for name in COUNTED},
        "requests_per_second": one_by_other(last.requests - first.requests, last.at_seconds - first.at_seconds),
    }


async def soak(world: World, seed: int, minutes: float, rounds: int = ROUNDS) -> tuple[list[Held], dict[str, int]]:
    """Rounds of load and quiet moments: what was held at each of these, and what was done."""
    load = Load(world.port, world.key, world.admin_key, world.engines, world.versions, seed * 100, CALLERS)
    round_seconds = minutes * 60 / rounds
    quiet: list[Held] = []
    for number in range(rounds):
        await load.run(max(round_seconds - SETTLED_SECONDS, 1.0))
        quiet.append(await world.quiet())
        say(f"round {number + 1} of {rounds}: {quiet[-1].requests} requests, {quiet[-1].rss_mb:.1f} MB")
    return quiet, dict(load.counts)


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """One soak. Raises Unmeasurable."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    minutes = asked.minutes
    with tempfile.TemporaryDirectory(prefix="soak-", dir=FOLDER) as folder, ExitStack() as stack:
        world = World(stack, Path(folder))
        say(f"{minutes:g} minutes")
        quiet, counts = asyncio.run(soak(world, asked.seed, minutes))
        told = world.metrics()
        said = world.log.read_text(encoding="utf-8", errors="replace")
    obstacles = [f"the gateway's log has {said.count('Traceback')} traces"] if "Traceback" in said else []
    if obstacles:
        say(said[said.index("Traceback") - 200 :][:3000])
    report = {
        "seed": asked.seed,
        "minutes": minutes,
        "callers": CALLERS,
        "figures": figures_of(quiet[ROUNDS_WARM_UP - 1 :], counts, told),
        "counts": counts,
        "quiet": [asdict(one) for one in quiet],
    }
    return report, obstacles


def show(report: Mapping[str, Any]) -> str:
    """The tables for people: what was held at each quiet moment, and the figures."""
    names = ("requests", "rss_mb", "descriptors", "engine_connections", "tasks", "series", "in_flight")
    rows = [[f"{one['at_seconds']:g} s", *(one[name] for name in names)] for one in report["quiet"]]
    lines = [[name, value] for name, value in report["figures"].items()]
    return table(["at", *names], rows) + "\n\n" + table(["figure", "value"], lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("soak", "Does anything leak under load, faults, hang-ups and swaps?", FULL)
    parser.add_argument("--minutes", type=float, help=f"how long (default {MINUTES:g})")
    asked = parser.parse_args(arguments)
    asked.minutes = asked.minutes or (MINUTES_FULL if asked.full else MINUTES)
    return conclude("soak", lambda: measure(asked), goals_of(asked.minutes), None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
