"""Votes of labellers, on crowd data: `python -m benchmarks.labellers [--json] [--data PATH …] [--seed N]`.

Each file has real people's labels of items whose right value is known. The majority and the vote of Dawid and Skene
(monitoring/labels/dawid_skene.py) are compared with it, and with them the one that is recommended by the number of
labels alone. Beside the whole file, so many labels an item are drawn from it, as of a task with fewer reviewers.

`shortfall` is by how many points the recommended vote is under the better one. A goal stands on the lower end of its
99% interval, over items.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.harness import Goal, Unmeasurable, conclude, options, table
from monitoring.labels.agreement import measure_agreement
from monitoring.labels.dawid_skene import find_credits, take_votes
from monitoring.labels.ratings import Ratings, RatingsError, read_rater_file

DATA = Path(__file__).with_name("data") / "crowd"
HEADER = "rater,item,label,gold\n"
NORMAL_99 = 2.576
DRAWS, DRAWS_FULL = 5, 40
GOALS = (Goal("shortfall_points_low_max", at_most=1.0),)


def find_files(paths: Sequence[Path]) -> list[Path]:
    """The files of these paths; of a folder all tables in it."""
    listed = [sorted(path.glob("*.csv*")) if path.is_dir() else [path] for path in paths]
    files = [path for part in listed for path in part]
    if not files:
        raise Unmeasurable("There is no table of labels in --data: name files, or a folder with *.csv or *.csv.gz.")
    return files


def read_file(path: Path) -> Ratings:
    """The labels of a file: a rater file with a header, or the columns rater, item, label and gold without one."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
        has_header = "item" in text.partition("\n")[0].split(",")
        ratings = read_rater_file(text if has_header else HEADER + text)
    except (OSError, UnicodeDecodeError, RatingsError) as error:
        raise Unmeasurable(f"{path}: {error}") from error
    if not ratings.gold:
        raise Unmeasurable(f"{path}: it has no column gold with the right value of an item.")
    return ratings


def draw_labels(ratings: Ratings, labels_an_item: int, chance: np.random.Generator) -> Ratings:
    """At most so many labels of each item, drawn at random."""
    order = chance.permutation(len(ratings.item))
    order = order[np.argsort(ratings.item[order], kind="stable")]
    starts = np.searchsorted(ratings.item[order], ratings.item[order])
    kept = order[np.arange(len(order)) - starts < labels_an_item]
    drawn = replace(ratings, item=ratings.item[kept], rater=ratings.rater[kept], value=ratings.value[kept])
    present, numbers = np.unique(drawn.rater, return_inverse=True)
    return replace(drawn, rater=numbers, raters=tuple(drawn.raters[at] for at in present))


def compare_votes(name: str, ratings: Ratings) -> dict[str, Any]:
    """Both votes and the recommended one, on the items of a known value."""
    votes = take_votes(ratings)
    right = {
        "majority": find_credits(votes.majority, ratings),
        "dawid_skene": find_credits(votes.dawid_skene, ratings),
    }
    better = max(right, key=lambda vote: right[vote].mean())
    behind = 100 * (right[better] - right[votes.recommended])
    wide = NORMAL_99 * float(behind.std()) / len(behind) ** 0.5
    return {
        "data": name,
        "items": len(behind),
        "labels_an_item": len(ratings.item) / len(ratings.items),
        "items_a_rater": len(ratings.item) / len(ratings.raters),
        **{vote: float(credit.mean()) for vote, credit in right.items()},
        "recommended": votes.recommended,
        "shortfall_points": float(behind.mean()),
        "shortfall_points_low": float(behind.mean()) - wide,
    }


def compare_draws(path: str, ratings: Ratings, labels: int, asked: argparse.Namespace) -> dict[str, Any]:
    """The mean over draws of so many labels an item."""
    chance = np.random.default_rng([asked.seed, labels])
    rows = [compare_votes(path, draw_labels(ratings, labels, chance)) for _ in range(asked.draws)]
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0] if key not in ("data", "recommended")}
    taken = {str(row["recommended"]) for row in rows}
    return {"data": f"{path}, {labels} an item", "recommended": " or ".join(sorted(taken)), **means}


def measure(asked: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """A row for each file, and for each number of labels that is drawn from it."""
    whole, drawn = list[dict[str, Any]](), list[dict[str, Any]]()
    for path in find_files(asked.data):
        ratings, name = read_file(path), path.name.partition(".")[0]
        agreement = measure_agreement(ratings, asked.seed)
        alpha = {"alpha": agreement.alpha, "alpha_low": agreement.low, "alpha_high": agreement.high}
        whole.append({**compare_votes(name, ratings), **alpha})
        drawn += [compare_draws(name, ratings, labels, asked) for labels in asked.labels]
    figures = {
        "shortfall_points_max": max(row["shortfall_points"] for row in whole),
        "shortfall_points_low_max": max(row["shortfall_points_low"] for row in whole),
        "shortfall_points_drawn_max": max((row["shortfall_points"] for row in drawn), default=None),
    }
    return {"figures": figures, "whole": whole, "drawn": drawn, "seed": asked.seed, "draws": asked.draws}, []


def show(report: Mapping[str, Any]) -> str:
    """Both tables."""
    return "\n\n".join(_tables(report))


def _tables(report: Mapping[str, Any]) -> Iterator[str]:
    names = ("data", "items", "labels_an_item", "items_a_rater", "majority", "dawid_skene", "recommended")
    columns = (*names, "shortfall_points", "shortfall_points_low")
    for rows in (report["whole"], report["drawn"]):
        if rows:
            yield table(columns, [[row[name] for name in columns] for row in rows])
    alphas = [[row["data"], row["alpha"], row["alpha_low"], row["alpha_high"]] for row in report["whole"]]
    yield table(("Krippendorff's alpha", "alpha", "95% from", "to"), alphas)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark."""
    parser = options(
        "labellers",
        "The majority and Dawid-Skene on labels of real people, and which of them is recommended.",
        full=f"{DRAWS_FULL} draws a row: 50 s of CPU time",
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[DATA],
        help="files or folders: rater,item,label,gold without a header, or rater files (default benchmarks/data/crowd)",
    )
    parser.add_argument("--labels", type=int, nargs="*", default=[2, 3, 4, 5], help="drawn an item (default 2 3 4 5)")
    asked = parser.parse_args(arguments)
    asked.draws = DRAWS_FULL if asked.full else DRAWS
    if min(asked.labels, default=1) < 1:
        parser.error("--labels: at least 1")
    with threadpool_limits(1):
        return conclude("labellers", lambda: measure(asked), GOALS, None if asked.json else show)


if __name__ == "__main__":
    sys.exit(main())
