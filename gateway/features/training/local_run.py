"""Trainings on this machine, one at a time.

The trainer ends with this gateway. The next one that has the lease of this data folder goes on from the checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec

from gateway.background.child_process import ChildProcess, run_child
from gateway.background.jobs import skip_unchanged
from gateway.features.training.state import Trainings, remove_folders
from gateway.features.training.training_end import TrainingFault, enter_result
from gateway.features.training.training_run import LOOK_INTERVAL_SECONDS, TrainingRun
from serving.training.trainer import build_command, explain_exit

log = logging.getLogger(__name__)
DEATHS_MAX = 2
"""So often a trainer that dies without a word is begun again, each time from its checkpoint."""
FAILED_KEPT_SECONDS = 7 * 86_400.0
"""So long a failed training can go on from its checkpoint."""


async def keep_training(trainings: Trainings) -> None:
    """Run the trainings of this data folder, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = trainings.services.lease_job("training", key_suffix=f"-{trainings.place}")

    async def run_next() -> None:
        folders = await asyncio.to_thread(trainings.list_folders)  # before trainings: one that begins now keeps its own
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
    """One training under way here."""

    async def train(self) -> None:
        """Run the trainer, again where it died, and register its adapter."""
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
        """Run the trainer; what it told at its end. Raises TrainingFault, ChildProcessError where it died."""
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
                text = f"The trainer told nothing for {silence_seconds_max:g} s (training.silence_seconds_max)."
                raise TrainingFault(text) from None
            if not line:
                raise ChildProcessError(explain_exit(await process.wait()))
            if not line.startswith(b"{"):
                continue  # a library's own words
            message = msgspec.json.decode(line, type=dict[str, Any])
            if message["kind"] == "failed":
                raise TrainingFault(str(message["text"]))
            await self._trainings.store.note_progress(self._training.id, message)
            if message["kind"] == "ended":
                return message
