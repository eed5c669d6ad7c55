"""Models fitted from an evaluation's rows: a version's confidence model, scope thresholds and learned routing.

Import this module only when such a model is wanted: scikit-learn takes longer to load than a report takes to make.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.features.evaluations.messages import EvaluationJob
from monitoring.evaluation.results import RowResult
from router.confidence_model import ConfidenceFeatures, ConfidenceModel
from router.fitted import CALIBRATION_ROWS_MIN
from router.fitting.confidence import CalibrationRow, draw_one_of_each, fit_confidence
from router.fitting.errors import FittingError
from router.fitting.gain import GainRow, fit_gain
from router.fitting.routed import route_rows
from router.scope_model import ScopeModel
from router.task_choice import DEFERRED_SHARE

DELTA = 0.1
TARGETS = tuple(percent / 100 for percent in range(1, 21))
DIGITS = 6
Results = Mapping[str, Sequence[RowResult]]


def calibrate(
    results: Results, scope: Sequence[float | None], logprobs: Sequence[Sequence[float]] | None, job: EvaluationJob
) -> tuple[dict[str, Any], bytes]:
    """The calibration's part of the report, and the model; no bytes if it could not be fitted.

    `logprobs` are of the answers' first tokens, if these decide. Of each group one row counts, drawn with the seed.
    """
    part = _untold(results, job) | {"with_scope": any(value is not None for value in scope)}
    there = _answered(results)
    if there and part["without_logprobs"] == len(there):
        return part | {"error": "The engine sent no logprobs: nothing can be calibrated without them."}, b""
    short = sum(_is_short(row, logprobs[row.number], job.tokens) for row in there) if logprobs is not None else 0
    if short:
        error = f"Of {short} answers the logprobs of the first {job.tokens} tokens are not kept: evaluate with --again."
        return part | {"error": error}, b""
    row_count = len(there)
    there = [there[at] for at in draw_one_of_each([row.group for row in there], job.seed)]
    rows = [_row(row, scope[row.number], None if logprobs is None else logprobs[row.number]) for row in there]
    general = {row.number: row.right for row in results.get("general", ())}
    try:
        model = fit_confidence(rows, job.seed, DELTA, job.tokens)
        points = route_rows(rows, [general[row.number] for row in there] if general else None, job.seed, job.tokens)
    except FittingError as error:
        few = f" Of each group of equal or related rows one counts: {len(there)} of {row_count}."
        return part | {"error": f"{error}{few if len(there) < row_count else ''}"}, b""
    if job.wrong_share_max is not None:
        part["target"] = _target(model, job.wrong_share_max)
    part["targets"] = [_target(model, target) for target in TARGETS]
    part["routed"] = [
        {name: None if value is None else round(value, DIGITS) for name, value in point._asdict().items()}
        for point in points
    ]
    return part, model.to_json()


def set_scope_thresholds(
    results: Results, model: ScopeModel, scores: Sequence[float | None], job: EvaluationJob
) -> tuple[dict[str, Any], bytes]:
    """The thresholds' part of the report, and the version's scope model with thresholds from these rows, which are in
    scope, instead of training prompts. No bytes if the rows are too few. Of each group one row counts.
    """
    there = results["adapter"]
    rows = (there[at] for at in draw_one_of_each([row.group for row in there], job.seed))
    scores_known = [score for score in (scores[row.number] for row in rows) if score is not None]
    share = DEFERRED_SHARE if job.deferred_share is None else job.deferred_share
    old = model.threshold(share)
    part: dict[str, Any] = {
        "rows": len(scores_known),
        "deferred_share": share,
        "deferred_before": round(sum(score < old for score in scores_known) / max(1, len(scores_known)), DIGITS),
        "threshold_before": _finite(old),
        "threshold": None,
        "error": None,
    }
    if len(scores_known) < CALIBRATION_ROWS_MIN:
        return part | {
            "error": f"The threshold of the scope needs {CALIBRATION_ROWS_MIN} different rows: it stays as it is."
        }, b""
    other = model.resting_on(scores_known)
    return part | {"threshold": _finite(other.threshold(share))}, other.to_bytes()


def _finite(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None


def estimate_gain(results: Results, texts: Mapping[int, str], job: EvaluationJob) -> tuple[dict[str, Any], bytes]:
    """The learned routing's part of the report, and the model; no bytes if it could not be fitted.

    `texts` are by row number.
    """
    general = {result.number: result for result in results["general"] if result.outcome != "failed"}
    rows = [
        GainRow(texts[result.number], result.right, general[result.number].right, result.group)
        for result in results["adapter"]
        if result.outcome != "failed" and result.number in general
    ]
    part: dict[str, Any] = {"rows": len(rows), "groups": len({row.group for row in rows}), "error": None}
    try:
        model = fit_gain(rows, job.seed)
    except FittingError as error:
        return part | {"error": str(error)}, b""
    shown = {"shown_to_help": model.shown_to_help}
    return part | msgspec.to_builtins(model.measured) | shown, model.to_bytes()


def explain_no_calibration(results: Results, job: EvaluationJob, error: str) -> dict[str, Any]:
    """The calibration's part of the report, if the rows could not be scored."""
    return _untold(results, job) | {"error": error}


def _untold(results: Results, job: EvaluationJob) -> dict[str, Any]:
    """The calibration's part of the report before anything is fitted."""
    there = _answered(results)
    return {
        "rows": len(there),
        "groups": len({row.group for row in there}),
        "delta": DELTA,
        "tokens": job.tokens,
        "without_logprobs": sum(row.sureness is None for row in there),
        "with_scope": False,
        "error": None,
        "target": None,
        "targets": [],
        "routed": [],
    }


def _answered(results: Results) -> list[RowResult]:
    """The adapter's rows without failed ones, which have no answer."""
    return [row for row in results["adapter"] if row.outcome != "failed"]


def _is_short(row: RowResult, logprobs: Sequence[float], tokens: int | None) -> bool:
    """Return whether fewer first logprobs of an answer are kept than its judgement needs."""
    length = row.sureness.length if row.sureness is not None else 0
    return len(logprobs) < (length if tokens is None else min(length, tokens))


def _row(row: RowResult, scope: float | None, logprobs: Sequence[float] | None) -> CalibrationRow:
    """An answer for the calibration: with its first logprobs, or with the features of the whole answer."""
    if logprobs is not None or row.sureness is None:
        return CalibrationRow(logprobs or [], scope, row.contract_kept, row.right)
    sure = row.sureness
    features = ConfidenceFeatures(sure.minimum, sure.quantile_10, sure.mean, sure.length, scope, row.contract_kept)
    return CalibrationRow([], scope, row.contract_kept, row.right, features)


def _target(model: ConfidenceModel, wrong_share_max: float) -> dict[str, Any]:
    """The share of answers kept at one target of wrong answers, if a threshold can be certified for it."""
    certificate = model.certificate(wrong_share_max)
    return {
        "wrong_share_max": wrong_share_max,
        "certified": certificate is not None,
        "threshold": None if certificate is None else round(certificate.threshold, DIGITS),
        "kept_share": 0.0 if certificate is None else round(certificate.kept / certificate.rows, DIGITS),
        "wrong_share": 0.0 if certificate is None else round(certificate.wrong / certificate.rows, DIGITS),
        "wrong_share_bound": None if certificate is None else round(certificate.wrong_share_max, DIGITS),
    }
