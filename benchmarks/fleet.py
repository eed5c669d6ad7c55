"""What a fleet costs, and which cost grows: `python -m benchmarks.fleet [--json] [--full] [--plot FILE]`.

Real gateway processes on one Valkey, and fake engines with a port each. Small fleets differ in one of gateways,
replicas and tasks alone, which gives a slope for each; then one fleet has many of all. CPU is time, not its share of
this machine, so other work beside it moves it little. Moments until all gateways see a change are this machine's.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.choice import best_us, policy
from benchmarks.fleet_plot import FACTORS, draw, points_of
from benchmarks.fleet_world import Fleet, Requests, Size, name_of, replicas_of
from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, ratio, say, table
from benchmarks.scale import MOMENT, fleet_of, with_tasks
from benchmarks.scale_processes import memory_mb
from benchmarks.soak import SERIES, slope
from benchmarks.subjects import TASK
from gateway.configuration.settings import load_settings
from router.choice import choose
from router.fitted import NOTHING_FITTED
from router.routing_data import NO_SCORES, RoutingRequest

BASE = Size(2, 10, 20)
STEPS: Mapping[str, Sequence[int]] = {"gateways": (4,), "replicas": (60,), "tasks": (200,)}
REAL = Size(6, 60, 200)
BASE_FULL = Size(1, 10, 10)
STEPS_FULL: Mapping[str, Sequence[int]] = {"gateways": (5, 10, 25), "replicas": (100, 500), "tasks": (100, 1000)}
REAL_FULL = Size(50, 500, 1000)
SECONDS, SECONDS_FULL = 6.0, 20.0
LOOKS_PER_SECOND_MAX = 500.0
"""Of all gateways together: two cores have to bear them, beside all else. The interval is made as long as it takes."""
HEALTH_INTERVAL_SECONDS = 10.0
SETTLED_SECONDS = 3.0
PLACED_SECONDS_MAX = 300.0
SEEN_SECONDS_MAX = 300.0
POLL_SECONDS = 0.02
SCRAPES = 3
CHANGES = 4
CHANGE_SECONDS = 2.0
GATEWAYS_A_CHANGE = 5
"""More gateways than this get longer for a change, on two cores."""
REQUESTS_PER_SECOND = 20.0
DYING = 1
"""The task one of whose engines dies."""
GROWING = (
    *("cpu_ms_per_second", "lease_cpu_ms_per_second", "memory_mb", "start_cpu_seconds", "change_cpu_ms"),
    *("metrics_kb", "metrics_series", "metrics_cpu_ms", "engine_calls_per_second", "engine_connections"),
    *("redis_commands_per_second", "redis_kb_per_second", "redis_connections", "redis_cpu_ms_per_second"),
    *("redis_memory_mb", "change_redis_kb", "promotion_seconds", "load_ms", "choose_us"),
)
"""Figures of one fleet that may grow. CPU, memory, start, change and /metrics are of one gateway, all else of all."""
GOALS = (Goal("failed", at_most=0), Goal("calls_by_expected", at_most=1.25), Goal("placements_missing", at_most=0))


def interval_of(size: Size, looks_per_second: float) -> float:
    """The time between two looks at a replica, in seconds."""
    return max(HEALTH_INTERVAL_SECONDS, size.gateways * size.replicas / looks_per_second)


# ---- one fleet ----------------------------------------------------------------------------------


def settle(fleet: Fleet) -> int:
    """Wait until every gateway sees every placement, and nothing changes any more.

    Returns the placements that are still missing after a while.
    """
    placements = sum(len(replicas_of(task, fleet.size.replicas)) for task in range(1, fleet.size.tasks)) + 4
    until = time.monotonic() + PLACED_SECONDS_MAX
    while (missing := placements - fleet.ready_placements(len(fleet.ports) - 1)) > 0 and time.monotonic() < until:
        time.sleep(0.5)
    before = -1  # the monitor writes a first verdict for each task, one after the other
    while (now := fleet.generation()) != before and time.monotonic() < until:
        before = now
        time.sleep(SETTLED_SECONDS)
    return max(0, missing)


def measure_rest(fleet: Fleet, seconds: float) -> dict[str, float]:
    """The costs of a fleet that nobody asks anything: a figure for one gateway, or for all that there is once."""
    cpu, redis, calls, began = fleet.cpu(), fleet.redis(), fleet.engine_counts(), time.monotonic()
    time.sleep(max(seconds, fleet.health_interval_seconds))
    passed = time.monotonic() - began
    used = [1000 * (after - before) / passed for before, after in zip(cpu, fleet.cpu(), strict=True)]
    now, calls_now = fleet.redis(), fleet.engine_counts()
    count = len(fleet.ports)
    expected = 2 * count * (fleet.size.replicas + 1) / fleet.health_interval_seconds
    memory = [memory_mb(pid) for pid in fleet.pids]
    return {
        "cpu_ms_per_second": min(used),
        "lease_cpu_ms_per_second": sum(used) - count * min(used),
        "memory_mb": sum(one["own_mb"] for one in memory) / count,
        "memory_share_mb": sum(one["share_mb"] for one in memory) / count,
        "start_cpu_seconds": min(fleet.start_cpu_seconds),
        "engine_calls_per_second": (calls_now["calls"] - calls["calls"]) / passed,
        "calls_by_expected": (calls_now["calls"] - calls["calls"]) / passed / expected,
        "engine_connections": calls_now["connections"],
        "redis_commands_per_second": (now["commands"] - redis["commands"]) / passed,
        "redis_kb_per_second": (now["bytes"] - redis["bytes"]) / passed / 1000,
        "redis_cpu_ms_per_second": 1000 * (now["cpu_seconds"] - redis["cpu_seconds"]) / passed,
        "redis_connections": now["connections"],
        "redis_memory_mb": now["memory_mb"],
    }


def measure_metrics(fleet: Fleet) -> dict[str, float]:
    """/metrics of the first gateway, once every task was asked there."""
    for number in range(fleet.size.tasks):
        fleet.ask_task(0, name_of(number))
    before, walls = fleet.cpu()[0], []
    for _ in range(SCRAPES):
        began = time.monotonic()
        text = fleet.scrape(0)
        walls.append(time.monotonic() - began)
    used = (fleet.cpu()[0] - before) / SCRAPES
    samples = SERIES.findall(text)
    overflowed = sum(float(value) for name, _, value in samples if name == "apprentice_series_overflow_total")
    return {
        "metrics_kb": len(text) / 1000,
        "metrics_series": float(len(samples)),
        "metrics_cpu_ms": 1000 * used,
        "metrics_seconds": min(walls),
        "metrics_overflowed": overflowed,
    }


def measure_change(fleet: Fleet) -> dict[str, float]:
    """A promotion: the time until all gateways decide by it, and, of several more, what one costs each gateway."""
    sent = time.monotonic()
    fleet.ask_admin("PUT", f"aliases/{TASK}", {"version": fleet.versions[1]})
    acknowledged = time.monotonic()
    seen = _until_all(fleet, partial(_decides_by, fleet, fleet.versions[1]))
    time.sleep(SETTLED_SECONDS)
    resting = _used_while(fleet, lambda _: None)
    changing = _used_while(fleet, lambda at: _promote(fleet, fleet.versions[at % 2]))
    return {
        "acknowledged_seconds": acknowledged - sent,
        "promotion_seconds": seen - sent,
        "change_cpu_ms": 1000 * (changing["cpu"] - resting["cpu"]) / CHANGES / len(fleet.ports),
        "change_redis_kb": (changing["bytes"] - resting["bytes"]) / 1000 / CHANGES,
        "change_redis_cpu_ms": 1000 * (changing["redis_cpu"] - resting["redis_cpu"]) / CHANGES,
    }


def _promote(fleet: Fleet, version: str) -> None:
    fleet.ask_admin("PUT", f"aliases/{TASK}", {"version": version})


def _used_while(fleet: Fleet, change: Callable[[int], None]) -> dict[str, float]:
    """What all gateways and Valkey use in a time that is the same however long the changes in it take."""
    pause_seconds = CHANGE_SECONDS * max(1.0, len(fleet.ports) / GATEWAYS_A_CHANGE)
    cpu, redis = sum(fleet.cpu()), fleet.redis()
    end = time.monotonic()
    for at in range(CHANGES):
        end += pause_seconds
        change(at)
        time.sleep(max(0.0, end - time.monotonic()))
    now = fleet.redis()
    return {
        "cpu": sum(fleet.cpu()) - cpu,
        "bytes": now["bytes"] - redis["bytes"],
        "redis_cpu": now["cpu_seconds"] - redis["cpu_seconds"],
    }


def measure_death(fleet: Fleet) -> dict[str, float]:
    """An engine is killed under requests: what becomes of them, and the time until no gateway takes it for up."""
    number = replicas_of(DYING, fleet.size.replicas)[0]
    with Requests(fleet, name_of(DYING), REQUESTS_PER_SECOND) as requests:
        while requests.sent < REQUESTS_PER_SECOND:
            time.sleep(POLL_SECONDS)
        before, killed = requests.sent, time.monotonic()
        fleet.kill_engine(number)
        out = _until_all(fleet, partial(_takes_for_down, fleet, f"small-{number}"))
        while requests.sent < before + REQUESTS_PER_SECOND:
            time.sleep(POLL_SECONDS)
    return {
        "dead_engine_seconds": out - killed,
        "sent": float(requests.sent),
        "failed": float(requests.failed),
        "by_fallback": float(requests.by_fallback),
    }


def _until_all(fleet: Fleet, holds: Callable[[int], bool]) -> float:
    """The moment at which it holds of the last gateway. Raises Unmeasurable."""
    left, until = set(range(len(fleet.ports))), time.monotonic() + SEEN_SECONDS_MAX
    while left:
        left -= {gateway for gateway in sorted(left) if holds(gateway)}
        if time.monotonic() > until:
            raise Unmeasurable(f"{len(left)} gateways did not see it within {SEEN_SECONDS_MAX:g} s.")
        time.sleep(POLL_SECONDS)  # waits for processes, in a program without an event loop
    return time.monotonic()


def _decides_by(fleet: Fleet, version: str, gateway: int) -> bool:
    status, _, answer = fleet.ask_task(gateway, TASK, "/v1/route")
    return status == 200 and json.loads(answer)["version"] == version


def _takes_for_down(fleet: Fleet, replica: str, gateway: int) -> bool:
    replicas = fleet.ask_admin("GET", "replicas", gateway=gateway)["replicas"]
    return not next(one["up"] for one in replicas if one["name"] == replica)


def measure_alone(fleet: Fleet) -> dict[str, float]:
    """What one process takes to read the file and to choose, without a fleet around it."""
    path = fleet.folder / "alone.yaml"
    path.write_text(json.dumps(fleet.configuration(1, fleet.folder)), encoding="utf-8")
    rules = with_tasks(policy({}, 0, NOTHING_FITTED), fleet.size.tasks)
    view, request = (
        fleet_of(fleet.size.replicas),
        RoutingRequest("returns", "caller1", frozenset({"returns"}), None, {}),
    )
    return {
        "load_ms": best_us(lambda: load_settings(path, {}), 1) / 1000,
        "choose_us": best_us(lambda: choose(request, NO_SCORES, rules, view, MOMENT), 2000),
    }


def measure_fleet(size: Size, counts: Sequence[int], seconds: float, looks_per_second: float) -> list[dict[str, Any]]:
    """The figures of a fleet, for each of several numbers of gateways; the last of these is `size.gateways`."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    points = []
    with tempfile.TemporaryDirectory(prefix="fleet-", dir=FOLDER) as folder, ExitStack() as stack:
        fleet = Fleet(stack, Path(folder), size, interval_of(size, looks_per_second))
        alone = measure_alone(fleet)
        for count in counts:
            here = replace(size, gateways=count)
            fleet.start_gateways(count)
            missing = settle(fleet)
            say(f"{here}: measuring")
            figures = measure_rest(fleet, seconds) | alone | {"placements_missing": float(missing)}
            figures |= measure_metrics(fleet)
            figures |= measure_change(fleet)
            points.append(
                {**asdict(here), "health_interval_seconds": fleet.health_interval_seconds, "figures": figures}
            )
        points[-1]["figures"] |= measure_death(fleet)
    return points


# ---- all fleets ---------------------------------------------------------------------------------


def slopes_of(points: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """For each factor, the growth of each figure with one more of it, by those fleets that differ in it alone."""
    slopes: dict[str, dict[str, float]] = {}
    for factor in FACTORS:
        line = points_of(points, factor)
        slopes[factor] = {
            figure: slope([(point[factor], point["figures"][figure]) for point in line]) for figure in GROWING
        }
    return slopes


def expected_of(
    figure: str, real: Mapping[str, Any], first: Mapping[str, Any], slopes: Mapping[str, Mapping[str, float]]
) -> float:
    """A figure of the large fleet if nothing grew with a product of two factors."""
    grown = sum(each[figure] * (real[factor] - first[factor]) for factor, each in slopes.items())
    return float(first["figures"][figure] + grown)


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All fleets. Raises Unmeasurable."""
    base, steps, real = (BASE_FULL, STEPS_FULL, REAL_FULL) if asked.full else (BASE, STEPS, REAL)
    real = Size(asked.gateways or real.gateways, asked.replicas or real.replicas, asked.tasks or real.tasks)
    seconds = asked.seconds or (SECONDS_FULL if asked.full else SECONDS)
    began, points = time.monotonic(), []
    if not asked.alone:
        fleets: list[tuple[Size, Sequence[int]]] = [
            (replace(base, gateways=steps["gateways"][-1]), (base.gateways, *steps["gateways"])),
            *((replace(base, replicas=count), (base.gateways,)) for count in steps["replicas"]),
            *((replace(base, tasks=count), (base.gateways,)) for count in steps["tasks"]),
        ]
        for size, counts in fleets:
            points += measure_fleet(size, counts, seconds, asked.looks)
    points += measure_fleet(real, (real.gateways,), seconds, asked.looks)
    report: dict[str, Any] = {
        "seed": asked.seed,
        "seconds": seconds,
        "points": points,
        "figures": points[-1]["figures"],
    }
    if not asked.alone:
        slopes = slopes_of(points[:-1])
        report["slopes"] = slopes
        report["by_slopes"] = {
            figure: ratio(points[-1]["figures"][figure], expected_of(figure, points[-1], points[0], slopes))
            for figure in GROWING
        }
        if asked.plot:
            asked.plot.write_text(draw(points[:-1]), encoding="utf-8")
    report["took_seconds"] = round(time.monotonic() - began, 1)
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The tables for people: each fleet, and the growth of each figure with each factor."""
    points = report["points"]
    head = ["", *("/".join(str(point[name]) for name in FACTORS) for point in points)]
    names = list(points[-1]["figures"])
    parts = [table(head, [[name, *(point["figures"].get(name) for point in points)] for name in names])]
    if "slopes" in report:
        columns = ["one more", *report["slopes"], "measured by expected"]
        rows = [
            [name, *(each[name] for each in report["slopes"].values()), report["by_slopes"][name]] for name in GROWING
        ]
        parts.append(table(columns, rows))
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "fleet", "What a fleet costs, and which cost grows.", full="50 gateways, 500 replicas, 1,000 tasks"
    )
    for name, what in (("gateways", "gateway processes"), ("replicas", "fake engines"), ("tasks", "tasks")):
        parser.add_argument(f"--{name}", type=int, help=f"{what} of the largest fleet")
    parser.add_argument("--seconds", type=float, help=f"rest that is measured (default {SECONDS:g})")
    parser.add_argument(
        "--looks", type=float, default=LOOKS_PER_SECOND_MAX, help="looks a second at engines, of all gateways, at most"
    )
    parser.add_argument("--alone", action="store_true", help="only the largest fleet, and so no slope")
    parser.add_argument("--plot", type=Path, help="write a picture (SVG) here")
    asked = parser.parse_args(arguments)
    for number in (signal.SIGINT, signal.SIGTERM):  # whatever has begun is stopped, also where a shell ignores Ctrl-C
        signal.signal(number, signal.default_int_handler)
    return conclude("fleet", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
