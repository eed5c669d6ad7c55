"""The steps after a request to train. `monitor.retraining` decides on them: a data set and a command; with `auto` also
a training, and the evaluation that the gate reads. Promotion is never among them.

Each step is noted in the request before the next one begins. Its id follows from the request's id or from the data. If
a gateway is killed, the next one with the job continues there, and begins nothing twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from gateway.background.lease import list_folder_holders
from gateway.configuration.monitor import TaskMonitorSettings
from gateway.errors import Problem
from gateway.features.datasets.state import Build, read_card
from gateway.features.evaluations.store import Status
from gateway.features.releases.adding import Pusher
from gateway.features.retraining.requests_to_train import read_rows
from gateway.features.training.state import Trainings
from gateway.features.training.store import Training
from gateway.features.training.training_start import WantedTraining, begin_run, draft_training
from gateway.features.training.version_evaluation import evaluate_version, stage_version
from gateway.state.private_files import make_private_folder
from monitoring.datasets.build_job import DatasetOptions
from monitoring.datasets.rows_from_files import SourceFile
from monitoring.evaluation.answer_metrics import read_object
from monitoring.evaluation.dataset import DatasetError
from monitoring.quality.verdicts.retraining import Retraining, is_complete
from monitoring.redis_time import read_redis_time
from router.routing_data import OUT_OF_SERVICE
from serving.adapters.registry import RegistryError
from serving.object_store import Stale, Unreadable

LOOK_INTERVAL_SECONDS = 0.5
LOOK_AGAIN_SECONDS = 30.0
"""Longest time between two looks if nothing has changed."""
REBUILD_SECONDS = 60.0
"""Time from the build of a too small data set to the next build; it doubles each time."""
DOUBLINGS_MAX = 6
RESTAGE_SECONDS = 300.0
"""Time from a failed staging to the next one."""


class Halt(Exception):
    """A request to train can't continue; the message gives the reason and the remedy."""


async def keep_retraining(trainings: Trainings) -> None:
    """Advance requests to train, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = trainings.services.lease_job("retraining", key_suffix=f"-{trainings.place}")
    looked = (-1, 0.0)

    async def look() -> None:
        nonlocal looked
        generation, now = trainings.services.snapshot.current.generation, time.monotonic()
        if generation == looked[0] and now - looked[1] < LOOK_AGAIN_SECONDS:
            return
        for retraining in await trainings.retraining.store.all():
            task = trainings.services.settings.tasks.get(retraining.task)
            if retraining.state == "open" and task is not None and task.monitor.retraining != "off":
                with contextlib.suppress(Stale):  # it has changed meanwhile: the next look reads it again
                    await RetrainingSteps(trainings, retraining, task.monitor).advance()
        looked = generation, now

    await lease.repeat(look, LOOK_INTERVAL_SECONDS, waits=True)


class RetrainingSteps:
    """One open request to train, and its next steps."""

    def __init__(self, trainings: Trainings, retraining: Retraining, monitor: TaskMonitorSettings) -> None:
        """`monitor` holds the task's monitor settings, since a reload may remove the task meanwhile."""
        self._trainings = trainings
        self._entry = retraining
        self._monitor = monitor
        self._is_auto = monitor.retraining == "auto"

    async def advance(self) -> None:
        """Take all steps that are possible now, or note the reason why there is none. Raises Stale and RedisError."""
        builds = [build for build in await self._trainings.datasets.builds.all() if build.id.startswith(self._entry.id)]
        build = max(builds, key=lambda each: each.created_at, default=None)
        if build is not None and await self._is_elsewhere(build):
            return
        try:
            if not self._entry.dataset:
                await self._take_dataset(build, len(builds))
            if self._entry.evaluation is not None:
                await self._tell_evaluation(self._entry.evaluation)
            elif self._entry.dataset and self._is_auto:
                await self._go_on()
        except Halt as halt:
            if str(halt) != self._entry.note:
                await self._note("retraining.halt", note=str(halt))

    async def _is_elsewhere(self, build: Build) -> bool:
        """True if a running gateway with another folder has the data set. That gateway continues, with its rows."""
        own = await asyncio.to_thread(self._trainings.datasets.name_folder)
        if build.folder in ("", own):
            return False
        return build.folder in await list_folder_holders(self._trainings.services.redis)

    async def _take_dataset(self, build: Build | None, built: int) -> None:
        """Begin the build of the data set, and use it once it is done; with `auto` once it has enough rows to train on.
        `build` is the latest one, `built` the number of all."""
        if build is None:
            await self._build(self._entry.id)
        elif build.state != "running" and (lack := await self._find_lack(build)):
            wait = REBUILD_SECONDS * 2 ** min(built - 1, DOUBLINGS_MAX)
            if self._is_auto and time.time() - build.created_at >= wait:
                await self._build(f"{self._entry.id}-{time.time():.3f}")
            raise Halt(lack)
        elif build.state == "done":
            begin = f" --begin {self._entry.version}"
            command = f"apprentice train {self._entry.task} --data {build.digest}{begin}"
            await self._note("retraining.dataset", dataset=build.digest, command=command, note="")

    async def _find_lack(self, build: Build) -> str:
        """The reason why the build is no use for a training; empty if there is none."""
        if build.state == "failed":
            return f"No data set could be built: {build.error}"
        if not self._is_auto:
            return ""
        folder = self._trainings.datasets.find(build.digest)
        if folder is None:
            return f"The data set {build.digest} is not here any more: it is built again."
        rows = (await _read_card(folder))["rows"]["train"]
        rows_min = self._trainings.services.settings.training.rows_min
        if rows >= rows_min:
            return ""
        return f"{rows} rows are there to train on, and training.rows_min is {rows_min}: it waits for more labels."

    def _find_beginning(self) -> float:
        """The time from which on requests go into the data set: when the rules changed, or when labels began to tell
        of the degradation. Answers that were right before may be wrong now; earlier data are for rehearsal. A change to
        come holds up only the request that it has opened itself."""
        services, entry = self._trainings.services, self._entry
        quality = services.snapshot.current.quality.get(entry.task)
        announced = quality.changed if quality is not None else None
        is_due = announced is not None and (announced.effective_at <= time.time() or announced.retraining == entry.id)
        kept_from = entry.opened_at - services.settings.records.retention_seconds
        return max(kept_from, announced.effective_at if announced is not None and is_due else 0.0, entry.slipped_at)

    async def _build(self, name: str) -> None:
        """Begin the building: of the examples that have texts and a demonstration, and of kept texts."""
        services, datasets, now = self._trainings.services, self._trainings.datasets, time.time()
        examples = await self._trainings.retraining.store.examples(self._entry.id)
        try:
            all_rows = await read_rows(self._trainings.retraining, examples)
        except Problem as problem:
            raise Halt(f"The texts of its examples can't be read, and are tried again: {problem.message}") from None
        rows = [row async for row in all_rows if is_complete(row)]
        written = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
        try:
            files = [await asyncio.to_thread(_keep, datasets.files, written)] if rows else []
        except OSError as error:
            raise Halt(f"Its examples can't be kept ({error.strerror}): make room for data sets.") from error
        build = Build(
            id=name,
            task=self._entry.task,
            files=files,
            options=DatasetOptions(class_field=self._find_class_field(rows)),
            since=self._find_beginning(),
            until=now,
            by="system",
            created_at=now,
            folder=await asyncio.to_thread(datasets.name_folder),
        )
        step = services.begin_step("system")
        step.note("dataset.build", self._entry.task, None, {"build": build.id, "rows": len(rows), "since": build.since})
        await datasets.builds.begin(build, step)

    def _find_class_field(self, rows: Sequence[Mapping[str, Any]]) -> str:
        """The field of the answers that the task's class tag names; empty where no field has its name."""
        tag = self._monitor.class_tag or ""
        return tag if rows and all(tag in (read_object(str(row["expected"])) or {}) for row in rows) else ""

    async def _go_on(self) -> None:
        """Train, then evaluate the new version."""
        training = await self._training()
        if training.status == "running":
            return
        if training.status != "done" or training.version is None:
            raise Halt(f"The training {training.id} is {training.status}: {training.note}")
        services = self._trainings.services
        version = (await services.snapshot.refresh()).versions.get(training.version)
        if version is None or version.state in OUT_OF_SERVICE:
            state = "gone" if version is None else f"{version.state}: {version.note}"
            raise Halt(f"{training.version} can't be evaluated: it is {state}")
        now = await read_redis_time(services.redis)
        if version.state == "verified" and version.note and now - version.changed_at < RESTAGE_SECONDS:
            raise Halt(f"{version.name} was not loaded, and is tried again: {version.note}")
        try:
            if await stage_version(self._trainings.releases.evaluations, version):
                await self._evaluate(version.name)
        except (RegistryError, Problem, DatasetError, OSError) as error:
            raise Halt(f"{version.name} can't be evaluated: {error}") from None

    async def _training(self) -> Training:
        """The training on the data set, begun if necessary."""
        trainings = self._trainings
        if self._entry.training is not None:
            earlier, _ = await trainings.store.get(self._entry.training)
            if earlier is None:
                raise Halt(f"The training {self._entry.training} was forgotten: run the command by hand.")
            return earlier
        parameters = trainings.services.settings.training.parameters.model_dump()
        wanted = WantedTraining(self._entry.task, self._entry.dataset, parameters, begin=self._entry.version)
        try:
            draft = await draft_training(trainings, wanted, Pusher("system", None))
        except Problem as problem:
            raise Halt(f"The training can't begin: {problem.message}") from None
        training, _ = await begin_run(trainings, draft)
        await self._note("retraining.train", training=training.id, note="")
        return training

    async def _evaluate(self, version: str) -> None:
        files = await asyncio.to_thread(self._trainings.find_files, self._entry.dataset)
        if files is None or files.heldout is None:
            raise Halt(f"The data set {self._entry.dataset} is gone: evaluate {version} by hand.")
        card = await _read_card(files.heldout.parent)
        class_field = card["options"].get("class_field", "")
        name = await evaluate_version(self._trainings.releases.evaluations, version, files.heldout, class_field)
        await self._note("retraining.evaluate", evaluation=name, note=_describe_evaluation(version, name, "running"))

    async def _tell_evaluation(self, name: str) -> None:
        """Note the end of the evaluation. Raises Halt if it has no report."""
        evaluation = await self._trainings.releases.evaluations.store.get(name, with_report=False)
        if evaluation is None:  # it was deleted
            return
        if evaluation.status in ("failed", "cancelled"):
            ended = f"{evaluation.status}: {evaluation.note}" if evaluation.note else f"{evaluation.status}."
            raise Halt(f"The evaluation {name} of {evaluation.version} is {ended} Evaluate it by hand.")
        note = _describe_evaluation(evaluation.version, name, evaluation.status)
        if note != self._entry.note:
            await self._note("retraining.evaluate", note=note)

    async def _note(self, action: str, **fields: Any) -> None:
        """Note a step in the request, with an audit entry. Raises Stale if the request has changed."""
        store, services = self._trainings.retraining.store, self._trainings.services
        now, generation = await store.get(self._entry.id)
        if now is None or now.state != "open":
            raise Stale(self._entry.id, generation)
        after = msgspec.structs.replace(now, **fields)
        step = services.begin_step("system")
        step.note(action, after.version, None, {"id": after.id, **fields}, generation=generation + 1)
        await step.take([store.change(after, generation)])
        self._entry = after
        await services.snapshot.refresh()


def _describe_evaluation(version: str, name: str, status: Status) -> str:
    was = "is being" if status == "running" else "was"
    return f"{version} {was} evaluated ({name}). A person goes on: apprentice adapters canary {version}"


def _keep(folder: Path, written: bytes) -> SourceFile:
    """Store a file of rows like an uploaded one. Raises OSError."""
    make_private_folder(folder)
    path = folder / hashlib.sha256(written).hexdigest()
    path.write_bytes(written)
    return SourceFile("examples.jsonl", str(path), {})


async def _read_card(folder: Path) -> dict[str, Any]:
    """The card of the data set in a folder. Raises Halt and OSError."""
    try:
        return await asyncio.to_thread(read_card, folder)
    except (Problem, Unreadable) as error:
        raise Halt(str(error)) from error
