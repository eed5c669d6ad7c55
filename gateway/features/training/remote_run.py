"""Trainings elsewhere: launched here, and followed until their trainer has sent an adapter, or will send none."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from gateway.features.training.launching import find_end, launch
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.trainer_keys import admit_trainer, dismiss_trainer
from gateway.features.training.training_end import TrainingFault
from gateway.features.training.training_run import LOOK_INTERVAL_SECONDS, TrainingRun
from serving.adapters.adapter_folder import CONFIG_FILE, WEIGHTS_FILE

END_INTERVAL_SECONDS = 5.0
IDLE_SECONDS_MAX = 60.0
GRACE_SECONDS = 30.0
"""So long after its job's end a trainer's last message may still come."""


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
        """Launch it and wait for its end, which its trainer brings about over HTTP."""
        await admit_trainer(self._trainings, self._training)
        await launch(self._trainings, self._training)
        silence_seconds_max = self._trainings.services.settings.training.silence_seconds_max
        last, heard_at, looked_at = "", time.monotonic(), 0.0
        while True:  # until the state moves, which ends this run
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)
            now, progress = time.monotonic(), str(await self._trainings.store.progress(self._training.id))
            if progress != last:
                last, heard_at = progress, now
            if now - heard_at > silence_seconds_max:
                text = f"Its trainer told nothing for {silence_seconds_max:g} s (training.silence_seconds_max)."
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
