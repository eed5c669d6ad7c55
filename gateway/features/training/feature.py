"""The training feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.datasets.state import Datasets
from gateway.features.releases.state import Releases
from gateway.features.retraining.state import RetrainingRequests
from gateway.features.training import endpoints, trainer_endpoints
from gateway.features.training.retraining_steps import keep_retraining
from gateway.features.training.state import PLACE_FILE, Trainings
from gateway.features.training.store import TrainingStore
from gateway.features.training.training_run import keep_remote_trainings, keep_training
from gateway.services import Services
from gateway.state.private_files import make_private_folder, name_shared_folder


def _open(services: Services, features: Features) -> Trainings:
    folder = services.settings.training_folder
    make_private_folder(folder)
    place = name_shared_folder(folder, PLACE_FILE)
    datasets, releases, retraining = features[Datasets], features[Releases], features[RetrainingRequests]
    trainings = Trainings(services, TrainingStore(services.redis), datasets, releases, retraining, place)
    datasets.users.append(trainings.find_used)
    return trainings


TRAINING = Feature(
    Trainings,
    _open,
    (endpoints.router, trainer_endpoints.router),
    {"train": keep_training, "follow_remote_trainings": keep_remote_trainings, "follow_retraining": keep_retraining},
)
