"""Writes router/data/background.txt, what stands for other traffic: `python -m benchmarks.background --data DIR`.

Of each source so many texts are drawn by the seed, from its training part. DIR is a folder with clinc150, hwu64,
banking77 and cuad as `benchmarks.scope` reads them, and with routellm/gsm8k.csv and routellm/mmlu/*.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.harness import Unmeasurable, say
from benchmarks.scores import banking77, clinc150, content, cuad, hwu64
from router.fitting.background import FILE

CHARACTERS_MAX = 240
SEED = 20


def questions(folder: Path, files: Sequence[str]) -> list[str]:
    """The prompts of RouteLLM's tables."""
    return [row["prompt"] for file in files for row in csv.DictReader(io.StringIO(content(folder, file)))]


def mmlu(folder: Path) -> list[str]:
    """Questions without their answers to choose from."""
    files = sorted({path.name.removesuffix(".gz") for path in (folder / "routellm" / "mmlu").glob("*.csv*")})
    if not files:
        raise Unmeasurable(f"{folder} has no routellm/mmlu: name another folder with --data.")
    return [text.split("\nA. ")[0] for text in questions(folder, [f"routellm/mmlu/{file}" for file in files])]


SOURCES: dict[str, tuple[int, Callable[[Path], list[str]]]] = {
    "banking77": (200, lambda folder: [one.text for one in banking77(folder).train]),
    "clinc150": (450, lambda folder: [one.text for one in clinc150(folder).train]),
    "cuad": (100, lambda folder: [one.text for one in cuad(folder).train]),
    "gsm8k": (150, lambda folder: questions(folder, ["routellm/gsm8k.csv"])),
    "hwu64": (400, lambda folder: [one.text for one in hwu64(folder).train]),
    "mmlu": (400, mmlu),
}


def sample(folder: Path) -> list[str]:
    """The file's lines: source, tab, text in one line."""
    lines = []
    for name, (count, read) in SOURCES.items():
        texts = sorted({" ".join(text.split())[:CHARACTERS_MAX] for text in read(folder)})
        lines += [f"{name}\t{text}" for text in sorted(random.Random(f"{SEED} {name}").sample(texts, count))]
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file; 1 if a source is missing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.background", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    try:
        lines = sample(parser.parse_args(arguments).data)
    except Unmeasurable as error:
        say(f"benchmarks.background: {error}")
        return 1
    FILE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    say(f"{len(lines)} texts in {FILE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
