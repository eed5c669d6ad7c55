"""What the benchmarks of the judgement share: reading the data sets, and how well a score tells two groups apart."""

from __future__ import annotations

import ast
import csv
import gzip
import io
import json
import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Unmeasurable

DATA = Path(__file__).with_name("data")
LAYOUT = (
    "a folder with clinc150/data_full.json, clinc150/domains.json, hwu64/{train,test}.tsv, banking77/{train,test}.csv, "
    "bitext_cs/{train,dev,test}.csv and cuad/master_clauses.csv in their published form, each as it is or as .gz; "
    "what is missing is left out"
)
Z_99 = 2.5758
CLAUSE_CHARACTERS_MIN = 60
Numbers = npt.NDArray[np.float64]


class Labelled(NamedTuple):
    """A text, and its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set with its own split. `domains`: classes by domain; `outside`: what belongs to no class, where there is."""

    name: str
    train: tuple[Labelled, ...]
    test: tuple[Labelled, ...]
    domains: dict[str, frozenset[str]]
    outside: tuple[str, ...] = ()


def there(folder: Path, file: str) -> bool:
    """Whether a file is in a folder, as it is or packed."""
    return (folder / file).exists() or (folder / f"{file}.gz").exists()


def content(folder: Path, file: str) -> str:
    """A file's text, packed or not. Raises Unmeasurable if it is not there."""
    packed = folder / f"{file}.gz"
    try:
        whole = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / file).read_bytes()
        return whole.decode("utf-8")
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise Unmeasurable(f"{file} can not be read in {folder}: name another folder with --data.") from error


def rows_of(folder: Path, file: str, text: str, label: str, delimiter: str = ",") -> tuple[Labelled, ...]:
    """The labelled texts of a table. Raises Unmeasurable if it has other columns."""
    quoting = csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
    reader = csv.DictReader(io.StringIO(content(folder, file)), delimiter=delimiter, quoting=quoting)
    try:
        return tuple(Labelled(row[text], row[label]) for row in reader if row[text] and row[label])
    except KeyError as error:
        raise Unmeasurable(f"{file} has no column {error}: name another folder with --data.") from error


def clinc150(folder: Path) -> DataSet:
    """CLINC150, with its domains and its queries out of scope. Raises Unmeasurable if it is in another form."""
    try:
        data: dict[str, list[tuple[str, str]]] = json.loads(content(folder, "clinc150/data_full.json"))
        domains = json.loads(content(folder, "clinc150/domains.json"))
        return DataSet(
            "clinc150",
            tuple(Labelled(text, label) for text, label in data["train"]),
            tuple(Labelled(text, label) for text, label in data["test"]),
            {name: frozenset(labels) for name, labels in domains.items()},
            tuple(text for text, _ in data["oos_test"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Unmeasurable("clinc150 is not in the form in which it is published.") from error


def banking77(folder: Path) -> DataSet:
    """BANKING77."""
    train, test = (rows_of(folder, f"banking77/{part}.csv", "text", "category") for part in ("train", "test"))
    return DataSet("banking77", train, test, {})


def hwu64(folder: Path) -> DataSet:
    """HWU64."""
    train, test = (rows_of(folder, f"hwu64/{part}.tsv", "text", "intent", "\t") for part in ("train", "test"))
    return DataSet("hwu64", train, test, {})


def bitext(folder: Path) -> DataSet:
    """Bitext's customer service; the development part is left alone."""
    train, test = (rows_of(folder, f"bitext_cs/{part}.csv", "utterance", "intent") for part in ("train", "test"))
    return DataSet("bitext_cs", train, test, {})


def cuad(folder: Path, classes_min: int = 40) -> DataSet:
    """Clauses by category, of categories with enough; every third contract is for testing.

    A clause of several categories stands in the first of them alone.
    """
    train: dict[str, Labelled] = {}
    test: dict[str, Labelled] = {}
    csv.field_size_limit(1 << 24)
    for number, row in enumerate(csv.DictReader(io.StringIO(content(folder, "cuad/master_clauses.csv")))):
        part = test if number % 3 == 2 else train
        for category, cell in row.items():
            if cell and cell.startswith("[") and not category.endswith("-Answer"):
                for clause in clauses(cell):
                    part.setdefault(clause, Labelled(clause, category))
    counts: dict[str, int] = defaultdict(int)
    for one in train.values():
        counts[one.label] += 1
    kept = {label for label, count in counts.items() if count >= classes_min}
    return DataSet(
        "cuad",
        tuple(one for one in train.values() if one.label in kept),
        tuple(one for one in test.values() if one.label in kept and one.text not in train),
        {},
    )


def clauses(cell: str) -> list[str]:
    """The clauses in a cell, without names and dates."""
    try:
        found = ast.literal_eval(cell)
    except (ValueError, SyntaxError):
        return []
    return [one for one in found if isinstance(one, str) and len(one) >= CLAUSE_CHARACTERS_MIN]


# ---- figures ---------------------------------------------------------------------------------------


class Figure(NamedTuple):
    """A figure with its 99% interval."""

    value: float
    low: float
    high: float


def auroc(inside: Sequence[float] | Numbers, outside: Sequence[float] | Numbers) -> float:
    """How often a score of `inside` is above one of `outside`; ties count half."""
    return float(_shares_below(np.asarray(inside, np.float64), np.asarray(outside, np.float64)).mean())


def auroc_with_interval(
    inside: Sequence[float] | Numbers,
    outside: Sequence[float] | Numbers,
    inside_groups: Sequence[Hashable] | None = None,
    outside_groups: Sequence[Hashable] | None = None,
) -> Figure:
    """AUROC with its 99% interval by DeLong, over groups (Obuchowski): texts of a class are not independent draws."""
    ins, outs = np.asarray(inside, np.float64), np.asarray(outside, np.float64)
    found = _shares_below(ins, outs)
    against = 1 - _shares_below(outs, ins)
    value = float(found.mean())
    variance = _variance(found, inside_groups) + _variance(against, outside_groups)
    half = Z_99 * math.sqrt(variance)
    return Figure(value, max(0.0, value - half), min(1.0, value + half))


def caught_at(inside: Sequence[float] | Numbers, outside: Sequence[float] | Numbers, deferred: float) -> float:
    """The share of `outside` under the score that defers this share of `inside`."""
    return float((np.asarray(outside) < np.quantile(np.asarray(inside), deferred)).mean())


def _shares_below(scores: Numbers, others: Numbers) -> Numbers:
    ordered = np.sort(others)
    both: Any = np.searchsorted(ordered, scores, "left") + np.searchsorted(ordered, scores, "right")
    shares: Numbers = both / (2 * len(ordered))
    return shares


def _variance(values: Numbers, groups: Sequence[Hashable] | None) -> float:
    """Of the mean, where values of a group are not independent; without groups each stands for itself."""
    sums: dict[Hashable, float] = defaultdict(float)
    for number, value in enumerate(values - values.mean()):
        sums[groups[number] if groups is not None else number] += float(value)
    count = len(sums)
    if count < 2:
        return 0.0
    return count / (count - 1) * sum(one * one for one in sums.values()) / len(values) ** 2
