"""A gateway of several processes beside one process: CPU time a request, and how evenly connections are shared.

Part of `python -m benchmarks.scale --processes 2 [--full] [--json]`. Load and engine share the cores with what is
measured: so CPU time a request is compared, which the machine's load moves little. The rate is stated beside it. Rounds
alternate. As many gateways that share nothing, under the same load, are what this machine can give at most.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import FOLDER, Goal, Wrk, cpu_seconds, median, prefer, say, see_that_there_are_cores
from benchmarks.subjects import Subject, start_engine, start_gateway
from benchmarks.walk import CONNECTIONS, LOAD_CORE, PATH, body, check_subject

GOAL = Goal("rate_by_cpu", at_least=1.85)
ROUNDS = 3
ROUNDS_FULL = 7
SECONDS = 8
"""Seconds of a round: in shorter ones background jobs and unevenly shared connections move the figures."""


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


class Served:
    """Gateways that are loaded at the same time, each with an engine of its own, and the figures of each round."""

    def __init__(self, stack: ExitStack, gateways: int, processes: int) -> None:
        self.gateways: list[tuple[Subject, Path]] = []
        self.cpu_us: list[float] = []
        self.rates: list[float] = []
        self.busiest: list[float] = []
        for _ in range(gateways):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="scale-", dir=FOLDER)))
            engine = start_engine(stack, LOAD_CORE)
            gateway = start_gateway(stack, [engine], folder, None, LOAD_CORE, "--processes", str(processes))
            prefer(gateway.pid)
            check_subject(gateway)
            file = folder / "whole.json"
            file.write_bytes(body(gateway.model, False))
            self.gateways.append((gateway, file))

    @property
    def serving(self) -> list[int]:
        """The processes that serve."""
        return [pid for gateway, _ in self.gateways for pid in children_of(gateway.pid)]

    def measure_round(self, seconds: int) -> None:
        """Load them for a round."""
        pids = {*self.serving, *(gateway.pid for gateway, _ in self.gateways)}
        before = {pid: cpu_seconds(pid) for pid in pids}
        connections = CONNECTIONS // len(self.gateways)
        loads = [
            Wrk(gateway.port, PATH, file, gateway.key, connections, seconds, LOAD_CORE)
            for gateway, file in self.gateways
        ]
        results = [load.result() for load in loads]
        used = {pid: cpu_seconds(pid) - spent for pid, spent in before.items()}
        self.cpu_us.append(sum(used.values()) / sum(result.requests for result in results) * 1e6)
        self.rates.append(sum(result.per_second for result in results))
        self.busiest.append(max(used.values()) / sum(used.values()))

    def figures(self, name: str) -> dict[str, float | None]:
        """The medians of all rounds."""
        return {
            f"cpu_us_a_request_of_{name}": median(self.cpu_us),
            f"busiest_share_of_{name}": median(self.busiest),
            f"requests_per_second_of_{name}": median(self.rates),
        }

    def rate_to(self, other: Served) -> float | None:
        """Its rate to that of others, by CPU time: the busiest process is the bound."""
        own, others = (
            [used * share for used, share in zip(each.cpu_us, each.busiest, strict=True)] for each in (self, other)
        )
        return median(theirs / ours for theirs, ours in zip(others, own, strict=True))


def measure_processes(processes: int, rounds: int) -> dict[str, Any]:
    """The figures. Raises Unmeasurable."""
    see_that_there_are_cores(2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        one, several = Served(stack, 1, 1), Served(stack, 1, processes)
        sharing_nothing = Served(stack, processes, 1)
        memory = {
            f"memory_of_{count}": [memory_mb(pid) for pid in served.serving]
            for count, served in ((1, one), (processes, several))
        }
        for number in range(rounds):
            say(f"Round {number + 1} of {rounds}")
            for served in (one, several, sharing_nothing):
                served.measure_round(SECONDS)
        figures = {
            **one.figures("one"),
            **several.figures(str(processes)),
            **sharing_nothing.figures(f"{processes}_sharing_nothing"),
            "rate_by_cpu": several.rate_to(one),
            "rate_by_cpu_sharing_nothing": sharing_nothing.rate_to(one),
            "rate_to_sharing_nothing": several.rate_to(sharing_nothing),
        }
    return {"seconds_a_round": SECONDS, "rounds": rounds, "figures": figures, **memory}
