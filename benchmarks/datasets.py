"""The building of a data set: `python -m benchmarks.datasets [--rows 100000] [--json]`.

Of as many texts of some 800 characters: `apart`, of words drawn by Zipf's law, and `alike`, of one template with other
names and numbers, where each text shares hashes with thousands of others. Three of ten rows are synthetic. CPU time and
peak memory of the process that builds.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness import FOLDER, Goal, Unmeasurable, conclude, options, say, table
from monitoring.datasets.build_job import DatasetJob
from monitoring.datasets.rows_from_files import SourceFile

WORDS, CLASSES = 20_000, 20
TEMPLATE = (
    "Hello, I would like to return the {0} {1} that I bought {2} days ago for {3} in the shop of {4}. The parcel is "
    "{5}, and the number of the order is {6}. I paid with a voucher. May I return it, and who pays for the parcel?"
)


def texts_of(kind: str, draw: random.Random) -> Callable[[], str]:
    """A maker of texts of a kind."""
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(3, 9))) for _ in range(WORDS)]
    weights = list(itertools.accumulate(1 / (place + 10) for place in range(WORDS)))
    if kind == "apart":
        return lambda: " ".join(draw.choices(words, cum_weights=weights, k=draw.randint(60, 200)))
    state = ("open", "sealed", "broken", "incomplete")
    return lambda: TEMPLATE.format(
        draw.choice(words),
        draw.choice(words),
        draw.randint(1, 90),
        draw.randint(5, 900),
        draw.choice(words),
        draw.choice(state),
        draw.randint(10**6, 10**7),
    )


def write_rows(path: Path, kind: str, count: int, seed: int) -> None:
    """A file of rows."""
    draw = random.Random(seed)
    make_text = texts_of(kind, draw)
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            answer = json.dumps({"decision": f"class{draw.randrange(CLASSES)}"})
            origin = "synthetic" if draw.random() < 0.3 else "real"
            row = {"id": f"q{number}", "text": make_text(), "expected": answer, "origin": origin}
            file.write(json.dumps(row) + "\n")


def build(path: Path, folder: Path, count: int) -> dict[str, float]:
    """Build a set of a file in a process of its own."""
    job = DatasetJob(task="returns", folder=str(folder), files=[SourceFile(path.name, str(path))], rows_max=count)
    command = [sys.executable, "-m", "monitoring.datasets.build_run"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(job) + b"\n")
        process.stdin.flush()
        lines = process.stdout.read().splitlines()
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0
    if not msgspec.json.decode(lines[-1]).get("digest"):
        raise Unmeasurable(f"No set was built: {lines[-1].decode()}")
    return {"cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_megabytes": usage.ru_maxrss / 1024}


def measured(asked: Any) -> dict[str, dict[str, float]]:
    """The figures of each kind."""
    folder, figures = FOLDER / "datasets", {}
    try:
        for kind in ("apart", "alike"):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            write_rows(folder / "rows.jsonl", kind, asked.rows, asked.seed)
            say(f"{asked.rows} rows {kind}")
            figures[kind] = build(folder / "rows.jsonl", folder / "sets", asked.rows)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return figures


def show(report: Mapping[str, Any]) -> str:
    """The table for people."""
    kinds = report["kinds"]
    return table([f"{report['rows']} rows", *kinds["apart"]], [[kind, *kinds[kind].values()] for kind in kinds])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options("datasets", "The building of a data set.", full="100,000 rows: some minutes")
    parser.add_argument("--rows", type=int, help="how many (default 10000)")
    asked = parser.parse_args(arguments)
    asked.rows = asked.rows or (100_000 if asked.full else 10_000)

    def measure() -> tuple[dict[str, Any], list[str]]:
        kinds = measured(asked)
        figures = {"peak_megabytes": max(of["peak_megabytes"] for of in kinds.values())}
        return {"rows": asked.rows, "kinds": kinds, "figures": figures}, []

    return conclude("datasets", measure, [Goal("peak_megabytes", at_most=1500.0)], None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
