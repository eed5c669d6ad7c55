"""Trainings on this machine, one at a time: the files are prepared, the trainer runs, and its adapter is registered.

Both processes end with this gateway. The next one that has the lease of this data folder goes on from the checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from typing import Any

import msgspec
from redis.exceptions import RedisError

from gateway.background.child_process import child, hear
from gateway.background.lease import JobLease
from gateway.features.training.ending import TrainingFault, end_training, enter_result
from gateway.features.training.store import Training
from gateway.features.training.trainings import Trainings
from monitoring.training.preparation import HELDOUT_FILE, ROWS_FILE, Preparation, PreparationJob
from serving.training.trainer import build_command, explain_exit

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 0.5
DEATHS_MAX = 2
"""So often a trainer that dies without a word is begun again, each time from its checkpoint."""
FAILED_KEPT_SECONDS = 7 * 86_400.0
"""So long a failed training can go on from its checkpoint."""
OLDER_MAX = 5
"""Data sets of earlier trainings whose rows are rehearsed."""
PREPARATION = (sys.executable, "-P", "-m", "monitoring.training.preparation")
OWN = frozenset({"heldout_share", "rehearsal_share"})
"""Parameters that the preparation takes, not the trainer."""


async def keep_training(trainings: Trainings) -> None:
    """Run the trainings of this data folder, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = JobLease(trainings.services.redis, f"training-{trainings.place}", trainings.services.name)
    looked_at = -1

    async def run_next() -> None:
        nonlocal looked_at
        generation = trainings.services.snapshot.current.generation
        if generation == looked_at:
            return
        all_of_them = await trainings.store.all()
        since = time.time() - FAILED_KEPT_SECONDS
        kept = [each for each in all_of_them if each.status == "running" or _is_kept(each, since)]
        await asyncio.to_thread(trainings.sweep, kept)
        ours = [each for each in all_of_them if each.status == "running" and each.place == trainings.place]
        for training in reversed(ours):
            await LocalRun(trainings, training).run_to_end()
        looked_at = generation

    await lease.repeat(run_next, LOOK_INTERVAL_SECONDS)


def _is_kept(training: Training, since: float) -> bool:
    return training.status == "failed" and (training.ended_at or 0.0) > since


class LocalRun:
    """One training under way here."""

    def __init__(self, trainings: Trainings, training: Training) -> None:
        self._trainings = trainings
        self._training = training
        self._folder = trainings.folder_of(training)

    async def run_to_end(self) -> None:
        """Train and register, or note why not. Returns early where somebody ends it. Raises RedisError."""
        tasks = working, stopped = asyncio.ensure_future(self._work()), asyncio.ensure_future(self._until_stopped())
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                stopped.result()
                return
            working.result()
        except TrainingFault as fault:
            await self._fail(str(fault))
        except RedisError:
            raise
        except OSError as error:
            await self._fail(f"The folder of the training can't be used: {error.strerror or error}.")
        except Exception:
            log.exception("the training %s failed", self._training.id)
            await self._fail("A fault of the gateway, which is in its log.")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _fail(self, note: str) -> None:
        log.error("the training %s of %s failed: %s", self._training.id, self._training.task, note)
        await end_training(self._trainings, self._training, "failed", note)

    async def _work(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if not (self._folder / ROWS_FILE).is_file():
            await self._prepare()
        await asyncio.to_thread(self._write_job)
        for deaths in range(DEATHS_MAX + 1):
            try:
                result = await self._train()
                break
            except ChildProcessError as died:
                log.warning("a trainer of %s died: %s", self._training.id, died)
                if deaths == DEATHS_MAX:
                    raise TrainingFault(str(died)) from died
        await enter_result(self._trainings, self._training, self._folder / "result", result)

    async def _until_stopped(self) -> None:
        """Returns once it is to be run no more."""
        now: Training | None = self._training
        while now is not None and now.status == "running" and now.begun_at == self._training.begun_at:
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)
            now, _ = await self._trainings.store.get(self._training.id)

    async def _prepare(self) -> None:
        """Write the files of rows. Raises TrainingFault."""
        trainings, training = self._trainings, self._training
        files = await asyncio.to_thread(trainings.find_files, training.data)
        if files is None:
            raise TrainingFault(f"There is no data set {training.data} any more: build it, or send the file again.")
        parameters, limits = training.parameters, trainings.services.settings.datasets
        job = PreparationJob(
            folder=str(self._folder),
            train=str(files.train),
            heldout=str(files.heldout or ""),
            older=await self._older() if parameters["rehearsal_share"] else [],
            heldout_share=parameters["heldout_share"],
            rehearsal_share=parameters["rehearsal_share"],
            seed=parameters["seed"],
            rows_max=limits.rows_max,
            bytes_max=limits.file_bytes_max,
            row_bytes_max=trainings.services.settings.evaluation.row_bytes_max,
        )
        async with child(PREPARATION) as process:
            code, output = await hear(process, msgspec.json.encode(job) + b"\n")
        if code != 0:
            raise TrainingFault(f"The process that prepares the rows ended with exit code {code}: see the log.")
        prepared = msgspec.json.decode(output, type=Preparation)
        if prepared.error:
            raise TrainingFault(prepared.error)
        await trainings.store.note_progress(training.id, {"kind": "prepared", **msgspec.to_builtins(prepared)})

    async def _older(self) -> list[str]:
        """Files of the data of earlier trainings of the task, the newest first."""
        trainings, training = self._trainings, self._training
        earlier = [
            each.data
            for each in await trainings.store.all()
            if each.task == training.task and each.status == "done" and each.data != training.data
        ]
        digests = list(dict.fromkeys(earlier))[:OLDER_MAX]
        found = [await asyncio.to_thread(trainings.find_files, digest) for digest in digests]
        return [str(files.train) for files in found if files is not None]

    def _write_job(self) -> None:
        training, services = self._training, self._trainings.services
        pool, settings = services.settings.pools[training.pool], services.settings.training
        parameters = {name: value for name, value in training.parameters.items() if name not in OWN}
        begin = services.snapshot.current.versions.get(training.begin or "")
        job: dict[str, Any] = {
            **parameters,
            "base": "" if pool.base_folder is None else str(pool.base_folder.absolute()),
            "base_name": pool.base_model,
            "rows": ROWS_FILE,
            "heldout": HELDOUT_FILE,
            "begin": "" if begin is None else str(services.adapters.store.path(begin.digest)),
            "threads": settings.threads,
            "nice": settings.niceness,
        }
        (self._folder / "job.json").write_bytes(msgspec.json.encode(job))

    async def _train(self) -> dict[str, Any]:
        """Run the trainer; what it told at its end. Raises TrainingFault, ChildProcessError where it died."""
        settings = self._trainings.services.settings.training
        if settings.python is None:
            raise TrainingFault("Nothing can train here any more: set training.python, then run the command again.")
        async with child(build_command(settings.python.absolute(), self._folder)) as process:
            return await self._heard(process, settings.silence_seconds_max)

    async def _heard(self, process: subprocess.Popen[bytes], silence_seconds_max: float) -> dict[str, Any]:
        assert process.stdout is not None, "it is a pipe"
        while True:
            try:
                async with asyncio.timeout(silence_seconds_max):
                    line = await asyncio.to_thread(process.stdout.readline)
            except TimeoutError:
                text = f"The trainer told nothing for {silence_seconds_max:g} s (training.silence_seconds_max)."
                raise TrainingFault(text) from None
            if not line:
                raise ChildProcessError(explain_exit(await asyncio.to_thread(process.wait)))
            if not line.startswith(b"{"):
                continue  # a library's own words
            message = msgspec.json.decode(line, type=dict[str, Any])
            if message["kind"] == "failed":
                raise TrainingFault(str(message["text"]))
            await self._trainings.store.note_progress(self._training.id, message)
            if message["kind"] == "ended":
                return message
