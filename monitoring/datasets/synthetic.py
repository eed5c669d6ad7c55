"""Synthetic rows of a data set: their share, their distance from real ones, and what leaving them out changes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from monitoring.datasets.build import BuiltSet
from monitoring.datasets.rows import DataRow, fold_text, input_of
from monitoring.datasets.similarity import COMPARED_MAX, TEXTS_MAX, WORD_PATTERN, make_terms, measure_nearest

FOLDS = 5
ROWS_MIN = 20


def measure_synthetic(built: BuiltSet) -> dict[str, Any]:
    """Figures of synthetic training rows compared with all others, and sentences on them."""
    synthetic = [row for row in built.train if row.origin == "synthetic"]
    others = [row for row in built.train if row.origin != "synthetic"]
    share = len(synthetic) / max(1, len(built.train))
    figures: dict[str, Any] = {"share": round(share, 4), "distance": None, "ablation": None}
    words = [f"{100 * share:.1f}% of the training rows are synthetic."]
    if synthetic and min(len(synthetic), len(others)) < ROWS_MIN:
        few = f"Those are fewer than {ROWS_MIN}" if len(synthetic) < ROWS_MIN else f"Fewer than {ROWS_MIN} are not"
        words.append(f"{few}: their distance and their use are unknown.")
    elif synthetic and not any(re.search(WORD_PATTERN, text) for text in _texts(others)):
        words.append("The others have no words: their distance and their use are unknown.")
    elif synthetic:
        figures["distance"] = distance = _measure_distance(_texts(synthetic), _texts(others))
        words.append(
            f"The median similarity of a synthetic row to its nearest real one is {distance['synthetic']:.2f}; of a "
            f"real row {distance['real']:.2f}. A linear model tells them apart with an AUROC of "
            f"{distance['auroc']:.2f} (0.5: not at all)."
        )
        figures["ablation"] = ablation = _ablate(built.train[:TEXTS_MAX], built.heldout)
        words.append(_words_of_ablation(ablation))
    return figures | {"words": words}


def _texts(rows: Sequence[DataRow]) -> list[str]:
    return [fold_text(input_of(row)) for row in rows]


def _measure_distance(synthetic: list[str], others: list[str]) -> dict[str, float]:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415 - takes a second, only where it is used
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold, cross_val_predict  # noqa: PLC0415

    synthetic, others = synthetic[:COMPARED_MAX], others[:COMPARED_MAX]
    origins = np.array([1] * len(synthetic) + [0] * len(others))
    vectors = make_terms().fit_transform([*synthetic, *others])
    of_made, of_others = vectors[: len(synthetic)], vectors[len(synthetic) :]
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    model = LogisticRegression(solver="liblinear")  # for sparse rows ten times as fast as lbfgs
    scores = cross_val_predict(model, vectors, origins, cv=folds, method="decision_function")
    return {
        "synthetic": round(float(np.median(measure_nearest(of_made, of_others))), 3),
        "real": round(float(np.median(measure_nearest(of_others, of_others, apart=False))), 3),
        "auroc": round(float(roc_auc_score(origins, scores)), 3),
    }


def _ablate(train: Sequence[DataRow], heldout: Sequence[DataRow]) -> dict[str, Any] | None:
    """The right answers of a linear TF-IDF model on held-out rows, with synthetic rows and without; None if there are
    too few rows."""
    others = [row for row in train if row.origin != "synthetic"]
    judged = [row for row in heldout if row.label is not None and row.origin != "synthetic"]
    few = min(len(others), len(train) - len(others)) < ROWS_MIN
    if few or len(judged) < ROWS_MIN or len({row.label for row in others}) < 2:
        return None
    right = {name: _right(rows, judged) for name, rows in (("with", train), ("without", others))}
    gained = right["with"].astype(int) - right["without"]
    difference = float(gained.mean())
    half = 1.96 * math.sqrt(max(0.0, float((gained**2).mean()) - difference**2) / len(judged))
    return {
        "rows": len(judged),
        "with": round(float(right["with"].mean()), 4),
        "without": round(float(right["without"].mean()), 4),
        "difference": round(difference, 4),
        "low": round(difference - half, 4),
        "high": round(difference + half, 4),
    }


def _right(rows: Sequence[DataRow], judged: Sequence[DataRow]) -> Any:
    from sklearn.svm import LinearSVC  # noqa: PLC0415

    terms = make_terms()
    model = LinearSVC(random_state=0).fit(terms.fit_transform(_texts(rows)), [row.label or "" for row in rows])
    return model.predict(terms.transform(_texts(judged))) == np.array([row.label for row in judged])


def _words_of_ablation(ablation: dict[str, Any] | None) -> str:
    if ablation is None:
        return "What leaving them out changes is unknown: there are too few rows to compare."
    interval = f"{100 * ablation['low']:+.1f} to {100 * ablation['high']:+.1f} points"
    without, right = f"{100 * ablation['without']:.1f}%", f"{100 * ablation['with']:.1f}%"
    rows = f"{ablation['rows']:,} held-out rows"
    return f"Without them a linear model is right on {without} of {rows}, with them on {right} ({interval})."
