"""A training in the form that a client of OpenAI's fine-tuning API reads. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gateway.errors import Problem
from gateway.features.fine_tuning.job_request import FILE_PREFIX, JOB_PREFIX
from gateway.features.training.store import Training

Json = dict[str, Any]
ENDED: Mapping[str, str] = {"done": "succeeded", "failed": "failed", "cancelled": "cancelled"}
AUTO: Mapping[str, Any] = {"n_epochs": "auto", "batch_size": "auto", "learning_rate_multiplier": "auto"}


def show_job(training: Training, progress: Mapping[str, Any], now: float) -> Json:
    """The job. `now` is in Unix seconds."""
    asked = training.request
    hyperparameters = AUTO | asked.get("hyperparameters", {})
    status, finish = ENDED.get(training.status), None
    if status is None:
        status = "running" if progress["started"] else "queued" if progress["prepared"] else "validating_files"
        if (each := progress["seconds_each"]) is not None:
            finish = round(now + each * (training.parameters["steps"] - progress["step"]))
    failed = {"code": "training_failed", "message": training.note, "param": None}
    return {
        "object": "fine_tuning.job",
        "id": JOB_PREFIX + training.id,
        "model": training.begin or training.task,
        "created_at": round(training.created_at),
        "finished_at": None if training.ended_at is None else round(training.ended_at),
        "fine_tuned_model": training.version,
        "status": status,
        "error": failed if status == "failed" else None,
        "training_file": FILE_PREFIX + training.data,
        "validation_file": FILE_PREFIX + training.heldout if training.heldout else None,
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "seed": training.parameters["seed"],
        "estimated_finish": finish,
        "user_provided_suffix": asked.get("suffix"),
        "metadata": asked.get("metadata"),
        "organization_id": "",
        "result_files": [],
        "integrations": [],
        "trained_tokens": None,
    }


def list_events(training: Training, points: Sequence[Mapping[str, Any]]) -> list[Json]:
    """The events of a job, the newest first."""
    began = _event(training, "begun", training.begun_at, f"The training of {training.task} has begun.")
    events = [began, *(_point(training, point) for point in points)]
    if training.ended_at is not None:
        said = f"The new version is {training.version}." if training.version else training.note
        level = {"failed": "error", "cancelled": "warn"}.get(training.status, "info")
        events.append(_event(training, training.status, training.ended_at, said, level))
    return events[::-1]


def list_checkpoints(training: Training) -> list[Json]:
    """The one checkpoint that is kept: the best one, which becomes the version."""
    if training.version is None:
        return []
    step, metrics = training.result.get("best_step", 0), training.result.get("metrics") or {}
    checkpoint = {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt-{training.id}-{step}",
        "created_at": round(training.ended_at or training.created_at),
        "fine_tuning_job_id": JOB_PREFIX + training.id,
        "fine_tuned_model_checkpoint": training.version,
        "step_number": step,
        "metrics": {"step": step, "full_valid_loss": metrics.get("heldout_loss")},
    }
    return [checkpoint]


def cut_page(rows: Sequence[Json], after: str | None, limit: int) -> Json:
    """A page of an OpenAI list: the rows after the one with this id. Raises Problem (404)."""
    ids = [row["id"] for row in rows]
    if after is not None and after not in ids:
        raise Problem("not_found", f"The list has no {after[:80]!r}.", "after")
    begin = 0 if after is None else ids.index(after) + 1
    page = rows[begin : begin + limit]
    bounds = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
    return {"object": "list", "data": page, "has_more": begin + limit < len(rows), **bounds}


def _point(training: Training, point: Mapping[str, Any]) -> Json:
    """The event of a loss."""
    step, steps, loss = point["step"], training.parameters["steps"], point["loss"]
    name, kind = ("valid_loss", "validation") if point["kind"] == "heldout" else ("train_loss", "training")
    data = {"step": step, "total_steps": steps, name: loss}
    at, said = point.get("at", training.begun_at), f"Step {step}/{steps}: {kind} loss={loss:.3f}"
    return _event(training, f"{point['kind']}-{step}", at, said) | {"type": "metrics", "data": data}


def _event(training: Training, name: str, at: float, message: str, level: str = "info") -> Json:
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{training.id}-{name}",
        "created_at": round(at),
        "level": level,
        "message": message,
        "type": "message",
        "data": {},
    }
