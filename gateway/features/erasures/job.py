"""Background job of one gateway that carries erasures out. A process of its own rewrites the files.

If an erasure fails, or its gateway stops, all of it is repeated until it succeeds.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Sequence, Set
from typing import Any

import msgspec

from gateway.background.job_process import make_command, run_process
from gateway.background.lease import list_folder_holders
from gateway.errors import Problem
from gateway.features.erasures.state import Erasures
from gateway.features.erasures.store import Erasure
from gateway.features.records.append_file_rewrites import rewrite_now
from gateway.features.records.archiving import text_keys_of
from gateway.features.training.store import Training
from gateway.features.training.training_end import end_training

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 5.0
AGAIN_SECONDS = 600.0
"""Time until an incomplete erasure is tried again, since each try locks the archive and the data sets."""
RUN_SECONDS_MAX = 3600.0
AT_ONCE = 500
INCOMPLETE = "It is not complete, since places can't be read or changed; fix or delete them: {}."
PLACES_SHOWN = 20
TRAINING_NOTE = "Texts of its rows were erased ({}): run the command again, without them."
ADDED = ("texts", "feedback", "suites", "evaluated", "trained")
"""Figures that are added up, since a repeated erasure does not find texts that were erased before."""
COMMAND = make_command("monitoring.erasure_run")


async def keep_erasing(erasures: Erasures) -> None:
    """Carry out the waiting erasures, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = erasures.services.lease_job("erasures")
    due_at: dict[str, float] = {}
    """The time of the next try of each incomplete erasure, by time.monotonic."""

    async def erase_all() -> None:
        for erasure in await erasures.store.waiting():
            if time.monotonic() >= due_at.get(erasure.id, 0.0) and await _erase(erasures, erasure):
                due_at[erasure.id] = time.monotonic() + AGAIN_SECONDS

    await lease.repeat(erase_all, LOOK_INTERVAL_SECONDS, wake=erasures.wake)


async def _erase(erasures: Erasures, erasure: Erasure) -> bool:
    """Carry out one erasure. Returns whether places are left that can't be read or changed. Raises RedisError."""
    await erasures.store.mark(erasure)  # the gateway that accepted it may have stopped before it did so
    try:
        erased = await _erase_files(erasures, erasure)
    except (Problem, OSError) as fault:
        text = fault.message if isinstance(fault, Problem) else f"It can't begin: {fault}."
        log.error("the erasure %s is not done, and will be tried again: %s", erasure.id, text)
        await erasures.store.note(msgspec.structs.replace(erasure, error=text))
        return False
    requests, unread = erased.pop("requests"), erased.pop("unread")
    learning = await _find_trainings(erasures, frozenset(erased.pop("trainings")))
    datasets = _add_sets(erasure.datasets, erased.pop("datasets"))
    erasure = msgspec.structs.replace(
        erasure,
        found=max(erasure.found, len(requests)),
        datasets=datasets,
        versions=list_versions_of(erasures, {each["digest"] for each in datasets}),
        trainings=sorted({*erasure.trainings, *(training.id for training in learning)}),
        **{name: getattr(erasure, name) + erased.pop(name) for name in ADDED},
        **erased,
    )
    await erasures.store.note(erasure)  # a repeated erasure would not find these
    await _end_trainings(erasures, erasure, learning)
    await erasures.fitting.samples.forget_requests(frozenset(requests))
    reviews = await _forget_reviews(erasures, erasure, requests)
    examples = await erasures.retraining.store.forget_requests(frozenset(requests))
    erasure = msgspec.structs.replace(erasure, reviews=erasure.reviews + reviews, examples=erasure.examples + examples)
    await erasures.store.note(erasure)
    await _end(erasures, erasure, describe_unread(unread))
    return bool(unread)


async def _end(erasures: Erasures, erasure: Erasure, error: str | None) -> None:
    """Note the end of an erasure, or the places for which it is tried again. Raises RedisError."""
    if error is None or error != erasure.error:
        file = await rewrite_now(erasures.services.redis)
        elsewhere = await _find_elsewhere(erasures)
        erasure = msgspec.structs.replace(erasure, append_only_file=file, elsewhere=elsewhere, error=error)
    if error is not None:
        log.error("the erasure %s is not done, and will be tried again: %s", erasure.id, error)
        await erasures.store.note(erasure)
        return
    done = msgspec.structs.replace(erasure, state="done", names=[])  # there may be a name for each key that ever was
    shown = {name: value for name, value in msgspec.to_builtins(done).items() if name not in ("requests", "names")}
    await erasures.services.control.audit.append(erasure.by, "texts.erased", erasure.id, evidence=shown)
    await erasures.store.note(done)


def describe_unread(unread: Sequence[str]) -> str | None:
    """The error of an erasure for places that can't be read or changed; None if there are none."""
    more = f"; and {len(unread) - PLACES_SHOWN} more" if len(unread) > PLACES_SHOWN else ""
    return INCOMPLETE.format("; ".join(unread[:PLACES_SHOWN]) + more) if unread else None


def _add_sets(before: Sequence[dict[str, Any]], now: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The data sets of an erasure after a repetition, which finds the same sets, and in them the rows that are left."""
    sets = {each["digest"]: each for each in before}
    for each in now:
        known = sets.get(each["digest"], {"requests": 0, "rows": 0})
        requests, rows = max(known["requests"], each["requests"]), known["rows"] + each["rows"]
        sets[each["digest"]] = each | {"requests": requests, "rows": rows}
    return list(sets.values())


async def _erase_files(erasures: Erasures, erasure: Erasure) -> dict[str, Any]:
    """The fields of an ErasureReport (monitoring/erasure_run.py). Raises Problem (504, 500) and OSError."""
    settings = erasures.services.settings
    job = {
        "redis_url": settings.find_redis_address(),
        "folder": str(settings.archive),
        "bucket": settings.archive_bucket,
        "datasets": str(settings.dataset_folder),
        "trainings": str(settings.training_folder),
        "spool": str(settings.text_spool),
        "until": erasure.at,
        "requests": erasure.requests,
        "names": erasure.names,
        "keys": text_keys_of(settings),
    }
    return await run_process(COMMAND, job, dict[str, Any], RUN_SECONDS_MAX)


async def _find_trainings(erasures: Erasures, folders: Set[str]) -> list[Training]:
    """The trainings in these folders that run or may continue: they have read erased rows. Raises RedisError."""
    trainings = erasures.trainings
    return [
        training
        for training in await trainings.store.all()
        if trainings.folder_of(training).name in folders and training.status in ("running", "failed")
    ]


async def _end_trainings(erasures: Erasures, erasure: Erasure, learning: Sequence[Training]) -> None:
    """End trainings, and delete their folders with all that they learned. Raises RedisError and OSError."""
    trainings, note = erasures.trainings, TRAINING_NOTE.format(erasure.id)
    for training in learning:
        await end_training(trainings, training, "cancelled", note, actor=erasure.by)
        if training.status != "running":  # else its run may still write there: the sweep removes it
            await asyncio.to_thread(shutil.rmtree, trainings.folder_of(training), ignore_errors=True)
    await erasures.services.snapshot.refresh()


async def _forget_reviews(erasures: Erasures, erasure: Erasure, requests: Sequence[str]) -> int:
    """Delete the texts of these requests' reviews and gold questions. Return their number. The reasons of all skips
    are deleted, too. Raises RedisError."""
    store, deleted = erasures.reviews.store, 0
    await store.forget_skips()
    for at in range(0, len(requests), AT_ONCE):
        for request, task in (await store.find_tasks(requests[at : at + AT_ONCE])).items():
            step = erasures.services.begin_step(erasure.by)
            deleted += sum(await store.delete(task, request, step))
    return deleted + await erasures.reviews.gold.forget(requests)


async def _find_elsewhere(erasures: Erasures) -> list[str]:
    """The running gateways whose folder of data sets is another one. Raises RedisError."""
    folder = await asyncio.to_thread(erasures.trainings.datasets.name_folder)
    holders = await list_folder_holders(erasures.services.redis)
    return sorted(owner for other, owner in holders.items() if other != folder)


def list_versions_of(erasures: Erasures, digests: Set[str]) -> list[str]:
    """The versions whose provenance names one of these data sets, as their own or as a rehearsed one."""
    versions = erasures.services.snapshot.current.versions.values()
    return sorted(version.name for version in versions if not digests.isdisjoint(version.datasets))
