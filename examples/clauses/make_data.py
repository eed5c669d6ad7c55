"""Make the rows of the clauses task from CUAD: python examples/clauses/make_data.py --seed 11

The split is by contract: no contract has rows in two files. Clauses that CUAD gives two of these kinds are left out,
and so are repeats. A row is OpenAI's fine-tuning format, with the class and the contract as its group.
"""

from __future__ import annotations

import argparse
import ast
import csv
import gzip
import io
import json
import random
from collections import Counter
from pathlib import Path

from policy import CATEGORIES, answer_for

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parents[1] / "benchmarks" / "data" / "cuad" / "master_clauses.csv.gz"
CHARACTERS_MAX = 700
CHARACTERS_MIN = 40
SHARES = {"train": 0.7, "dev": 0.1, "heldout": 0.2}
"""Shares of the contracts."""


def read_clauses(source: Path) -> list[tuple[int, str, str]]:
    """Number of the contract, kind and text of each clause. A text that has two kinds, or stands twice, is left out."""
    clauses: list[tuple[int, str, str]] = []
    kinds: dict[str, set[str]] = {}
    content = source.read_bytes()
    table = (gzip.decompress(content) if source.suffix == ".gz" else content).decode("utf-8-sig")
    csv.field_size_limit(1 << 24)
    for number, contract in enumerate(csv.DictReader(io.StringIO(table, newline="")), 1):
        for category, kind in CATEGORIES.items():
            cell = contract[category]
            for text in ast.literal_eval(cell) if cell.startswith("[") else []:
                shown = " ".join(str(text).split())[:CHARACTERS_MAX]
                if len(shown) >= CHARACTERS_MIN:
                    if shown not in kinds:
                        clauses.append((number, kind, shown))
                    kinds.setdefault(shown, set()).add(kind)
    return [clause for clause in clauses if len(kinds[clause[2]]) == 1]


def split_contracts(contracts: set[int], seed: int) -> dict[int, str]:
    """The file of each contract."""
    shuffled = sorted(contracts)
    random.Random(seed).shuffle(shuffled)
    ends = [round(len(shuffled) * sum(list(SHARES.values())[: n + 1])) for n in range(len(SHARES))]
    return {
        contract: next(name for name, end in zip(SHARES, ends, strict=True) if at < end)
        for at, contract in enumerate(shuffled)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=11, help="of the split")
    parser.add_argument("--source", type=Path, default=SOURCE, help="CUAD's master_clauses.csv, or .csv.gz")
    parser.add_argument("--folder", type=Path, default=HERE / "data", help="where the files go")
    args = parser.parse_args()
    clauses = read_clauses(args.source)
    names = split_contracts({contract for contract, _, _ in clauses}, args.seed)
    lines: dict[str, list[str]] = {name: [] for name in SHARES}
    counts: dict[str, Counter[str]] = {name: Counter() for name in SHARES}
    for contract, kind, text in clauses:
        name = names[contract]
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": answer_for(kind)}]
        row = {"id": f"{name}-{len(lines[name]) + 1}", "group": f"contract-{contract}", "class": kind}
        lines[name].append(json.dumps({**row, "messages": messages}, ensure_ascii=False))
        counts[name][kind] += 1
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lines.items():
        (args.folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        print(name, len(rows), dict(sorted(counts[name].items())))


if __name__ == "__main__":
    main()
