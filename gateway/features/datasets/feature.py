"""The data sets feature's entry for the table of features."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.datasets import endpoints
from gateway.features.datasets.job import keep_building
from gateway.features.datasets.state import Build, Datasets
from gateway.services import Services
from gateway.state.audited_step import Drafts
from gateway.state.work_store import WorkStore


def _open(services: Services, _: Features) -> Datasets:
    drafts = Drafts(services.redis, services.control.audit, "datasets:audit")
    return Datasets(services, WorkStore(services.redis, "dataset_builds", Build, "the building", drafts))


DATASETS = Feature(Datasets, _open, (endpoints.router,), {"build_datasets": keep_building})
