"""Sixteen faults of an engine, at their real times: `python -m benchmarks.faults [--json] [--peers] [--full]`.

Every fault has a primary engine of its own that shows it, and a fallback of its own; all run at the same time. What is
asked is started as a user starts it, with at most two retries, a 30 s silence limit and one fallback. Whether it passes
is judged by what the caller got and what the engines were asked, in the same way for all (fault_cases.py).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.fault_cases import CASES, Case, Run, ask, ask_while_down
from benchmarks.fault_subjects import Subject, install_litellm, litellm, model_of, start_gateway, start_litellm
from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, see_that_there_are_cores, table

ALL = len(CASES)
FULL = "also with the commit policy `complete`; takes 3 minutes"
PEERS = "LiteLLM's proxy too, with a stream_timeout of 30 s and of 10 s; takes 5 minutes more"
Start = Callable[[ExitStack, Path], Subject]


def run_case(subject: Subject, case: Case) -> Run:
    """Show one fault, and write down what came of it."""
    engines = subject.engines
    primary, fallback = engines.primaries[case.number - 1], engines.fallbacks[case.number - 1]
    model = model_of(case.number)
    engines.spoil(primary, case.fault)
    if case.fallback_fault:
        engines.spoil(fallback, case.fallback_fault)
    since = time.monotonic()
    run = Run(public_names=subject.public_names[case.number])
    if case.number == 15:
        run.told = ask_while_down(subject.port, model, subject.key)
    else:
        run.told = [ask(subject.port, model, subject.key, case.stream)]
    run.primary, run.fallback = engines.log(primary, since), engines.log(fallback, since)
    if case.number == 9:
        engines.heal(primary)
        run.told.append(ask(subject.port, model, subject.key, case.stream))
    return run


def outcome_of(case: Case, run: Run) -> dict[str, Any]:
    """A row of the report."""
    why = case.judge(run)
    first = run.first
    return {
        "fault": case.number,
        "says": case.says,
        "passed": not why,
        "why": "; ".join(why),
        "seconds": run.told[-1].at + run.told[-1].seconds - first.at if case.number == 15 else first.seconds,
        "attempts_primary": len(run.primary),
        "attempts_fallback": len(run.fallback),
        "continued": sum(one.goes_on for one in (*run.primary, *run.fallback)),
        "status": first.status,
        "tokens": len(first.text.split()),
        "error": (first.error or first.broke)[:300],
        "model": first.model,
    }


def run_all(name: str, start: Start, folder: Path) -> list[dict[str, Any]]:
    """All faults on one subject at the same time. Raises Unmeasurable."""
    own = folder / name
    own.mkdir()
    say(f"Starting {name}")
    with ExitStack() as stack:
        subject = start(stack, own)
        for case in CASES:
            warm = ask(subject.port, model_of(case.number), subject.key, case.stream)
            if not warm.is_whole or warm.by_fallback:
                raise Unmeasurable(f"{name} does not answer without a fault: {warm}")
        say(f"{ALL} faults on {name}")
        with ThreadPoolExecutor(ALL) as threads:
            runs = list(threads.map(lambda case: run_case(subject, case), CASES))
    found = [outcome_of(case, run) for case, run in zip(CASES, runs, strict=True)]
    say(f"  {sum(one['passed'] for one in found)} of {ALL}")
    return found


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Every subject in turn. Raises Unmeasurable."""
    began = time.monotonic()
    see_that_there_are_cores(1)
    subjects: dict[str, Start] = {"gateway": lambda stack, folder: start_gateway(stack, folder, asked.commit)}
    if asked.full:
        subjects["gateway_complete"] = lambda stack, folder: start_gateway(stack, folder, "complete")
    if asked.peers:
        if not litellm().exists():
            install_litellm()
        subjects["litellm"] = lambda stack, folder: start_litellm(stack, folder, 30.0)
        subjects["litellm_10s"] = lambda stack, folder: start_litellm(stack, folder, 10.0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="faults-", dir=FOLDER) as folder:
        found = {name: run_all(name, start, Path(folder)) for name, start in subjects.items()}
    report = {
        "seed": asked.seed,
        "commit": asked.commit,
        "took_seconds": round(time.monotonic() - began, 1),
        "figures": {f"{name}_passed": sum(one["passed"] for one in rows) for name, rows in found.items()},
        "subjects": found,
    }
    return report, []


def show(report: Mapping[str, Any]) -> str:
    """The tables for people, one a subject."""
    told = []
    for name, rows in report["subjects"].items():
        head = [f"{name}: {report['figures'][f'{name}_passed']} of {ALL}", "passed", "s", "primary", "fallback"]
        lines = [
            [
                f"{row['fault']:2} {row['says']}",
                "yes" if row["passed"] else "no",
                round(row["seconds"], 1),
                row["attempts_primary"],
                row["attempts_fallback"],
            ]
            for row in rows
        ]
        told.append(table(head, lines))
        told += [f"  {row['fault']}: {row['why']}" for row in rows if row["why"]]
    return "\n".join(told)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "faults", "Sixteen faults of an engine: what callers get, and what engines are asked.", FULL, PEERS
    )
    parser.add_argument("--commit", default="first_token", help="the tasks' commit policy (default first_token)")
    asked = parser.parse_args(arguments)
    goals = (Goal("gateway_passed", at_least=ALL),)
    return conclude("faults", lambda: measure(asked), goals, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
