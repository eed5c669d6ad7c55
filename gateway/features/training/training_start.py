"""The beginning of a training: it reports all faults that it can find before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.configuration.training import RunnerName
from gateway.errors import Problem
from gateway.features.datasets.state import read_card
from gateway.features.releases.adding import Pusher
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training, id_of
from monitoring.redis_time import read_redis_time
from serving.adapters.manifest import FILE_BYTES_MAX, ManifestError, from_json, to_json
from serving.adapters.plain_yaml import write_plain_yaml
from serving.adapters.versions_and_aliases import Version
from serving.object_store import Stale
from serving.training.trainer import compute_trainer_digest

RANK = 8
TOLD = ("id", "task", "data", "runner", "begin", "parameters")
"""The fields of a new training in its audit entry."""
GOLDEN_KEPT = 3
MANIFEST_BYTES_MAX = FILE_BYTES_MAX - (16 << 10)
"""The rest of the file is for the provenance, which is known only after the training."""


@dataclass(frozen=True)
class WantedTraining:
    """A training to begin. `data` is the digest of a data set or an uploaded file, `heldout` of such a file.
    `first_manifest` is for a task without a version; it does not change the training's id."""

    task: str
    data: str
    parameters: Mapping[str, Any]
    begin: str | None = None
    pool: str | None = None
    runner: RunnerName | None = None
    manifest: Mapping[str, Any] | None = None
    first_manifest: Mapping[str, Any] | None = None
    heldout: str = ""
    stage: bool = False
    request: dict[str, Any] = field(default_factory=dict)


async def draft_training(trainings: Trainings, wanted: WantedTraining, pusher: Pusher) -> Training:
    """The requested training, not yet begun. Raises Problem (400, 404, 409)."""
    services, task = trainings.services, wanted.task
    snapshot = await services.snapshot.refresh()
    begin = _version_to_begin(snapshot.versions, task, wanted.begin)
    pool = _pool(trainings, wanted.pool or (begin.pool if begin is not None else None))
    if begin is not None and begin.pool != pool:
        raise Problem("invalid_value", f"{begin.name} is of the pool {begin.pool}: train for that one.", "begin")
    runner = wanted.runner or services.settings.training.runner
    await _see_that_it_can_run(trainings, runner)
    digest = await asyncio.to_thread(_digest_of, trainings, wanted.data, task)
    if wanted.heldout:
        await asyncio.to_thread(trainings.datasets.require_file, wanted.heldout, "heldout")
    parameters = dict(wanted.parameters)
    rank = parameters["rank"] or (begin.rank if begin is not None else RANK)
    rank_max = services.settings.pools[pool].max_lora_rank
    if rank > rank_max:
        text = f"The pool {pool} takes adapters of rank {rank_max} at most (max_lora_rank)."
        raise Problem("invalid_value", text, "parameters.rank")
    parameters["rank"] = rank
    base = services.control.adapters.bases[pool].fingerprint
    manifest = _manifest(trainings, wanted, base)
    now = await read_redis_time(services.redis)
    return Training(
        id=id_of(task, pool, digest, wanted.begin, parameters, base, wanted.manifest, wanted.heldout),
        task=task,
        pool=pool,
        data=digest,
        runner=runner,
        place=trainings.place,
        parameters=parameters,
        manifest=manifest,
        heldout=wanted.heldout,
        begin=wanted.begin,
        stage=wanted.stage,
        request=wanted.request,
        base=base,
        by=pusher.public,
        owner=pusher.owner,
        code=compute_trainer_digest(),
        created_at=now,
        begun_at=now,
    )


async def begin_run(trainings: Trainings, training: Training, again: bool = False) -> tuple[Training, bool]:
    """Begin a training. Return it, and whether it existed. A failed one continues from its checkpoint, unless it begins
    `again`. A stopped one may have learned erased texts, so it begins again. A running or done one does not change.
    Raises Stale and RedisError."""
    before, generation = await trainings.store.get(training.id)
    if before is not None and not again and before.status in ("running", "done"):
        return before, True
    goes_on = before is not None and not again and before.status == "failed"
    if before is not None and goes_on:
        training = msgspec.structs.replace(training, created_at=before.created_at)
    step = trainings.services.begin_step(training.by)
    audited: dict[str, Any] = {name: getattr(training, name) for name in TOLD}
    step.note("training.begin", training.task, None, audited | {"again": again}, generation=generation + 1)
    try:
        await step.take([trainings.store.change(training, generation)])
    except Stale:  # another request may have begun it at this moment
        at_once, _ = await trainings.store.get(training.id)
        if again or at_once is None or at_once.status != "running":
            raise
        return at_once, True
    if not goes_on:  # not before: where another has changed it, its progress stays
        await trainings.store.forget_progress(training.id)
    await trainings.store.tidy()
    await trainings.services.snapshot.refresh()
    return training, before is not None


async def _see_that_it_can_run(trainings: Trainings, runner: RunnerName) -> None:
    """Raises Problem (409)."""
    settings = trainings.services.settings.training
    if (lack := settings.find_lack(runner)) is not None:
        raise Problem("state_conflict", lack, "runner")
    if runner == "local" and settings.python is not None and not await asyncio.to_thread(settings.python.is_file):
        raise Problem("state_conflict", f"There is no {settings.python} (training.python).", "runner")


def _version_to_begin(versions: Mapping[str, Version], task: str, name: str | None) -> Version | None:
    version = versions.get(name or "")
    if name is not None and (version is None or version.task != task):
        raise Problem("not_found", f"{task} has no version {name[:80]!r}.", "begin")
    return version


def _pool(trainings: Trainings, named: str | None) -> str:
    bases = trainings.services.control.adapters.bases
    if named is not None and named not in bases:
        raise Problem("not_found", f"There is no pool {named[:80]!r} that takes adapters.", "pool")
    if not bases:
        raise Problem("state_conflict", "No pool takes adapters: set the base_folder of one.", "pool")
    return named or next(iter(bases))


def _digest_of(trainings: Trainings, digest: str, task: str) -> str:
    """The whole digest of the data. Blocks. Raises Problem (404; 400 for another task's), Unreadable."""
    files = trainings.find_files(digest)
    if files is None:
        text = f"There is no data set {digest}, or more than one: `apprentice datasets list` has them."
        raise Problem("not_found", text, "data")
    if files.heldout is None:
        return digest
    card = read_card(files.train.parent)
    if card["task"] != task:
        raise Problem("invalid_value", f"The data set is of the task {card['task']!r}, not of {task!r}.", "data")
    return files.train.parent.name


def _manifest(trainings: Trainings, wanted: WantedTraining, base: str) -> dict[str, Any]:
    """The manifest of the new version. Golden answers belong to another adapter, and are left out.

    Raises Problem (400).
    """
    task, manifest = wanted.task, wanted.manifest
    if manifest is None:
        manifest = _latest_manifest(trainings, task) or wanted.first_manifest
    if manifest is None:
        text = (
            f"{task} has no version whose manifest the new one could take: give one (--manifest FILE) with `task` and "
            "`general_prompt`, or let `apprentice adopt` draft one from your examples."
        )
        raise Problem("missing_field", text, "manifest")
    own = {"base_fingerprint": base, "provenance": {}, "coverage": {}, "calibration": {}}
    try:
        made = to_json(from_json({**manifest, **own}))
    except ManifestError as error:
        raise Problem("invalid_value", f"The manifest can't be used: {error}", "manifest") from None
    if made["task"] != task:
        raise Problem("invalid_value", f"The manifest is for the task {made['task']!r}.", "manifest")
    golden = [{"prompt": each["prompt"], "expected": None} for each in made["golden"]][:GOLDEN_KEPT]
    made = {**made, "golden": golden}
    if (size_bytes := len(write_plain_yaml(made))) > MANIFEST_BYTES_MAX:
        text = f"The manifest has {size_bytes} bytes as JSON, over the limit of {MANIFEST_BYTES_MAX}: shorten it."
        raise Problem("invalid_value", text, "manifest")
    return made


def _latest_manifest(trainings: Trainings, task: str) -> Mapping[str, Any] | None:
    """The manifest of the version that leads, or else of the newest one that was not retired."""
    snapshot = trainings.services.snapshot.current
    alias = snapshot.aliases.get(task)
    latest = snapshot.versions.get(alias.leading) if alias is not None else None
    if latest is None:
        ours = [each for each in snapshot.versions_by_task.get(task, ()) if each.state != "retired"]
        latest = max(ours, key=lambda version: version.number, default=None)
    return None if latest is None else latest.manifest
