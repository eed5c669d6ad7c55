"""One training under way, wherever it runs: its files are prepared here, and somebody may stop it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.background.job_process import make_command, run_process
from gateway.background.jobs import run_until
from gateway.errors import Problem
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.training_end import TrainingFault, end_training, is_running
from monitoring.training.preparation_job import HELDOUT_FILE, ROWS_FILE, Preparation, PreparationJob

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 0.5
OLDER_MAX = 5
"""Data sets of earlier trainings whose rows are rehearsed."""
JOB_FILE = "job.json"
PREPARATION = make_command("monitoring.training.preparation")
OWN = frozenset({"heldout_share", "rehearsal_share"})
"""Parameters that the preparation takes, not the trainer."""


class TrainingRun(ABC):
    """One training under way."""

    def __init__(self, trainings: Trainings, training: Training) -> None:
        self._trainings = trainings
        self._training = training
        self._folder = trainings.folder_of(training)

    async def run_to_end(self) -> None:
        """Train and register, or note why not. Returns early where somebody ends it. Raises RedisError."""
        try:
            await run_until(self._work(), self._until_stopped())
        except TrainingFault as fault:
            await self._fail(str(fault))
        except RedisError:
            raise
        except OSError as error:
            await self._fail(f"The folder of the training can't be used: {error.strerror or error}.")
        except Exception:
            log.exception("the training %s failed", self._training.id)
            await self._fail("A fault of the gateway, which is in its log.")

    async def _fail(self, note: str) -> None:
        log.error("the training %s of %s failed: %s", self._training.id, self._training.task, note)
        await end_training(self._trainings, self._training, "failed", note)

    async def _work(self) -> None:
        settings, training = self._trainings.services.settings, self._training
        for kind, name, names in (("task", training.task, settings.tasks), ("pool", training.pool, settings.pools)):
            if name not in names:
                raise TrainingFault(f"The configuration has no {kind} {name!r} any more: add it, and train again.")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        progress = await self._trainings.store.progress(self._training.id)
        if progress["prepared"] is None or not (self._folder / ROWS_FILE).is_file():
            await self._prepare()
        written = msgspec.json.encode(self.job())
        await asyncio.to_thread((self._folder / JOB_FILE).write_bytes, written)
        await self.train()

    @abstractmethod
    async def train(self) -> None:
        """Have it trained and its adapter registered. Raises TrainingFault, OSError and RedisError."""

    @abstractmethod
    def job(self) -> dict[str, Any]:
        """The trainer's options."""

    async def _until_stopped(self) -> None:
        """Returns once it is to be run no more."""
        now: Training | None = self._training
        while is_running(now, self._training):
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)
            now, _ = await self._trainings.store.get(self._training.id)

    async def _prepare(self) -> None:
        """Write the files of rows. Raises TrainingFault."""
        trainings, training = self._trainings, self._training
        files = await asyncio.to_thread(trainings.find_files_of, training)
        if files is None:
            names = " or ".join(filter(None, (training.data, training.heldout)))
            raise TrainingFault(f"There is no data set {names} any more: build it, or send the file again.")
        parameters, limits = training.parameters, trainings.services.settings.datasets
        older = await self._older() if parameters["rehearsal_share"] else {}
        job = PreparationJob(
            folder=str(self._folder),
            train=str(files.train),
            heldout=str(files.heldout or ""),
            older=[*older.values()],
            heldout_share=parameters["heldout_share"],
            rehearsal_share=parameters["rehearsal_share"],
            seed=parameters["seed"],
            rows_max=limits.rows_max,
            bytes_max=limits.file_bytes_max,
            datasets=str(trainings.datasets.folder),
        )
        try:
            prepared = await run_process(PREPARATION, job, Preparation)
        except Problem as problem:
            raise TrainingFault(f"Its rows can't be prepared. {problem.message}") from None
        if prepared.error:
            raise TrainingFault(prepared.error)
        event = {"kind": "prepared", **msgspec.to_builtins(prepared), "older": [*older] if prepared.rehearsed else []}
        await trainings.store.note_progress(training.id, event)

    async def _older(self) -> dict[str, str]:
        """Files of what the version was trained on that this one begins from, then of the data of earlier trainings of
        the task, by their digests."""
        trainings, training = self._trainings, self._training
        begun = trainings.services.snapshot.current.versions.get(training.begin or "")
        earlier = [
            each.data for each in await trainings.store.all() if each.task == training.task and each.status == "done"
        ]
        named = begun.datasets if begun is not None else []
        digests = [each for each in dict.fromkeys((*named, *earlier)) if each != training.data][:OLDER_MAX]
        files_of = {digest: await asyncio.to_thread(trainings.find_files, digest) for digest in digests}
        return {digest: str(files.train) for digest, files in files_of.items() if files is not None}

    def shared_job(self) -> dict[str, Any]:
        """The options that hold wherever it runs."""
        parameters = {name: value for name, value in self._training.parameters.items() if name not in OWN}
        pool = self._trainings.services.settings.pools[self._training.pool]
        base = "" if pool.base_folder is None else str(pool.base_folder.absolute())
        files = {"rows": ROWS_FILE, "heldout": HELDOUT_FILE}
        return {**parameters, **files, "base": base, "base_name": pool.base_model}
