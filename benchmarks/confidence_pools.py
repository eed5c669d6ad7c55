"""Answers whose truth is known, for the confidence benchmark: a cheap classifier's, on public intents.

No engine is asked. A ridge classifier on hashed n-grams stands for the adapter. It "writes" the words of its class's
name, one token each and an end: a word's logprob is that of its class probabilities, given the words before it. So
these logprobs have the form of a model's, and add up to its class's, but they are not those of a language model.
Scope is the cosine to the nearest of at most 1,500 training texts. What is out of scope has no right answer.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.preprocessing import normalize

from benchmarks.harness import Unmeasurable
from router.fitted import CALIBRATION_ROWS_MIN
from router.fitting.confidence import CalibrationRow

SETS = ("banking77", "clinc150")
FORM = (
    "with banking77/train.csv and banking77/test.csv (text, category), or clinc150/data_full.json, each as published, "
    "or with .gz behind its name"
)
BUCKETS = 4096
PENALTY = 0.5
SHARPNESS = 12.0
NEIGHBOURS_MAX = 1_500
PROBABILITY_MIN = 1e-12
CLASSES_MIN = 2

Numbers = NDArray[np.float64]
Labelled = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts with their classes: what the classifier learns, what it is asked, and what it is asked out of scope."""

    learned: list[Labelled]
    asked: list[Labelled]
    out_of_scope: list[str]


def there(folder: Path) -> list[str]:
    """The data sets that a folder has. Raises Unmeasurable if it has none."""
    found = [name for name in SETS if (folder / name).is_dir()]
    if not found:
        raise Unmeasurable(f"{folder} has none of {', '.join(SETS)}: give --data a folder {FORM}.")
    return found


def read(name: str, folder: Path, seed: int) -> Texts:
    """A data set, in the form in which it is published, packed with gzip or not. Raises Unmeasurable."""
    try:
        return _banking(folder, seed) if name == "banking77" else _clinc(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
        raise Unmeasurable(
            f"{name} can't be read in {folder} ({error or type(error).__name__}): give --data a folder {FORM}."
        ) from error


def answers(texts: Texts, seed: int) -> list[CalibrationRow]:
    """The classifier's answers to what it is asked. Raises Unmeasurable if there are too few texts to learn from."""
    labels = sorted({label for _, label in texts.learned})
    if len(labels) < CLASSES_MIN or len(texts.asked) < CALIBRATION_ROWS_MIN:
        raise Unmeasurable(
            f"There are {len(labels)} classes and {len(texts.asked)} texts to ask of them: give at least {CLASSES_MIN} "
            f"and {CALIBRATION_ROWS_MIN}."
        )
    wanted = [*(label for _, label in texts.asked), *(None for _ in texts.out_of_scope)]
    learned, asked = _vectors(
        [text for text, _ in texts.learned], [*(text for text, _ in texts.asked), *texts.out_of_scope]
    )
    place = {label: at for at, label in enumerate(labels)}
    target = np.zeros((len(texts.learned), len(labels)))
    target[np.arange(len(texts.learned)), [place[label] for _, label in texts.learned]] = 1.0
    gram = (learned.T @ learned).toarray()
    gram[np.diag_indices(len(gram))] += PENALTY
    probabilities = _softmax(SHARPNESS * (asked @ np.linalg.solve(gram, learned.T @ target)))
    scope = _nearest(asked, learned, seed)
    said = probabilities.argmax(axis=1)
    return [
        CalibrationRow(logprobs, float(near), None, labels[at] == label)
        for logprobs, near, at, label in zip(words_logprobs(labels, probabilities), scope, said, wanted, strict=True)
    ]


def words_logprobs(labels: Sequence[str], probabilities: Numbers) -> list[list[float]]:
    """The logprobs of the words of each row's likeliest label, each given those before it."""
    spelt = [(*label.split("_"), "") for label in labels]
    beginning: dict[tuple[str, ...], list[int]] = {}
    for at, words in enumerate(spelt):
        for end in range(1, len(words) + 1):
            beginning.setdefault(words[:end], []).append(at)
    found = []
    for row in probabilities:
        words, logprobs, before = spelt[int(row.argmax())], [], 1.0
        for end in range(1, len(words) + 1):
            now = max(float(row[beginning[words[:end]]].sum()), PROBABILITY_MIN)
            logprobs.append(min(0.0, math.log(now / before)))
            before = now
        found.append(logprobs)
    return found


def _banking(folder: Path, seed: int) -> Texts:
    """Half of all rows are learned, the other half is asked."""
    rows = [
        (row["text"], row["category"])
        for part in ("train", "test")
        for row in csv.DictReader(io.StringIO(_text(folder / "banking77" / f"{part}.csv")))
    ]
    order = np.random.default_rng(seed).permutation(len(rows))
    half = len(rows) // 2
    learned = [rows[at] for at in order[:half]]
    known = {label for _, label in learned}
    asked = [rows[at] for at in order[half:]]
    return Texts(learned, [row for row in asked if row[1] in known], [t for t, label in asked if label not in known])


def _clinc(folder: Path) -> Texts:
    """What was published for training is learned; the rest and all that is out of scope is asked."""
    held: dict[str, Any] = json.loads(_text(folder / "clinc150" / "data_full.json"))
    return Texts(
        [(text, label) for text, label in held["train"]],
        [(text, label) for part in ("val", "test") for text, label in held.get(part, [])],
        [text for part in ("oos_train", "oos_val", "oos_test") for text, _ in held.get(part, [])],
    )


def _text(path: Path) -> str:
    packed = path.with_name(f"{path.name}.gz")
    return gzip.decompress(packed.read_bytes()).decode() if packed.exists() else path.read_text(encoding="utf-8")


def _vectors(learned: list[str], asked: list[str]) -> tuple[csr_matrix, csr_matrix]:
    """tf-idf of words 1-2 and of characters 3-5, added up in the same buckets."""
    kinds = (
        HashingVectorizer(ngram_range=(1, 2), n_features=BUCKETS, norm=None),
        HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5), n_features=BUCKETS, norm=None),
    )
    parts = []
    for kind in kinds:
        counted = kind.transform(learned)
        weighing = TfidfTransformer().fit(abs(counted))
        parts.append((weighing.transform(counted), weighing.transform(kind.transform(asked))))
    return normalize(parts[0][0] + parts[1][0]), normalize(parts[0][1] + parts[1][1])


def _nearest(asked: csr_matrix, learned: csr_matrix, seed: int) -> Numbers:
    some = np.random.default_rng(seed).permutation(learned.shape[0])[:NEIGHBOURS_MAX]
    near = learned[np.sort(some)].T.tocsc()
    parts = [np.asarray((asked[at : at + 500] @ near).max(axis=1).todense()) for at in range(0, asked.shape[0], 500)]
    return np.concatenate(parts).ravel()


def _softmax(values: Numbers) -> Numbers:
    shifted = np.exp(values - values.max(axis=1, keepdims=True))
    found: Numbers = shifted / shifted.sum(axis=1, keepdims=True)
    return found
