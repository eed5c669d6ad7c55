"""The whole walk under load, beside vllm-router and beside nothing: `python -m benchmarks.walk [--json]`.

A C engine that costs next to nothing answers; wrk asks. Engine and wrk share one core, what is measured has the other
to itself; the gateway's Valkey runs on the engine's core, as a Redis on another machine would, and its share is stated.
Four kinds of cells, interleaved, medians over rounds:

requests   whole answers, 32 connections: requests a second of one core, CPU time a request
streams    streamed answers, 32 connections, the engine as fast as it can: chunks a second of one core
paced      96 streams with 10 ms between chunks: CPU time of a chunk that comes alone, far from full load
latency    whole answers, one connection: what is added to calling the engine directly
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    FOLDER,
    Goal,
    Load,
    Unmeasurable,
    Wrk,
    ask,
    conclude,
    cpu_seconds,
    median,
    options,
    ratio,
    say,
    scheduling,
    see_that_there_are_cores,
    table,
)
from benchmarks.subjects import (
    Subject,
    chunks_sent,
    install_vllm_router,
    set_pace,
    start_engine,
    start_gateway,
    start_vllm_router,
    vllm_router,
)

GOALS = (Goal("requests", at_least=0.35), Goal("chunks", at_least=1.0))
SUBJECT_CORE = 0
LOAD_CORE = 1
PATH = "/v1/chat/completions"
CONNECTIONS = 32
STREAMS_PACED = 96
PACE_MICROSECONDS = 10_000
PACED_SECONDS = 2
PACED_ROUNDS_MAX = 2
WARM_UP_SECONDS = 0.7
CHUNKS_A_STREAM = 65
DIRECT_MARGIN = 2.0
BODY_BYTES = 1100


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: of what, of whom."""

    kind: str
    subject: str


def plan(rounds: int, subjects: Sequence[str], seed: int) -> list[list[Cell]]:
    """The cells of each round, in an order of its own. What the load can do by itself is measured once."""
    draw = random.Random(seed)
    planned = []
    for number in range(rounds):
        cells = []
        for kind in ("requests", "streams", "latency", "paced"):
            if kind == "paced" and number >= max(PACED_ROUNDS_MAX, rounds // 2):
                continue
            asked = list(subjects)
            if kind == "paced" or (kind != "latency" and number > 0):
                asked.remove("direct")
            draw.shuffle(asked)
            cells += [Cell(kind, subject) for subject in asked]
        planned.append(cells)
    return planned


def body(model: str, stream: bool) -> bytes:
    """A request of BODY_BYTES for the task."""
    asked: dict[str, Any] = {
        "model": model,
        "messages": [
            {"role": "system", "content": "You decide product returns by the shop's policy."},
            {"role": "user", "content": ""},
        ],
        "max_tokens": 64,
        "temperature": 0,
    }
    if stream:
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
    case = "Shoes, bought 12 days ago, receipt: yes, condition: unworn, delivered to France. "
    room = BODY_BYTES - len(json.dumps(asked))
    asked["messages"][1]["content"] = (case * (room // len(case) + 1))[:room]
    return json.dumps(asked).encode()


class Bench:
    """Everything that runs during the measurement."""

    def __init__(self, subjects: Sequence[Subject], folder: Path, seconds: int) -> None:
        self.subjects = {subject.name: subject for subject in subjects}
        self._engine = self.subjects["direct"]
        self._folder = folder
        self._seconds = seconds
        for subject in subjects:
            for stream in (False, True):
                self._body(subject, stream).write_bytes(body(subject.model, stream))

    def measure(self, cell: Cell) -> dict[str, float]:
        """The figures of one cell."""
        subject = self.subjects[cell.subject]
        if cell.kind == "paced":
            return self._paced(subject)
        stream = cell.kind == "streams"
        before = used(subject)
        load = self._wrk(subject, stream, 1 if cell.kind == "latency" else CONNECTIONS, self._seconds).result()
        cpu = {name: seconds - before[name] for name, seconds in used(subject).items()}
        if load.requests == 0:
            raise Unmeasurable(f"{cell.subject} answered nothing within {self._seconds} s ({cell.kind}).")
        return figures_of(cell.kind, load, cpu)

    def _paced(self, subject: Subject) -> dict[str, float]:
        """In the middle of the load, where every stream is under way."""
        set_pace(self._engine, PACE_MICROSECONDS)
        try:
            wrk = self._wrk(subject, True, STREAMS_PACED, max(PACED_SECONDS, self._seconds))
            time.sleep(WARM_UP_SECONDS)
            began, cpu, chunks = time.monotonic(), used(subject), chunks_sent(self._engine)
            time.sleep(max(PACED_SECONDS, self._seconds) - WARM_UP_SECONDS - 0.2)
            after, sent, seconds = used(subject), chunks_sent(self._engine) - chunks, time.monotonic() - began
            load = wrk.result()
        finally:
            set_pace(self._engine, 0)
        if not sent:
            raise Unmeasurable(f"{subject.name} streamed nothing.")
        return {
            "paced_chunks_per_second": sent / seconds,
            "cpu_us_per_paced_chunk": (after["own"] - cpu["own"]) / sent * 1e6,
            "faults": load.faults,
        }

    def _wrk(self, subject: Subject, stream: bool, connections: int, seconds: int) -> Wrk:
        return Wrk(subject.port, PATH, self._body(subject, stream), subject.key, connections, seconds, LOAD_CORE)

    def _body(self, subject: Subject, stream: bool) -> Path:
        return self._folder / f"{subject.name}-{'stream' if stream else 'whole'}.json"


def used(subject: Subject) -> dict[str, float]:
    """CPU seconds so far: its own, and its Valkey's."""
    found = {"own": cpu_seconds(subject.pid)}
    if subject.valkey_pid is not None:
        found["valkey"] = cpu_seconds(subject.valkey_pid)
    return found


def figures_of(kind: str, load: Load, cpu: Mapping[str, float]) -> dict[str, float]:
    """What a cell's load and CPU time say."""
    if kind == "latency":
        return {"latency_p50_us": load.p50_us, "latency_p99_us": load.p99_us, "faults": load.faults}
    streams = kind == "streams"
    count = load.requests * (CHUNKS_A_STREAM if streams else 1)
    unit = "chunk" if streams else "request"
    found = {
        f"{unit}s_per_second": count / load.duration_us * 1e6,
        f"cpu_us_per_{unit}": cpu["own"] / count * 1e6,
        "faults": load.faults,
    }
    if "valkey" in cpu:
        found[f"valkey_cpu_us_per_{unit}"] = cpu["valkey"] / count * 1e6
        if not streams:
            found["valkey_core_share"] = cpu["valkey"] / (load.duration_us / 1e6)
    return found


# ---- before the load: does it do what it is measured for? ---------------------------------------


def check_subject(subject: Subject) -> None:
    """One whole and one streamed answer, as they should be. Raises Unmeasurable."""
    status, headers, answer = ask(subject.port, "POST", PATH, body(subject.model, False), subject.key)
    if status != 200 or not json.loads(answer)["choices"][0]["message"]["content"]:
        raise Unmeasurable(f"{subject.name} does not answer: {status} {answer[:300].decode()}")
    status, _, streamed = ask(subject.port, "POST", PATH, body(subject.model, True), subject.key)
    events = [event for event in streamed.split(b"\n\n") if event.startswith(b"data: {")]
    expected = CHUNKS_A_STREAM + (subject.name == "litellm")  # which ends with a chunk of its own
    if status != 200 or len(events) != expected or not streamed.endswith(b"data: [DONE]\n\n"):
        raise Unmeasurable(f"{subject.name} does not stream: {status}, {len(events)} chunks, {streamed[-200:]!r}")
    if subject.name == "gateway":
        check_gateway(subject, headers)


def check_gateway(gateway: Subject, headers: Mapping[str, str]) -> None:
    """The adapter answered, the request has a record with a cost, and the metrics count it. Raises Unmeasurable."""
    if headers.get("x-apprentice-reason") != "adapter" or not headers.get("x-apprentice-version"):
        raise Unmeasurable(f"The adapter did not answer: {dict(headers)}")
    status, _, answer = ask(gateway.port, "GET", f"/v1/requests/{headers['x-request-id']}", None, gateway.key)
    record = json.loads(answer).get("record", {}) if status == 200 else {}
    if not record.get("cost_usd") or record.get("completion_tokens") != 64:
        raise Unmeasurable(f"The request has no record with tokens and a cost: {status} {answer[:300].decode()}")
    if ask(gateway.port, "POST", PATH, body(gateway.model, False), "sk-app-000000000000-wrong")[0] != 401:
        raise Unmeasurable("The gateway took a wrong key.")
    if requests_counted(gateway) < 1:
        raise Unmeasurable("The gateway's metrics do not count its requests.")


def requests_counted(gateway: Subject) -> float:
    """The sum of apprentice_requests_total."""
    exposition = ask(gateway.port, "GET", "/metrics")[2].decode()
    lines = [line for line in exposition.splitlines() if line.startswith("apprentice_requests_total{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


# ---- the report ---------------------------------------------------------------------------------


def summary(cells: Mapping[Cell, list[dict[str, float]]]) -> dict[str, dict[str, float | None]]:
    """For each subject the median of each figure; faults are added up."""
    found: dict[str, dict[str, float | None]] = {}
    for cell, measured in cells.items():
        of_subject = found.setdefault(cell.subject, {"faults": 0})
        for name in measured[0]:
            if name == "faults":
                of_subject[name] = (of_subject[name] or 0) + sum(one[name] for one in measured)
            else:
                of_subject[name] = median(one[name] for one in measured)
    for name, figures in found.items():
        if name != "direct":
            for part in ("p50", "p99"):
                ours, direct = figures.get(f"latency_{part}_us"), found["direct"].get(f"latency_{part}_us")
                figures[f"added_{part}_us"] = None if ours is None or direct is None else ours - direct
    return found


def ratios(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """The gateway to vllm-router. Above 1 the gateway does more, or the same with less CPU time."""
    gateway, peer = found.get("gateway", {}), found.get("vllm_router", {})

    def more(name: str) -> float | None:
        return ratio(gateway.get(name), peer.get(name))

    def less(name: str, also: str | None = None) -> float | None:
        own = gateway.get(name)
        return ratio(peer.get(name), own + (gateway.get(also) or 0) if own is not None and also else own)

    return {
        "requests": more("requests_per_second"),
        "chunks": more("chunks_per_second"),
        "requests_by_cpu": less("cpu_us_per_request"),
        "requests_by_cpu_with_valkey": less("cpu_us_per_request", "valkey_cpu_us_per_request"),
        "chunks_by_cpu": less("cpu_us_per_chunk"),
        "paced_chunks_by_cpu": less("cpu_us_per_paced_chunk"),
    }


def margins(found: Mapping[str, Mapping[str, float | None]]) -> dict[str, float | None]:
    """What the load does without a router, to what it does through the fastest one."""
    result = {}
    for unit in ("requests", "chunks"):
        name = f"{unit}_per_second"
        routers = [value for subject, figures in found.items() if subject != "direct" and (value := figures.get(name))]
        result[unit] = ratio(found["direct"].get(name), max(routers, default=None))
    return result


def report_of(
    cells: Mapping[Cell, list[dict[str, float]]], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """The report, and what makes it void."""
    found = summary(cells)
    obstacles = [
        f"{name}: {figures['faults']:g} requests failed" for name, figures in found.items() if figures["faults"]
    ]
    if "vllm_router" not in found:
        obstacles.append("vllm-router is not installed: run once with --peers")
    over = margins(found)
    limited = any(margin is None or margin < DIRECT_MARGIN for margin in over.values())
    if limited:
        obstacles.append(f"the load is the limit: without a router it is under {DIRECT_MARGIN:g}x the fastest router")
    return {
        **settings,
        "subjects": found,
        "ratios": ratios(found),
        "direct_to_fastest_router": over,
        "limit": "load" if limited else None,
    }, obstacles


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    found: Mapping[str, Mapping[str, float | None]] = report["subjects"]
    names = list(dict.fromkeys(name for figures in found.values() for name in figures))
    rows = [[name, *(figures.get(name) for figures in found.values())] for name in names]
    shown = [table(["", *found], rows), ""]
    shown.append(
        table(
            ["gateway to vllm-router", "ratio", "goal"],
            [
                [name, value, next((f">= {goal.at_least:g}" for goal in GOALS if goal.figure == name), "")]
                for name, value in report["ratios"].items()
            ],
        )
    )
    over = ", ".join(f"{unit} {value:.1f}x" for unit, value in report["direct_to_fastest_router"].items() if value)
    shown += ["", f"Without a router, to the fastest router: {over}. Scheduling: {report['scheduling']}."]
    return "\n".join(shown)


# ---- running ------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Start everything, measure every cell, stop everything. Raises Unmeasurable."""
    began = time.monotonic()
    see_that_there_are_cores(2)
    if asked.peers and not vllm_router().exists():
        install_vllm_router()
    FOLDER.mkdir(parents=True, exist_ok=True)
    cells: dict[Cell, list[dict[str, float]]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="walk-", dir=FOLDER)))
        say("Starting engine, gateway and vllm-router")
        subjects = [start_engine(stack, LOAD_CORE)]
        subjects.append(start_gateway(stack, subjects[:1], folder, SUBJECT_CORE, asked.valkey_core))
        if vllm_router().exists():
            subjects.append(start_vllm_router(stack, subjects[0], SUBJECT_CORE))
        for subject in subjects:
            check_subject(subject)
        bench = Bench(subjects, folder, asked.seconds)
        for number, planned in enumerate(plan(asked.rounds, [subject.name for subject in subjects], asked.seed), 1):
            say(f"Round {number} of {asked.rounds}: {len(planned)} cells")
            for cell in planned:
                cells.setdefault(cell, []).append(bench.measure(cell))
    settings = {
        "seed": asked.seed,
        "rounds": asked.rounds,
        "seconds_a_cell": asked.seconds,
        "connections": CONNECTIONS,
        "cores": {"measured": SUBJECT_CORE, "load_and_engine": LOAD_CORE, "valkey": asked.valkey_core},
        "scheduling": scheduling(),
        "took_seconds": round(time.monotonic() - began, 1),
    }
    return report_of(cells, settings)


def add_round_options(parser: argparse.ArgumentParser, seconds: int) -> None:
    """The options of how often and how long each cell is measured; `seconds` by default."""
    parser.add_argument("--rounds", type=int, help="how often each cell is measured (default 3)")
    parser.add_argument("--seconds", type=int, help=f"whole seconds of load a cell (default {seconds})")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "walk",
        "The gateway under load beside vllm-router and beside calling the engine directly.",
        full="7 rounds of 3 seconds a cell: 180 seconds",
        peers="install vllm-router into var/peers first, if it is not there",
    )
    add_round_options(parser, seconds=1)
    parser.add_argument(
        "--valkey-core",
        type=int,
        choices=(SUBJECT_CORE, LOAD_CORE),
        default=LOAD_CORE,
        help="core of the gateway's Valkey: 1 with the load (default, as a Redis elsewhere), 0 with the gateway",
    )
    asked = parser.parse_args(arguments)
    asked.rounds = asked.rounds or (7 if asked.full else 3)
    asked.seconds = asked.seconds or (3 if asked.full else 1)
    return conclude("walk", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
