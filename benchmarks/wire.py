"""All behaviours at the wire: `python -m benchmarks.wire [--json] [--only GROUP_OR_CASE] [--cases FOLDER]`.

engine    what an engine sends, and what the caller must see: the cases of wire_cases/engine, and the sixteen faults of
          benchmarks.faults at their real times
caller    the bytes that a caller sends, and what must come back: the cases of wire_cases/caller
process   what befalls the gateway, its Valkey, its disk and its clock: functions in wire_processes.py

`--cases` adds the files of a folder to the first two groups; benchmarks/wire_format.py explains their form. `holds` is
true only if every case passes.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import CASES as FAULTS
from benchmarks.fault_subjects import start_gateway
from benchmarks.faults import run_all
from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, table
from benchmarks.wire_afterwards import play_afterwards
from benchmarks.wire_callers import play_caller_case
from benchmarks.wire_engines import Outcome, play_engine_case
from benchmarks.wire_format import Case, CaseError, read_folder, settings_key
from benchmarks.wire_processes import PROCESSES, play_process
from benchmarks.wire_worlds import World, start_caller_world, start_engine_world

BUILT_IN = Path(__file__).with_name("wire_cases")
GROUPS = ("engine", "caller", "process")
AT_ONCE = 16
"""Cases of one gateway that are played at the same time."""
PROCESSES_AT_ONCE = 2
GATEWAYS_AT_ONCE = 2
CASES_OF_A_GATEWAY: Mapping[str, int] = {"engine": 50, "caller": 1000}
"""An adapter for each engine case takes its time to be placed, the longer the more there are."""
THREADS = 64
GOALS = (Goal("failed", at_most=0), Goal("cases", at_least=1))
FAULT_NAMES = tuple(f"fault-{case.number:02}" for case in FAULTS)


STARTS: Mapping[str, Callable[..., Awaitable[World]]] = {"engine": start_engine_world, "caller": start_caller_world}
PLAYS: Mapping[str, Callable[..., Awaitable[Outcome]]] = {"engine": play_engine_case, "caller": play_caller_case}


def chosen(group: str, name: str, only: Sequence[str]) -> bool:
    """Whether a case is asked for: by its group or its name, in which `*` stands for anything."""
    return not only or any(group == one or fnmatchcase(name, one) for one in only)


async def play_all(cases: Sequence[Case], only: Sequence[str], folder: Path) -> list[Outcome]:
    """Every chosen case of all groups. Raises Unmeasurable."""
    wanted = [case for case in cases if chosen(case.group, case.name, only)]
    faults = [name for name in FAULT_NAMES if chosen("engine", name, only)]
    processes = [one for one in PROCESSES if chosen("process", one.name, only)]
    say(f"{len(wanted) + len(faults) + len(processes)} cases")
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
    plays: list[Awaitable[list[Outcome]]] = []
    if faults:
        plays.append(play_faults(faults, folder))
    plays.append(play_worlds(wanted, folder))
    turns = asyncio.Semaphore(PROCESSES_AT_ONCE)

    async def one_process(number: int) -> list[Outcome]:
        async with turns:
            return [await asyncio.to_thread(play_process, processes[number])]

    plays += [one_process(number) for number in range(len(processes))]
    return [outcome for found in await asyncio.gather(*plays) for outcome in found]


async def play_faults(names: Sequence[str], folder: Path) -> list[Outcome]:
    """The sixteen faults on a gateway of their own, all at the same time."""
    rows = await asyncio.to_thread(
        run_all, "faults", lambda stack, own: start_gateway(stack, own, "first_token"), folder
    )
    found = [
        Outcome("engine", name, f"the engine {row['says']}", row["why"], row["seconds"])
        for name, row in zip(FAULT_NAMES, rows, strict=True)
    ]
    return [one for one in found if one.case in names]


async def play_worlds(cases: Iterable[Case], folder: Path) -> list[Outcome]:
    """Cases by gateway: those of one group with the same settings share one, up to a number."""
    shared: dict[tuple[str, str], list[Any]] = defaultdict(list)
    for case in cases:
        shared[case.group, settings_key(case.settings)].append(case)
    parts = [
        (group, of_group[start : start + CASES_OF_A_GATEWAY[group]])
        for (group, _), of_group in shared.items()
        for start in range(0, len(of_group), CASES_OF_A_GATEWAY[group])
    ]
    turns = asyncio.Semaphore(GATEWAYS_AT_ONCE)

    async def play_part(number: int) -> list[Outcome]:
        group, part = parts[number]
        own = folder / f"{group}-{number}"
        own.mkdir()
        async with turns, AsyncExitStack() as stack:
            try:
                world = await STARTS[group](stack, own, part, part[0].settings)
            except Unmeasurable as error:
                why = f"its gateway did not start: {error}"
                return [Outcome(group, case.name, case.says, why, 0.0) for case in part]
            return await _play(world, part, PLAYS[group], number)

    found = await asyncio.gather(*(play_part(number) for number in range(len(parts))))
    return [outcome for of_part in found for outcome in of_part]


async def _play(
    world: World, cases: Sequence[Any], play: Callable[[World, int, Any], Awaitable[Outcome]], number_of_world: int
) -> list[Outcome]:
    """All cases on one gateway: first those that bear company, then the others one by one."""
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(number: int) -> Outcome:
        case = cases[number]
        async with turns:
            try:
                return await play(world, number, case)
            except Exception as error:  # one case's own fault must not hide what came of the others
                return Outcome(case.group, case.name, case.says, f"it could not be played: {error!r}", 0.0)

    alone = [number for number, case in enumerate(cases) if getattr(case, "alone", False)]
    together = [number for number in range(len(cases)) if number not in alone]
    found = dict(zip(together, await asyncio.gather(*(one(number) for number in together)), strict=True))
    for number in alone:
        found[number] = await one(number)
    say(f"  {sum(outcome.passed for outcome in found.values())} of {len(found)} on this gateway")
    after = await asyncio.to_thread(play_afterwards, world, cases[0].group, number_of_world)
    return [*(found[number] for number in range(len(cases))), *after]


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """All chosen cases. Raises Unmeasurable."""
    began = time.monotonic()
    try:
        cases = [*read_folder(BUILT_IN), *(read_folder(asked.cases) if asked.cases else [])]
    except CaseError as error:
        raise Unmeasurable(str(error)) from error
    names = [case.name for case in cases]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise Unmeasurable(f"Two cases have the name {twice[0]}.")
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="wire-", dir=FOLDER) as folder:
        found = asyncio.run(play_all(cases, asked.only, Path(folder)))
    if not found:
        raise Unmeasurable(f"No case is called {' or '.join(asked.only)}.")
    return report_of(found, time.monotonic() - began), []


def report_of(found: Sequence[Outcome], took_seconds: float) -> dict[str, Any]:
    """The counts of each group, and a row for each case."""
    groups = {
        group: {
            "passed": sum(one.passed for one in found if one.group == group),
            "cases": sum(one.group == group for one in found),
        }
        for group in GROUPS
    }
    return {
        "took_seconds": round(took_seconds, 1),
        "groups": groups,
        "figures": {"cases": len(found), "failed": sum(not one.passed for one in found)},
        "rows": [
            {
                "group": one.group,
                "case": one.case,
                "says": one.says,
                "passed": one.passed,
                "why": one.why,
                "seconds": round(one.seconds, 2),
            }
            for one in found
        ],
    }


def show(report: Mapping[str, Any]) -> str:
    """The table for people: what failed stands again at the end, with the reason."""
    rows = report["rows"]
    counts = [[group, told["passed"], told["cases"]] for group, told in report["groups"].items()]
    lines = [
        [f"{row['group']:8} {row['case']}", "yes" if row["passed"] else "NO", f"{row['seconds']:.1f}"] for row in rows
    ]
    failed = [f"{row['group']} {row['case']} ({row['says']}): {row['why']}" for row in rows if not row["passed"]]
    return "\n".join(
        [table(["case", "passed", "s"], lines), "", table(["group", "passed", "cases"], counts), "", *failed]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("wire", "All behaviours at the wire: of engines, callers and processes.", "changes nothing here")
    parser.add_argument("--only", action="append", default=[], help="a group or a case's name; may be given again")
    parser.add_argument(
        "--cases",
        type=Path,
        help="a folder with further cases, YAML or JSON (benchmarks/wire_format.py lists every key)",
    )
    asked = parser.parse_args(arguments)
    return conclude("wire", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
