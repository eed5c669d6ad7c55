"""The end of a training: its adapter is registered like a pushed one, and its state changes once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from gateway.errors import Problem
from gateway.features.releases.adding import Pusher, add_version
from gateway.features.training.state import Trainings
from gateway.features.training.store import Status, Training
from gateway.features.training.version_evaluation import stage_version
from gateway.server.adapter_uploads import Upload
from monitoring.redis_time import read_redis_time
from serving.adapters.adapter_folder import MANIFEST_FILE
from serving.adapters.plain_yaml import write_plain_yaml
from serving.adapters.registry import RegistryError
from serving.object_store import Stale, Unchanged

log = logging.getLogger(__name__)


class TrainingFault(Exception):
    """The training failed; the message gives the remedy."""


async def enter_result(trainings: Trainings, training: Training, adapter: Path, result: dict[str, Any]) -> None:
    """Register the adapter in a folder, with the training as its provenance, and note the version.

    If it is repeated after a kill, it gives the same version. Raises RedisError, and TrainingFault, also if the
    training no longer runs. Then nothing is registered.
    """
    now, generation = await trainings.store.get(training.id)
    if not is_running(now, training):
        raise TrainingFault("The training runs no more: its adapter is not taken.")
    prepared = (await trainings.store.progress(training.id)).get("prepared") or {}
    provenance = provenance_of(trainings, training, result, prepared.get("older") or [])
    manifest = training.manifest | {"provenance": provenance}
    path = adapter.parent / MANIFEST_FILE
    try:
        await asyncio.to_thread(path.write_bytes, write_plain_yaml(manifest))
        pusher = Pusher(training.by, training.owner)
        still = Unchanged(trainings.store.object_store, training.id, generation)
        version, _ = await add_version(
            trainings.releases, pusher, Upload(adapter, path, None, {}), training.task, training.pool, (still,)
        )
    except (Problem, OSError) as error:
        raise TrainingFault(f"The adapter was trained, and not taken: {error}") from error
    if training.stage:
        try:
            await stage_version(trainings.releases.evaluations, version)
        except RegistryError as error:
            log.warning("%s was trained, and can't be loaded: %s", version.name, error)
    await end_training(trainings, training, "done", "", result, version.name)


def provenance_of(
    trainings: Trainings, training: Training, result: dict[str, Any], rehearsed: list[str]
) -> dict[str, Any]:
    """The origin of a trained version, as its manifest keeps it. `rehearsed` are digests of older data sets."""
    trained_at = datetime.fromtimestamp(training.begun_at, UTC).isoformat(timespec="seconds")
    return {
        "training": training.id,
        "dataset": training.data,
        "dataset_digest": f"sha256:{training.data}",
        "rehearsed": rehearsed,
        "base": training.base,
        "base_model": trainings.services.settings.pools[training.pool].base_model,
        "begun_from": training.begin,
        "parameters": training.parameters,
        "seed": training.parameters["seed"],
        "code": training.code,
        "framework": result.get("framework"),
        "metrics": result.get("metrics") or {},
        "trained_by": training.by,
        "trained_at": trained_at,
    }


def is_running(now: Training | None, training: Training) -> bool:
    """Return whether a training runs, and was not begun again since it was read."""
    return now is not None and now.status == "running" and now.begun_at == training.begun_at


async def cancel_training(trainings: Trainings, training: Training, actor: str) -> Training:
    """Stop a training that runs. Raises RedisError, and Problem (409) if it no longer runs."""
    after = await end_training(trainings, training, "cancelled", f"It was stopped by {actor}.", actor=actor)
    if after is None:
        raise Problem("state_conflict", "The training has ended: see how it ended.")
    await trainings.services.snapshot.refresh()
    return after


async def end_training(
    trainings: Trainings,
    training: Training,
    status: Status,
    note: str,
    result: dict[str, Any] | None = None,
    version: str | None = None,
    actor: str = "system",
) -> Training | None:
    """Move a running training to its end; None if it has ended already, or was begun again. Raises RedisError."""
    while True:
        now, generation = await trainings.store.get(training.id)
        if now is None or not is_running(now, training):
            return None
        ended_at = await read_redis_time(trainings.services.redis)
        after = msgspec.structs.replace(
            now, status=status, note=note, result=result or {}, version=version, ended_at=ended_at
        )
        step = trainings.services.begin_step(actor)
        audited = {"training": now.id, "status": status, "note": note, "version": version}
        step.note("training.end", now.task, {"training": now.id, "status": now.status}, audited)
        with contextlib.suppress(Stale):
            await step.take([trainings.store.change(after, generation)])
            return after
