"""The process at an evaluation's end: it makes the report, and fits models from the rows.

`python -m gateway.features.evaluations.run` reads an EvaluationJob as a line of JSON, and prints a Closed. It exits as
soon as its input is closed, so that it never outlives the gateway that started it.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from gateway.features.evaluations.messages import Closed, EvaluationJob, body_of
from gateway.features.evaluations.store import RESULTS_AT_ONCE, Evaluation, EvaluationStore, Model
from gateway.state.fitted_store import FittedError, FittedStore, Kind, identify_scores
from monitoring.datasets.build_job import KeptSource
from monitoring.datasets.leaks import describe_leaks, find_leaks, get_request, tell_leaks
from monitoring.datasets.rows import DataRow, fold_text, input_of
from monitoring.evaluation.report import compare_held_out, compare_with_floor, report
from monitoring.evaluation.results import RowResult
from monitoring.helper_process import JobError, run_job
from monitoring.redis_address import open_async_redis
from monitoring.texts import Unsealable
from router.embedding import EmbeddingError, StaticEmbedding, load_deep
from router.model_bytes import MODEL_BYTES_MAX
from router.scope_model import ScopeError, ScopeModel

DIGITS = 6
SUMMARY = ("rows", "groups", "delta", "apgr", "apgr_low", "shown_to_help")
"""The figures of a model that people want, of its part of the report."""


async def close(job: EvaluationJob) -> Closed:
    """Read the results and make the report. Raises RedisError."""
    try:
        return await _close(job)
    except Unsealable as error:
        return Closed(unsealable=str(error))


async def _close(job: EvaluationJob) -> Closed:
    async with open_async_redis(job.redis_url, socket_timeout=30, socket_connect_timeout=5) as redis:
        seals = job.keys.seals()
        store = EvaluationStore(redis, job.retention_seconds, lambda: seals)
        evaluation = await store.get(job.evaluation)
        if evaluation is None:
            return Closed(error="There is no such evaluation any more.")
        results = {arm: [result async for result in store.results_of_arm(evaluation, arm)] for arm in evaluation.arms}
        closed = Closed(report(results, evaluation.classes, evaluation.notes, job.seed))
        await _look_for_leaks(store, evaluation, results, closed.report, job)
        if job.production is not None:
            inputs = [fold_text(get_request(row)) async for row in store.rows(evaluation) if not row.repeat]
            closed.report["production"] = _compare_with_production(inputs, evaluation.task, job.production)
        if not (evaluation.calibrate or evaluation.fit_gain):
            return closed
        from gateway.features.evaluations import fits as evaluation_fits  # noqa: PLC0415 - it loads scikit-learn

        rows = store.rows(evaluation)
        texts = {row.number: body_of(row, evaluation.version).selected(job.selector) async for row in rows}
        if not texts:
            return Closed(error="Its rows are gone: it was ended meanwhile, or all of them were erased.")
        results = {arm: [result for result in of if result.number in texts] for arm, of in results.items()}
        if evaluation.calibrate and "adapter" in results:
            try:
                scope = await _scope(redis, evaluation.version, list(map(texts.get, range(evaluation.rows))), job)
            except (ScopeError, EmbeddingError, FittedError) as error:
                closed.report["calibration"] = evaluation_fits.explain_no_calibration(results, job, str(error))
            else:
                await store.keep_scope(evaluation, scope.scores)
                logprobs = await _logprobs(store, evaluation) if job.tokens is not None else None
                fitted = evaluation_fits.calibrate(results, scope.scores, logprobs, job)
                _take(closed, evaluation, "confidence", "calibration", *fitted, scope=scope.digest, tokens=job.tokens)
                if scope.model is not None:
                    thresholds, data = evaluation_fits.set_scope_thresholds(results, scope.model, scope.scores, job)
                    closed.report["calibration"]["thresholds"] = thresholds
                    if data:
                        summary = {
                            **scope.summary,
                            "scores_as": scope.digest,
                            "evaluation": evaluation.id,
                            "thresholds": thresholds,
                        }
                        closed.models.insert(0, Model("scope", data, summary))
        if evaluation.fit_gain and "adapter" in results and "general" in results:
            gained = evaluation_fits.estimate_gain(results, texts, job)
            _take(closed, evaluation, "gain", "gain", *gained, selector=job.selector)
        return closed


async def _look_for_leaks(
    store: EvaluationStore,
    evaluation: Evaluation,
    results: Mapping[str, Sequence[RowResult]],
    report: dict[str, Any],
    job: EvaluationJob,
) -> None:
    """Add to a report the rows that the version was trained on, if they are known. Add also the results without
    training rows of any arm. Raises RedisError."""
    report["leaks"], report["held_out"] = None, {}
    if "adapter" not in evaluation.arms:
        return
    rows = [(row.number, get_request(row)) async for row in store.rows(evaluation) if not row.repeat]
    sets_by_arm = {arm: list(map(_read_inputs, files)) for arm, files in job.trained_on.items()}
    known_by_arm = {arm: [inputs for inputs in sets if inputs is not None] for arm, sets in sets_by_arm.items()}
    leaks = {arm: find_leaks(chain.from_iterable(contents), rows) for arm, contents in known_by_arm.items() if contents}
    if "adapter" in leaks:
        report["leaks"] = tell_leaks(leaks["adapter"], results)
        report["cannot_see"] += describe_leaks(leaks["adapter"], len(rows))
        unread = (count := len(sets_by_arm["adapter"])) - len(known_by_arm["adapter"])
        unknown = f"Of its {count} training sets {unread} can't be read here" if unread else ""
    else:
        unknown = "Its training set is not known here"
    if unknown:
        report["cannot_see"].append(f"{unknown}: rows that it was trained on may be among these.")
    trained_on = {arm: leak.rows for arm, leak in leaks.items()}
    report["held_out"] = compare_held_out(trained_on, results, evaluation.classes, job.seed)
    report["floor"] = compare_with_floor(trained_on.get("adapter", ()), results, evaluation.classes, job.seed)


def _compare_with_production(inputs: Sequence[str], task: str, production: KeptSource) -> dict[str, Any]:
    """The report's part on requests that are unlike all rows. If texts can't be read, the report does not fail."""
    import duckdb  # noqa: PLC0415 - a fifth of the start, where texts of production are kept

    from monitoring.datasets.coverage import measure_production  # noqa: PLC0415 - the same
    from monitoring.datasets.rows_from_traffic import read_kept  # noqa: PLC0415 - the same

    try:
        inputs_asked = [*read_kept(task, production, 0).asked.values()]
    except (RedisError, duckdb.Error, OSError, JobError):
        traceback.print_exc()
        inputs_asked = []
    return measure_production(inputs, inputs_asked)


def _read_inputs(trained_on: str) -> list[str] | None:
    """The inputs of the rows in this file; None if it can't be read."""
    try:
        with open(trained_on, "rb") as lines:
            return [input_of(msgspec.json.decode(line, type=DataRow)) for line in lines]
    except (OSError, msgspec.DecodeError):
        return None


def _take(
    closed: Closed, evaluation: Evaluation, kind: Kind, part: str, fields: dict[str, Any], data: bytes, **bound: Any
) -> None:
    """Add a part to the report, and the model, if it was fitted; it is valid only with what it is `bound` to."""
    closed.report[part] = fields
    if len(data) > MODEL_BYTES_MAX:
        fields["error"] = f"The {kind} model has {len(data):,} bytes, over {MODEL_BYTES_MAX:,}: give fewer rows."
    elif data:
        summary = {name: fields[name] for name in SUMMARY if name in fields}
        certified = [target["wrong_share_max"] for target in fields.get("targets", ()) if target["certified"]]
        least = {"least_certified": certified[0]} if certified else {}
        closed.models.append(Model(kind, data, {"evaluation": evaluation.id, **summary, **least, **bound}))


async def _logprobs(store: EvaluationStore, evaluation: Evaluation) -> list[list[float]]:
    """The first logprobs of the adapter's answers, by row number."""
    logprobs: list[list[float]] = []
    for first in range(0, evaluation.rows, RESULTS_AT_ONCE):
        logprobs += await store.logprobs(evaluation, "adapter", first, RESULTS_AT_ONCE)
    return logprobs


@dataclass
class _Scope:
    """The scope score of each text, and its model; None if no model reads the same part of a conversation as the
    task's selector. A calibration identifies the model by `digest`."""

    scores: list[float | None]
    model: ScopeModel | None = None
    digest: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)


async def _scope(redis: Redis, version: str, texts: Sequence[str | None], job: EvaluationJob) -> _Scope:
    """Score the texts; None for an erased row.

    Raises ScopeError, EmbeddingError or FittedError if there is a model that can't be used.
    """
    store = FittedStore(redis)
    entry = (await store.of(version)).get("scope")
    data = await store.bytes_of(entry) if entry is not None else None
    if entry is None or data is None or entry.summary.get("selector", job.selector) != job.selector:
        return _Scope([None] * len(texts))
    deep = load_deep(Path(job.minilm)) if job.minilm else None
    model = ScopeModel.from_bytes(data, StaticEmbedding.load(), deep)
    scores = [None if text is None else round(model.score(text).score, DIGITS) for text in texts]
    return _Scope(scores, model, identify_scores(entry), entry.summary)


if __name__ == "__main__":
    run_job(EvaluationJob, lambda job: asyncio.run(close(job)))
