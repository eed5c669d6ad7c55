"""Measure the rival without a language model, TF-IDF with a linear SVM: python examples/clauses/baseline.py --json"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from policy import RISKS
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score, f1_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

DATA = Path(__file__).resolve().parent / "data"


def read_rows(path: Path) -> tuple[list[str], list[str]]:
    """The texts of a file, and their kinds."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [row["messages"][0]["content"] for row in rows], [row["class"] for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--train", type=Path, default=DATA / "train.jsonl", help="rows to fit")
    parser.add_argument("--heldout", type=Path, default=DATA / "heldout.jsonl", help="rows to measure")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    model = make_pipeline(
        make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2),
            TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, min_df=2),
        ),
        LinearSVC(C=0.5),
    )
    model.fit(*read_rows(args.train))
    texts, kinds = read_rows(args.heldout)
    began = time.perf_counter()
    guessed = list(model.predict(texts))
    seconds = time.perf_counter() - began
    risks, guessed_risks = [RISKS[kind] for kind in kinds], [RISKS[kind] for kind in guessed]
    figures = {
        "rows": len(kinds),
        "kind_accuracy": round(accuracy_score(kinds, guessed), 4),
        "kind_macro_f1": round(f1_score(kinds, guessed, average="macro"), 4),
        "risk_accuracy": round(accuracy_score(risks, guessed_risks), 4),
        "risk_macro_f1": round(f1_score(risks, guessed_risks, average="macro"), 4),
        "milliseconds_each": round(1000 * seconds / len(kinds), 3),
    }
    print(json.dumps(figures) if args.json else "\n".join(f"{name}: {figure}" for name, figure in figures.items()))


if __name__ == "__main__":
    main()
