"""One training under way, here or elsewhere. This gateway prepares its files; an admin may stop it.

On this machine one training runs at a time, and its trainer exits with this gateway. The next gateway with the lease of
this data folder continues from the checkpoint. A training elsewhere is launched, and followed until its trainer has
sent an adapter or failed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.background.child_process import ChildProcess, run_child
from gateway.background.job_process import make_command, run_process
from gateway.background.jobs import run_until, skip_unchanged
from gateway.errors import Problem
from gateway.features.training.launching import find_end, launch, name_of
from gateway.features.training.state import Trainings, remove_folders
from gateway.features.training.store import Training
from gateway.features.training.trainer_keys import admit_trainer, dismiss_trainer
from gateway.features.training.training_end import TrainingFault, end_training, enter_result, is_running
from monitoring.training.preparation_job import HELDOUT_FILE, ROWS_FILE, Preparation, PreparationJob
from serving.adapters.adapter_folder import CONFIG_FILE, WEIGHTS_FILE
from serving.training.trainer import build_command, explain_exit

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 0.5
OLDER_MAX = 5
"""Data sets of earlier trainings whose rows are rehearsed."""
JOB_FILE = "job.json"
PREPARATION = make_command("monitoring.training.preparation")
OWN = frozenset({"heldout_share", "rehearsal_share"})
"""Parameters that the preparation takes, not the trainer."""
DEATHS_MAX = 2
"""Number of restarts, from the checkpoint, of a trainer that dies without a message."""
FAILED_KEPT_SECONDS = 7 * 86_400.0
"""Time for which a failed training can continue from its checkpoint."""
END_INTERVAL_SECONDS = 5.0
IDLE_SECONDS_MAX = 60.0
GRACE_SECONDS = 30.0
"""Time after a job's end in which its trainer's last message may still arrive."""


class TrainingRun(ABC):
    """One training under way."""

    def __init__(self, trainings: Trainings, training: Training) -> None:
        self._trainings = trainings
        self._training = training
        self._folder = trainings.folder_of(training)

    async def run_to_end(self) -> None:
        """Train and register, or note the failure. Returns early if an admin ends the training. Raises RedisError."""
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
        snapshot = await self._trainings.services.snapshot.refresh()  # another gateway may have begun it
        if training.begin is not None and training.begin not in snapshot.versions:
            raise TrainingFault(f"{training.begin}, from which it begins, can't be read: begin from another version.")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        progress = await self._trainings.store.progress(self._training.id)
        if progress["prepared"] is None or not (self._folder / ROWS_FILE).is_file():
            await self._prepare()
        written = msgspec.json.encode(self.job())
        await asyncio.to_thread((self._folder / JOB_FILE).write_bytes, written)
        await self.train()

    @abstractmethod
    async def train(self) -> None:
        """Do the training, and register its adapter. Raises TrainingFault, OSError and RedisError."""

    @abstractmethod
    def job(self) -> dict[str, Any]:
        """The trainer's options."""

    async def _until_stopped(self) -> None:
        """Wait until the training has ended or was begun again."""
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
        """Training files by digest: first of the data sets of the version from which this training begins, then of the
        task's earlier trainings."""
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
        """The trainer's options that are the same here and elsewhere."""
        parameters = {name: value for name, value in self._training.parameters.items() if name not in OWN}
        pool = self._trainings.services.settings.pools[self._training.pool]
        base = "" if pool.base_folder is None else str(pool.base_folder.absolute())
        files = {"rows": ROWS_FILE, "heldout": HELDOUT_FILE}
        template = self._training.manifest.get("sampling", {}).get("chat_template_kwargs", {})  # as it will be served
        own = {"base": base, "base_name": pool.base_model, "template": msgspec.json.encode(template).decode()}
        return {**parameters, **files, **own}


async def keep_training(trainings: Trainings) -> None:
    """Run the trainings of this data folder, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = trainings.services.lease_job("training", key_suffix=f"-{trainings.place}")

    async def run_next() -> None:
        folders = await asyncio.to_thread(trainings.list_folders)  # before trainings: a new training keeps its folder
        all_of_them = await trainings.store.all()
        since = time.time() - FAILED_KEPT_SECONDS
        kept = [each for each in all_of_them if each.status == "failed" and (each.ended_at or 0.0) > since]
        kept += [each for each in all_of_them if each.status == "running"]
        used = set(map(trainings.folder_of, kept))
        unread = await trainings.store.names() - {each.id for each in all_of_them}
        gone = [path for path in folders if path not in used and path.name.rpartition("-")[0] not in unread]
        await asyncio.to_thread(remove_folders, gone)
        ours = [each for each in all_of_them if trainings.runs_here(each)]
        for training in reversed(ours):
            await LocalRun(trainings, training).run_to_end()

    await lease.repeat(skip_unchanged(trainings.services.snapshot, run_next), LOOK_INTERVAL_SECONDS, waits=True)


class LocalRun(TrainingRun):
    """One training that runs here."""

    async def train(self) -> None:
        """Run the trainer, again if it dies, and register its adapter."""
        for deaths in range(DEATHS_MAX + 1):
            try:
                result = await self._train()
                break
            except ChildProcessError as died:
                log.warning("a trainer of %s died: %s", self._training.id, died)
                if deaths == DEATHS_MAX:
                    raise TrainingFault(str(died)) from died
        await enter_result(self._trainings, self._training, self._folder / "result", result)

    def job(self) -> dict[str, Any]:
        """The trainer's options, for job.json."""
        services = self._trainings.services
        settings, begin = services.settings.training, services.snapshot.current.versions.get(self._training.begin or "")
        own: dict[str, Any] = {"threads": settings.threads, "nice": settings.niceness}
        if begin is not None:
            own["begin"] = str(services.control.adapters.store.path(begin.digest))
        return self.shared_job() | own

    async def _train(self) -> dict[str, Any]:
        """Run the trainer. Return its last message. Raises TrainingFault, and ChildProcessError if the trainer died."""
        settings = self._trainings.services.settings.training
        if settings.python is None:
            raise TrainingFault("Nothing can train here any more: set training.python, then run the command again.")
        async with run_child(build_command(settings.python.absolute(), self._folder)) as process:
            return await self._heard(process, settings.silence_seconds_max)

    async def _heard(self, process: ChildProcess, silence_seconds_max: float) -> dict[str, Any]:
        while True:
            try:
                async with asyncio.timeout(silence_seconds_max):
                    line = await process.read_line()
            except TimeoutError:
                text = f"The trainer sent no message for {silence_seconds_max:g} s (training.silence_seconds_max)."
                raise TrainingFault(text) from None
            if not line:
                raise ChildProcessError(explain_exit(await process.wait()))
            if not line.startswith(b"{"):
                continue  # output of a library
            message = msgspec.json.decode(line, type=dict[str, Any])
            if message["kind"] == "failed":
                raise TrainingFault(str(message["text"]))
            await self._trainings.store.note_progress(self._training.id, message)
            if message["kind"] == "ended":
                return message


async def keep_remote_trainings(trainings: Trainings) -> None:
    """Launch and follow the trainings elsewhere whose files are here, if no other gateway does. Raises RedisError."""
    lease = trainings.services.lease_job("training-remote", key_suffix=f"-{trainings.place}")
    seen_generation = -1

    async def run_all() -> None:
        nonlocal seen_generation
        under_way: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                generation = trainings.services.snapshot.current.generation
                if generation != seen_generation:
                    seen_generation = generation
                    for training in await trainings.store.all():
                        name = f"{training.id} {training.begun_at}"
                        if trainings.runs_elsewhere(training) and name not in under_way:
                            under_way[name] = asyncio.create_task(_run(trainings, training))
                for name in [name for name, task in under_way.items() if task.done()]:
                    under_way.pop(name).result()
                if under_way or trainings.services.snapshot.current.generation != seen_generation:
                    await asyncio.sleep(LOOK_INTERVAL_SECONDS)
                else:
                    await trainings.services.snapshot.next(IDLE_SECONDS_MAX)
        finally:
            seen_generation = -1
            for task in under_way.values():
                task.cancel()
            await asyncio.gather(*under_way.values(), return_exceptions=True)

    await lease.repeat(run_all, LOOK_INTERVAL_SECONDS)


async def _run(trainings: Trainings, training: Training) -> None:
    await RemoteRun(trainings, training).run_to_end()
    await dismiss_trainer(trainings, training)


class RemoteRun(TrainingRun):
    """One training that runs elsewhere."""

    async def train(self) -> None:
        """Launch the training and wait for its end, which its trainer reports over HTTP."""
        await admit_trainer(self._trainings, self._training)
        store, name = self._trainings.store, name_of(self._training)
        if await store.launched(self._training.id) != name:
            await launch(self._trainings, self._training)
            await store.note_progress(self._training.id, {"kind": "launched", "name": name})
        silence_seconds_max = self._trainings.services.settings.training.silence_seconds_max
        last, heard_at, looked_at = "", time.monotonic(), 0.0
        while True:  # until the state moves, which ends this run
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)
            now, progress = time.monotonic(), str(await store.progress(self._training.id))
            if progress != last:
                last, heard_at = progress, now
            if now - heard_at > silence_seconds_max:
                text = f"Its trainer sent no message for {silence_seconds_max:g} s (training.silence_seconds_max)."
                raise TrainingFault(text)
            if now - looked_at > END_INTERVAL_SECONDS and now - heard_at > GRACE_SECONDS:
                looked_at = now
                if (reason := await find_end(self._trainings, self._training)) is not None:
                    raise TrainingFault(reason)

    def job(self) -> dict[str, Any]:
        """The trainer's options, which it fetches."""
        own: dict[str, Any] = {}
        remote_base = self._trainings.services.settings.training.remote_base
        if remote_base is not None:
            own["base"] = remote_base
        if self._training.begin is not None:
            own["begin"] = "begin"
            own["fetched"] = [f"begin/{CONFIG_FILE}", f"begin/{WEIGHTS_FILE}"]
        return self.shared_job() | own
