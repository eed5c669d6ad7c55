"""The state of trainings: their store in Redis, and the folder for trainings on this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gateway.features.datasets.state import DIGEST, Datasets
from gateway.features.releases.state import Releases
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.training.store import Training, TrainingStore
from gateway.services import Services
from monitoring.datasets.folder import HELDOUT_FILE, TRAIN_FILE

PLACE_FILE = "place"


@dataclass(frozen=True)
class TrainingFiles:
    """The files of rows that a training reads. `heldout` is None if the training holds rows out itself."""

    train: Path
    heldout: Path | None


@dataclass(frozen=True)
class Trainings:
    """`place` names this data folder: gateways that share it share its trainings. The methods that read it block."""

    services: Services
    store: TrainingStore
    datasets: Datasets
    releases: Releases
    retraining: RetrainingRequests
    place: str

    @property
    def folder(self) -> Path:
        """The folder of all local trainings."""
        return self.services.settings.training_folder

    def runs_here(self, training: Training) -> bool:
        """True if a training runs on this machine, rather than elsewhere with its files here."""
        return training.place == self.place and training.runner == "local" and training.status == "running"

    def runs_elsewhere(self, training: Training) -> bool:
        """True if a training that runs elsewhere has its files here."""
        return training.place == self.place and training.runner != "local" and training.status == "running"

    def find_files(self, digest: str) -> TrainingFiles | None:
        """The files of a data set, or of uploaded rows; None if there are none with this digest."""
        folder = self.datasets.find(digest)
        if folder is not None:
            return TrainingFiles(folder / TRAIN_FILE, folder / HELDOUT_FILE)
        sent = self.datasets.files / digest
        return TrainingFiles(sent, None) if DIGEST.fullmatch(digest) and sent.is_file() else None

    def find_files_of(self, training: Training) -> TrainingFiles | None:
        """The files of a training; None if one of them was deleted."""
        files = self.find_files(training.data)
        if files is None or not training.heldout:
            return files
        heldout = self.datasets.files / training.heldout
        return TrainingFiles(files.train, heldout) if heldout.is_file() else None

    async def find_used(self) -> set[str]:
        """The paths of uploaded rows that a training waits for or reads. Raises RedisError."""
        running = [training for training in await self.store.all() if training.status == "running"]
        digests = {digest for training in running for digest in (training.data, training.heldout) if digest}
        return {str(self.datasets.files / digest) for digest in digests}

    def folder_of(self, training: Training) -> Path:
        """The folder of a training. A training that is begun again gets another; one that continues keeps its own."""
        return self.folder / f"{training.id}-{int(training.created_at * 1000):x}"

    def list_folders(self) -> list[Path]:
        """The folders of all trainings."""
        return [path for path in self.folder.iterdir() if path.is_dir()]


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove folders of trainings, since they hold texts."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
