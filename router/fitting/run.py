"""One fitting, in a process of its own: `python -m router.fitting.run`.

The input is a FittingJob as a line of JSON, and then as many bytes as the job names. The output is lines of JSON: a
Step each, and last a FittingResult. The process ends at once when its input is closed: it never outlives its gateway.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from monitoring.helper_process import run_data_job, tell_step
from router.embedding import EmbeddingError, StaticEmbedding, load_deep
from router.fitting.background import read_stand_in
from router.fitting.errors import FittingError
from router.fitting.scope import TrainingPrompt, fit_scope
from router.fitting_job import FittingJob, FittingLine, FittingResult
from router.scope_model import ScopeModel

ASIDE_SHARE, ASIDE_SHARE_MAX = 0.1, 0.2
"""Share of other traffic kept for measurement (ASIDE_MIN to ASIDE_MAX texts), and the limit above which none is."""
ASIDE_MIN, ASIDE_MAX = 20, 500


def fit(job: FittingJob, packed: bytes) -> FittingResult:
    """Fit a scope model. Raises FittingError and EmbeddingError."""
    rows = [msgspec.json.decode(line, type=FittingLine) for line in gzip.decompress(packed).splitlines()]
    prompts = [TrainingPrompt(row.id, row.text, row.label, row.group) for row in rows if not row.other]
    backgrounds = [row.text for row in rows if row.other]
    others: Sequence[str] = backgrounds or read_stand_in()
    embedding = StaticEmbedding.load()
    deep = load_deep(Path(job.minilm)) if job.minilm else None
    order = np.random.default_rng(job.seed).permutation(len(others))
    count = min(max(int(ASIDE_SHARE * len(others)), ASIDE_MIN), ASIDE_MAX)
    aside = [others[at] for at in order[:count]] if count <= ASIDE_SHARE_MAX * len(others) else []
    rest = [others[at] for at in np.sort(order[len(aside) :])]
    traffic, stands = (rest, read_stand_in()) if backgrounds else ((), rest)
    model = fit_scope(prompts, traffic, embedding, job.seed, tell_step, deep, stands)
    name = embedding.name if deep is None else f"{embedding.name} and {deep.name}"
    auroc = measure_auroc(model, aside)
    return FittingResult(model.to_bytes(), "", auroc, model.held_back_rows, len(prompts), len(others), name)


def measure_auroc(model: ScopeModel, others: Sequence[str]) -> float | None:
    """The share of pairs (a held-back training prompt, a text of other traffic) in which the prompt scores higher."""
    if not others:
        return None
    scores = np.array([model.score(text).score for text in others])
    below = np.searchsorted(model.held_back, scores, "left") + np.searchsorted(model.held_back, scores, "right")
    return round(1.0 - float(below.mean()) / 2 / len(model.held_back), 4)


def try_fitting(job: FittingJob, packed: bytes) -> FittingResult:
    """The result of a fitting, or the error that ended it."""
    try:
        return fit(job, packed)
    except (FittingError, EmbeddingError) as error:
        return FittingResult(error=str(error))


if __name__ == "__main__":
    run_data_job(FittingJob, try_fitting)
