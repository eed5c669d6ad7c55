"""One fitting, in a process of its own: `python -m router.fitting.run`.

It reads a Job as a line of JSON, and then as many bytes as the job names. Its output is lines of JSON, a Step each, and
last a Result, after which the model's bytes follow. It ends at once when its input is closed: it never outlives the
gateway that began it.
"""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from monitoring.helper_process import live_with_input
from router.embedding import EmbeddingError, StaticEmbedding
from router.embedding_plugin import load_deep
from router.fitting.background import stand_in
from router.fitting.errors import FittingError
from router.fitting.scope import TrainingPrompt, fit_scope
from router.fitting_job import FittingJob, FittingLine, FittingResult, FittingStep
from router.scope import ScopeModel

ASIDE_SHARE, ASIDE_SHARE_MAX = 0.1, 0.2
"""Of other traffic, kept from the fitting to measure it with: between ASIDE_MIN and ASIDE_MAX texts, or none."""
ASIDE_MIN, ASIDE_MAX = 20, 500


def fit(job: FittingJob, packed: bytes) -> tuple[FittingResult, bytes]:
    """Fit a scope model. Raises FittingError and EmbeddingError."""
    rows = [msgspec.json.decode(line, type=FittingLine) for line in gzip.decompress(packed).splitlines()]
    prompts = [TrainingPrompt(row.id, row.text, row.label, row.group) for row in rows if not row.other]
    backgrounds = [row.text for row in rows if row.other]
    others: Sequence[str] = backgrounds or stand_in()
    embedding = StaticEmbedding.load()
    deep = load_deep(Path(job.minilm)) if job.minilm else None
    order = np.random.default_rng(job.seed).permutation(len(others))
    count = min(max(int(ASIDE_SHARE * len(others)), ASIDE_MIN), ASIDE_MAX)
    aside = [others[at] for at in order[:count]] if count <= ASIDE_SHARE_MAX * len(others) else []
    kept = [others[at] for at in np.sort(order[len(aside) :])]
    traffic, stands = (kept, stand_in()) if backgrounds else ((), kept)
    model = fit_scope(prompts, traffic, embedding, job.seed, _tell, deep, stands)
    data = model.to_bytes()
    name = embedding.name if deep is None else f"{embedding.name} and {deep.name}"
    auroc = measure_auroc(model, aside)
    return FittingResult(len(data), "", auroc, len(model.held_back), len(prompts), len(others), name), data


def measure_auroc(model: ScopeModel, others: Sequence[str]) -> float | None:
    """The share of pairs, of a held-back training prompt and a text of other traffic, that are in the right order."""
    if not others:
        return None
    scores = np.array([model.score(text).score for text in others])
    below = np.searchsorted(model.held_back, scores, "left") + np.searchsorted(model.held_back, scores, "right")
    return round(1.0 - float(below.mean()) / 2 / len(model.held_back), 4)


def _tell(stage: str, share: float) -> None:
    _say(msgspec.json.encode(FittingStep(stage, round(share, 4))) + b"\n")


def _say(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def main() -> None:
    """Do the job that the input names, and say how it went."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=FittingJob)
    packed = sys.stdin.buffer.read(job.bytes)
    live_with_input()
    try:
        result, data = fit(job, packed)
    except (FittingError, EmbeddingError) as error:
        result, data = FittingResult(error=str(error)), b""
    _say(msgspec.json.encode(result) + b"\n" + data)
    os._exit(0)


if __name__ == "__main__":
    main()
