"""Admin endpoints for baselines, with which the signals of a version are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from pydantic import Field, model_validator

from gateway.endpoint_parts import Admin, Body, Operator, Reason, conflicts, require_version
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.evaluations.gate_baselines import counts_of
from gateway.features.quality.state import Quality
from gateway.openapi_parts import CHANGE_ERRORS, with_errors
from monitoring.quality.detectors.baselines import (
    CALIBRATION_ROWS_MIN,
    OF_MIN,
    RATE_MAX,
    Baseline,
    calibrate,
    declare_rate,
    get_rate,
    measure_counts,
)
from monitoring.quality.signal_table import SignalName, get_measure
from monitoring.quality.signals.entries import TEXT_MAX
from monitoring.quality.verdicts.quality import SignalReport
from monitoring.quality.verdicts.verdict import name_of
from monitoring.redis_time import read_redis_time
from serving.object_store import Change

router = APIRouter(prefix="/admin/v1", tags=["admins"])
COUNT_MAX = 10**12
HIDDEN_MAX = 0.05
"""A bound so far above the share that was seen hides degradations that matter: it is warned of."""


class CalibrationIn(Body):
    """Rows of the evaluation that other labellers have judged too, and how many of these they judged otherwise."""

    rows: int = Field(ge=CALIBRATION_ROWS_MIN, le=COUNT_MAX, description="How many were judged by both.")
    stricter: int = Field(ge=0, le=COUNT_MAX, description="Right in the evaluation, and wrong to the labellers.")
    milder: int = Field(ge=0, le=COUNT_MAX, description="Wrong in the evaluation, and right to the labellers.")


class BaselineIn(Body):
    """The baseline of a signal from now on: counts of wrong ones and of all, an evaluation, what was seen lately, or
    its own again."""

    signal: SignalName
    of_class: str | None = Field(
        None, min_length=1, max_length=TEXT_MAX, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$", description="Of this class alone."
    )
    wrong: float | None = Field(None, ge=0, le=COUNT_MAX, allow_inf_nan=False, strict=True)
    of: int | None = Field(None, ge=OF_MIN, le=COUNT_MAX, description="How many were judged.")
    evaluation: str | None = Field(
        None, min_length=1, max_length=64, description="Take what this evaluation of the version counted, by its id."
    )
    accept: bool = Field(
        False, description="Take what was seen lately; unlabelled signals and complaints learn it again."
    )
    remove: bool = Field(False, description="Remove what was set: the signal learns its own baseline again.")
    calibration: CalibrationIn | None = Field(
        None, description="Add the labellers' difference to the evaluation's baseline that is set."
    )
    reason: Reason
    expected_generation: int | None = Field(None, ge=0, le=2**53, description="409 if they have moved on since.")

    @model_validator(mode="after")
    def _check_form(self) -> BaselineIn:
        by_count = self.wrong is not None or self.of is not None
        others = (self.evaluation is not None) + (self.calibration is not None)
        if self.accept + self.remove + by_count + others != 1:
            raise ValueError("give either `accept`, `remove`, `evaluation`, `calibration`, or `wrong` and `of`")
        if self.calibration is not None and self.calibration.stricter + self.calibration.milder > self.calibration.rows:
            raise ValueError("calibration: more rows that differ than rows")
        if by_count and (self.wrong is None or self.of is None):
            raise ValueError("`wrong` and `of` go together")
        if self.wrong is not None and self.of is not None and self.wrong > self.of:
            raise ValueError("wrong: more than of: give the wrong ones of all that were judged")
        if not (self.accept or self.remove) and get_measure(self.signal) != "share":
            raise ValueError(f"signal: {self.signal} is not counted as wrong or right: accept what was seen lately")
        if self.of_class is not None and get_measure(self.signal) != "share":
            raise ValueError(f"of_class: {self.signal} has no classes")
        if self.of_class is not None and self.evaluation is not None:
            raise ValueError("of_class: an evaluation is of all classes")
        return self


@router.get("/tasks/{task}/quality/{version}/baselines", responses=with_errors("not_found"))
async def read_baselines(request: Request, task: str, version: str, _: Operator) -> dict[str, Any]:
    """The baselines of a version's signals, and their origin."""
    quality = feature_of(request, Quality)
    await require_version(quality.services, task, version)
    generation = await quality.services.objects.baselines.generation(version)
    baselines = await quality.services.objects.baselines.get(version) or {}
    judged = quality.monitored.summary.judgements.get(version)
    task_quality, _generation = await quality.store.of(task)
    now = await read_redis_time(quality.services.redis)
    verdict = task_quality.versions.get(version)
    stale = verdict is not None and verdict.stale_from is not None and verdict.stale_from <= now
    return {
        "task": task,
        "version": version,
        "generation": generation,
        "stale": stale,
        "set": baselines,
        "in_force": {}
        if judged is None
        else {name_of(report): report.baseline for report in judged.reports if report.baseline},
    }


@router.post("/tasks/{task}/quality/{version}/baseline", responses=with_errors(*CHANGE_ERRORS))
async def set_baseline(request: Request, task: str, version: str, body: BaselineIn, admin: Admin) -> dict[str, Any]:
    """Compare a signal with another baseline from now on, or with its own. The audit has the former baseline."""
    quality = feature_of(request, Quality)
    await require_version(quality.services, task, version)
    now = await read_redis_time(quality.services.redis)
    name = body.signal if body.of_class is None else f"{body.signal}:{body.of_class}"
    with conflicts():
        generation = await quality.services.objects.baselines.generation(version)
        baselines = await quality.services.objects.baselines.get(version) or {}
        after = {other: each for other, each in baselines.items() if other != name}
        baseline: Baseline | None = None
        if body.remove:
            if name not in baselines:
                raise Problem("state_conflict", f"No baseline of {version}'s {name} was set.", "signal")
            await _see_that_it_learns(quality, task, version, "remove")
        elif body.accept:
            if get_measure(body.signal) == "complaints":
                await _see_that_it_learns(quality, task, version, "accept")
            baseline = _accepted(quality, task, version, body, admin.public, now)
        elif body.calibration is not None:
            baseline = _calibrated(baselines.get(name), body.calibration, body, admin.public, now)
        else:
            baseline = await _counted(quality, version, body, admin.public, now)
        if baseline is not None:
            after[name] = msgspec.to_builtins(baseline)
        expected = generation if body.expected_generation is None else body.expected_generation
        step = quality.services.begin_step(admin.public)
        step.note(
            "monitor.baseline",
            version,
            before={"signal": name, **baselines[name]} if name in baselines else None,
            after={"signal": name, "reason": body.reason, **after.get(name, {"removed": True})},
            generation=expected + 1,
        )
        generation = await step.take([Change(quality.services.objects.baselines, version, after, expected)])
    warnings = [] if baseline is None else list(_doubts(quality, task, version, body, baseline))
    return {"task": task, "version": version, "generation": generation, "set": after, "warnings": warnings}


async def _see_that_it_learns(quality: Quality, task: str, version: str, param: str) -> None:
    """Raises Problem (409) if the version is degraded: without a baseline its recovery could not be found."""
    task_quality, _ = await quality.store.of(task)
    if (verdict := task_quality.versions.get(version)) is not None and verdict.verdict == "degraded":
        text = f"{version} is degraded, and learns nothing meanwhile: set another baseline, or pin it healthy first."
        raise Problem("state_conflict", text, param)


async def _counted(quality: Quality, version: str, body: BaselineIn, by: str, now: float) -> Baseline:
    """The baseline from counts or an evaluation. Raises Problem: 400 if no value could be above it, 404 if the
    evaluation does not exist, 409 if it has no counts."""
    if body.evaluation is None:
        assert body.wrong is not None, "the body has seen to it"
        assert body.of is not None, "the body has seen to it"
        wrong, of, source, param = float(body.wrong), float(body.of), body.reason, "wrong"
    else:
        wrong, of = await _evaluated(quality, version, body.evaluation)
        source, param = f"evaluation {body.evaluation}: {body.reason}", "evaluation"
    try:
        return measure_counts("admin", wrong, of, now, by, source)
    except ValueError as error:
        raise Problem("invalid_value", str(error), param) from None


def _calibrated(before: Any, rows: CalibrationIn, body: BaselineIn, by: str, now: float) -> Baseline:
    """The present counted baseline, corrected by the labellers' difference. A second calibration replaces the first.

    Raises Problem: 409 without a counted baseline, 400 if no value could be above the result.
    """
    counted = None if before is None else msgspec.convert(before, Baseline)
    if counted is None or not counted.of:
        text = f"{body.signal} has no baseline of an evaluation: set it with `evaluation`, or `wrong` and `of`, first."
        raise Problem("state_conflict", text, "signal")
    differences = f"{rows.stricter} stricter and {rows.milder} milder of {rows.rows} rows"
    source = f"calibration, {differences}: {body.reason}"
    try:
        return calibrate(counted, rows.stricter, rows.milder, rows.rows, now, by, source)
    except ValueError as error:
        raise Problem("invalid_value", str(error), "calibration") from None


async def _evaluated(quality: Quality, version: str, name: str) -> tuple[float, float]:
    """The number of rows that the version answered wrong, and of all rows. Raises Problem (404, 409)."""
    evaluation = await quality.evaluations.store.get(name) if name.isalnum() else None
    if evaluation is None or evaluation.version != version:
        raise Problem("not_found", f"There is no evaluation {name[:80]!r} of {version}.", "evaluation")
    counts = counts_of(evaluation)
    if counts is None:
        raise Problem("state_conflict", f"{name} has no answers of {version} that were counted.", "evaluation")
    return counts


def _accepted(quality: Quality, task: str, version: str, body: BaselineIn, by: str, now: float) -> Baseline:
    """The baseline from recent labels. Raises Problem (409) if there are none, or too few."""
    complaint_metric = quality.services.settings.tasks[task].monitor.complaint_metric
    if get_measure(body.signal) == "complaints" and complaint_metric is None:
        text = f"{task} has no complaints: set tasks.{task}.monitor.complaint_metric to the metric that complains."
        raise Problem("state_conflict", text, "signal")
    if get_measure(body.signal) not in ("share", "difference"):
        return Baseline(kind="admin", wrong=0.0, of=0.0, upper=1.0, at=now, by=by, source="learned again")
    report = _last_report(quality, version, body)
    if report is None or report.observed < OF_MIN or report.low is None or report.high is None:
        raise Problem("state_conflict", _too_few(body, version, 0.0 if report is None else report.observed), "signal")
    low, high = report.low, report.high
    source = f"{100 * low:.1f}% to {100 * high:.1f}% lately: {body.reason}"
    if get_measure(body.signal) == "difference":
        return Baseline(kind="admin", wrong=0.0, of=0.0, upper=high, at=now, by=by, source=source)
    return declare_rate(min(RATE_MAX, max(1.0 - RATE_MAX, high)), now, by, source)


def _last_report(quality: Quality, version: str, body: BaselineIn) -> SignalReport | None:
    """The last report on the signal; None if there was no label for it."""
    judged = quality.monitored.summary.judgements.get(version)
    reports = judged.reports if judged is not None else []
    return next(
        (report for report in reports if (report.signal, report.of_class) == (body.signal, body.of_class)), None
    )


def _too_few(body: BaselineIn, version: str, observed: float) -> str:
    """The message that there are too few labels or pairs to accept."""
    of_pairs = get_measure(body.signal) == "difference"
    amount = f"{observed:g} {'pair' if of_pairs else 'label'}{'' if observed == 1 else 's'}"
    signal = body.signal if body.of_class is None else f"{body.signal}, class {body.of_class},"
    instead = "" if of_pairs else ", or give `wrong` and `of` as they were counted"
    return f"{signal} of {version} has {amount}, and accepting takes at least {OF_MIN}: wait for more{instead}."


def _doubts(quality: Quality, task: str, version: str, body: BaselineIn, baseline: Baseline) -> Iterator[str]:
    """Warnings of likely mistakes: a bound far above the rate, and a class without labels."""
    report = _last_report(quality, version, body)
    rate = get_rate(baseline)
    if body.accept and report is not None and get_measure(body.signal) == "share":
        rate = report.estimate
    if rate is not None and body.calibration is None and baseline.upper - rate > HIDDEN_MAX:
        yield (
            f"{rate:.1%} of the labels were wrong, and as many as {baseline.upper:.1%} may be by them: nothing under "
            "that is ever found. Set it again from more labels."
        )
    if body.of_class is not None and (report is None or not report.observed):
        tag = quality.services.settings.tasks[task].monitor.class_tag
        key = f"tasks.{task}.monitor.class_tag"
        named = f"Labels name theirs by the tag {tag!r}." if tag else f"{key} is not set, so that no label has a class."
        yield f"{body.signal} of {version} has no label of the class {body.of_class} yet: is that its name? {named}"
