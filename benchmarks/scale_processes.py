"""A gateway of several processes beside one process: CPU time a request, and how evenly connections are shared.

Part of `python -m benchmarks.scale --processes 2 [--json]`. Load and engine share the cores with what is measured: so
CPU time a request is compared, which the machine's load moves little. The rate is stated beside it. Rounds alternate.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import FOLDER, Goal, Wrk, cpu_seconds, median, say, see_that_there_are_cores
from benchmarks.subjects import Subject, start_engine, start_gateway
from benchmarks.walk import CONNECTIONS, LOAD_CORE, PATH, body, check_subject

GOAL = Goal("rate_by_cpu", at_least=1.85)


def children_of(pid: int) -> list[int]:
    """The processes of a gateway; without any, itself."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()]
    named = [child for child in found if "process" in Path(f"/proc/{child}/comm").read_text(encoding="utf-8")]
    return named or [pid]


def memory_mb(pid: int) -> dict[str, float]:
    """A process's own pages, and its share of all that it uses."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]]
    kilobytes = {line[0].rstrip(":"): int(line[1]) for line in lines}
    return {
        "own_mb": (kilobytes["Private_Dirty"] + kilobytes["Private_Clean"]) / 1024,
        "share_mb": kilobytes["Pss"] / 1024,
    }


def measure_processes(processes: int, rounds: int, seconds: int) -> dict[str, Any]:
    """The figures. Raises Unmeasurable."""
    see_that_there_are_cores(2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cpu_us: dict[int, list[float]] = {1: [], processes: []}
    rates: dict[int, list[float]] = {1: [], processes: []}
    busiest: list[float] = []
    with ExitStack() as stack:
        gateways: dict[int, Subject] = {}
        bodies: dict[int, Path] = {}
        memory: dict[str, Any] = {}
        for count in (1, processes):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-", dir=FOLDER)))
            engine = start_engine(stack, LOAD_CORE)  # each its own, since an engine keeps the other's adapter
            gateways[count] = start_gateway(stack, [engine], folder, None, LOAD_CORE, "--processes", str(count))
            check_subject(gateways[count])
            pids = children_of(gateways[count].pid)
            memory[f"memory_of_{count}"] = [memory_mb(pid) for pid in pids]
            bodies[count] = folder / "whole.json"
            bodies[count].write_bytes(body(gateways[count].model, False))
        for number in range(rounds):
            say(f"Round {number + 1} of {rounds}")
            for count, gateway in gateways.items():
                pids = children_of(gateway.pid)
                before = {pid: cpu_seconds(pid) for pid in [*pids, gateway.pid]}
                wrk = Wrk(gateway.port, PATH, bodies[count], gateway.key, CONNECTIONS, seconds, LOAD_CORE)
                load = wrk.result()
                used = {pid: cpu_seconds(pid) - spent for pid, spent in before.items()}
                cpu_us[count].append(sum(used.values()) / load.requests * 1e6)
                rates[count].append(load.per_second)
                if count > 1:
                    busiest.append(max(used[pid] for pid in pids) / sum(used.values()))
    one, several = median(cpu_us[1]), median(cpu_us[processes])
    assert one is not None
    assert several is not None
    share = median(busiest) or 1.0
    figures = {
        "cpu_us_a_request_of_one": one,
        f"cpu_us_a_request_of_{processes}": several,
        "busiest_share": share,
        "rate_by_cpu": one / (several * share),
        "requests_per_second_of_one": median(rates[1]),
        f"requests_per_second_of_{processes}": median(rates[processes]),
    }
    return {"figures": figures, **memory}
