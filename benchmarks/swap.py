"""Swaps under load, through the gateway and in the naive ways: `python -m benchmarks.swap [--json]`.

Two replicas stand behind the gateway, and callers that stream and callers that do not ask one task all the time, while
its alias goes from v1 to v2 and back: forwards by a new alias, backwards by a rollback, one admin call each. Whose
answer it was is read off the text: each chunk is classed by the version whose reference it is of. Then the same callers
ask one engine directly, and as many swaps are those that an engine offers:

load_inplace      load another folder under the name while it is in use
unload_and_load   unload the name, load another folder under it
same_folder       put other bytes into the folder, unload the name, load it again

The order of events is that of the callers' clock: an answer is stale if its request was sent after a swap had been
confirmed, and it is by the version of before. With more gateways the admin asks the first, and an answer through
another is stale only if it was sent later than the snapshot interval after that.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import (
    FOLDER,
    ROOT,
    Goal,
    Unmeasurable,
    answers,
    conclude,
    options,
    ratio,
    say,
    see_that_there_are_cores,
    table,
)
from benchmarks.subjects import TASK
from benchmarks.swap_callers import Crowd, Target, under_load
from benchmarks.swap_counts import FAULTS, Answer, Reference, Swap, count, latencies, quantile
from benchmarks.swap_subjects import (
    NUMBERS,
    SNAPSHOT_SECONDS,
    EngineFailed,
    Gateways,
    ask_each,
    copy_of_adapter,
    is_dead,
    load,
    references_of,
    start_engines,
    unload,
)

GOALS = (*(Goal(name, at_most=0) for name in FAULTS), Goal("answers_that_could_be_stale", at_least=1))
ADAPTERS = ROOT / "tests" / "engine" / "adapters"
WAYS = ("load_inplace", "unload_and_load", "same_folder")
PROMPTS = 4
CALLERS = 6
ROUNDS = 4
FULL = "500 swaps in each way (with vllm 40); takes 130 s (with vllm 8 minutes)"


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast one kind of engine can be asked, if the options do not say otherwise."""

    swaps: int
    swaps_if_full: int
    swap_seconds: float
    quiet_seconds: float
    pause_seconds_max: float


PACES = {"fake": Pace(200, 500, 0.05, 4.0, 0.01), "vllm": Pace(20, 40, 1.5, 16.0, 0.5)}


def measure_swaps(
    target: Target,
    references: Sequence[Reference],
    swap: Callable[[int], None],
    asked: argparse.Namespace,
    model_of: str = "",
) -> dict[str, Any]:
    """In rounds, the load alone and the load during swaps, until an engine fails (EngineFailed) that is swapped on.

    The first version serves at the beginning. Raises Unmeasurable if there are faults without any swap.
    """
    crowd = Crowd(asked.callers, PACES[asked.engine].pause_seconds_max)
    rounds = min(ROUNDS, asked.swaps)
    made: list[Swap] = []
    quiet: list[Answer] = []
    during: list[Answer] = []
    failed: list[str] = []

    def swap_on(count_then: int) -> None:
        while len(made) < count_then:
            began = time.monotonic()
            to = NUMBERS[(len(made) + 1) % 2]
            try:
                swap(to)
            except EngineFailed as error:
                failed.append(str(error))
                return
            made.append(Swap(to, began, time.monotonic()))
            time.sleep(max(0.0, began + asked.swap_seconds - time.monotonic()))  # the swaps' own rhythm

    for number in range(rounds):
        seed = asked.seed * 1000 + 2 * number
        quiet += under_load(target, crowd, seed, lambda: time.sleep(asked.quiet_seconds / rounds))
        before = count(quiet, [], references, NUMBERS[0], model_of)
        if not made and any(before[name] for name in FAULTS):
            raise Unmeasurable(f"Already without a swap the answers are not as they should be: {before}")
        until = asked.swaps * (number + 1) // rounds
        during += under_load(target, crowd, seed + 1, lambda until=until: swap_on(until))  # type: ignore[misc]
        say(f"  {len(made)} of {asked.swaps} swaps")
        if failed:
            say(f"  the engine failed: {failed[0]}")
            break
    counted = count([*quiet, *during], made, references, NUMBERS[0], model_of)
    return {"swaps": len(made), "engine_failed": len(failed), **counted, **times(quiet, during, made)}


def times(quiet: Sequence[Answer], during: Sequence[Answer], made: Sequence[Swap]) -> dict[str, float | None]:
    """How long a swap took, and how long answers took without swaps and during them."""
    swap_ms = [(one.done_at - one.sent_at) * 1000 for one in made]
    told = {
        "swap_p50_ms": quantile(swap_ms, 0.5),
        "swap_p99_ms": quantile(swap_ms, 0.99),
        **latencies(quiet, "quiet"),
        **latencies(during, "swapping"),
    }
    for figure in [f"{kind}_{part}" for kind in ("first_byte", "stream", "whole") for part in ("p50", "p99")]:
        told[f"{figure}_swapping_to_quiet"] = ratio(told[f"{figure}_swapping_ms"], told[f"{figure}_quiet_ms"])
    return told


def measure_gateway(
    ports: Sequence[int], folder: Path, prompts: Sequence[str], asked: argparse.Namespace
) -> dict[str, Any]:
    """Swaps through the gateway. Raises Unmeasurable."""
    with ExitStack() as stack:
        gateway = Gateways(stack, asked.engine, ports, folder, asked.gateways)
        versions = {
            number: gateway.place(copy_of_adapter(folder / f"v{number}", asked.engine, adapter))
            for number, adapter in zip(NUMBERS, asked.adapters, strict=True)
        }
        gateway.point(versions[NUMBERS[0]])
        references = references_of(asked.engine, lambda number: ask_each(ports[0], versions[number], prompts))
        lag_seconds = SNAPSHOT_SECONDS if asked.gateways > 1 else 0.0
        target = Target(gateway.ports, TASK, gateway.caller_key(), prompts, lag_seconds)

        def swap(number: int) -> None:
            if number == NUMBERS[0]:
                gateway.roll_back()
            else:
                gateway.point(versions[number])

        return measure_swaps(target, references, swap, asked, TASK + "@v{}")


def measure_naive(
    way: str, port: int, folder: Path, prompts: Sequence[str], asked: argparse.Namespace
) -> dict[str, Any]:
    """Swaps on an engine alone, under one name. Raises Unmeasurable."""
    name = f"{TASK}-{way}"
    adapters: dict[int, Path] = dict(zip(NUMBERS, asked.adapters, strict=True))
    one_folder = folder / way
    in_place = {"load_inplace": True} if way == "load_inplace" else {}

    def folder_of(number: int) -> Path:
        if way != "same_folder":
            return adapters[number]
        shutil.copytree(adapters[number], one_folder, dirs_exist_ok=True)
        return one_folder

    def answers_of(number: int) -> list[str]:
        load(port, name, adapters[number])
        try:
            return ask_each(port, name, prompts)
        finally:
            unload(port, name)

    def swap(number: int) -> None:
        loaded = folder_of(number)
        if not in_place:
            unload(port, name)
        load(port, name, loaded, **in_place)

    references = references_of(asked.engine, answers_of)
    load(port, name, folder_of(NUMBERS[0]), **in_place)
    figures = measure_swaps(Target([port], name, "none", prompts), references, swap, asked)
    if not figures["engine_failed"]:
        unload(port, name)
    elif not is_dead(port):
        raise Unmeasurable(f"The engine refused a swap by {way}, and lives on.")
    return figures


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Start everything, swap in each way, stop everything. Raises Unmeasurable."""
    began = time.monotonic()
    see_that_there_are_cores(2)
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw = random.Random(asked.seed)
    prompts = [f"Case {draw.randrange(10**6)}: a toaster, sealed, after {day} days." for day in range(1, PROMPTS + 1)]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swap-", dir=FOLDER)))
        say(f"Starting two engines ({asked.engine})")
        ports = start_engines(stack, asked.engine, folder)
        say(f"{asked.swaps} swaps through the gateway")
        found = {"gateway": measure_gateway(ports, folder, prompts, asked)}
        for way in WAYS:
            say(f"{asked.swaps} swaps by {way} on one engine")
            port = next((port for port in ports if answers(port, "/health")), None)
            port = port or start_engines(stack, asked.engine, folder, 1)[0]
            ports.append(port)
            found[way] = measure_naive(way, port, folder, prompts, asked)
    report = {
        "seed": asked.seed,
        "engine": asked.engine,
        "gateways": asked.gateways,
        "callers": asked.callers,
        "callers_that_stream": Crowd(asked.callers, 0).streams,
        "swap_interval_seconds": asked.swap_seconds,
        "took_seconds": round(time.monotonic() - began, 1),
        "figures": found["gateway"],
        "subjects": found,
    }
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    found: Mapping[str, Mapping[str, Any]] = report["subjects"]
    rows = [[name, *(figures[name] for figures in found.values())] for name in found["gateway"]]
    return table([f"{report['engine']} engine", *found], rows)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options, with what the kind of engine decides filled in."""
    parser = options("swap", "Swaps of an adapter under load: refused, broken, mixed and stale answers.", full=FULL)
    parser.add_argument("--engine", choices=tuple(PACES), default="fake", help="what answers (default fake)")
    parser.add_argument("--swaps", type=int, help="swaps in each way (default 200; with vllm 20)")
    parser.add_argument("--callers", "--clients", type=int, default=CALLERS, help=f"who asks (default {CALLERS})")
    parser.add_argument("--gateways", type=int, default=1, help="gateways on one Valkey (default 1)")
    parser.add_argument(
        "--swap-seconds", type=float, help="between two swaps (default 0.05; with vllm or gateways 1.5)"
    )
    parser.add_argument(
        "--quiet-seconds", type=float, help="of load without a swap, in parts (default 4; with vllm 16)"
    )
    parser.add_argument(
        "--adapters",
        type=Path,
        nargs=2,
        metavar=("DIR1", "DIR2"),
        default=[ADAPTERS / f"v{number}" for number in NUMBERS],
        help="the two adapters, which answer with disjoint texts (default tests/engine/adapters/v1 and v2)",
    )
    asked = parser.parse_args(arguments)
    pace = PACES[asked.engine]
    asked.swaps = asked.swaps or (pace.swaps_if_full if asked.full else pace.swaps)
    if asked.swap_seconds is None:
        asked.swap_seconds = max(pace.swap_seconds, 1.5 * SNAPSHOT_SECONDS if asked.gateways > 1 else 0.0)
    asked.quiet_seconds = pace.quiet_seconds if asked.quiet_seconds is None else asked.quiet_seconds
    asked.adapters = [adapter.resolve() for adapter in asked.adapters]
    if asked.callers < 2 or asked.swaps < 1 or asked.gateways < 1:
        parser.error("it takes two callers, one that streams and one that does not, a swap and a gateway")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    asked = read_options(arguments)
    return conclude("swap", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
