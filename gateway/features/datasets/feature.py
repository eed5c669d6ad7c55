"""Data sets, as the table of features has them."""

from __future__ import annotations

from gateway.feature import Feature, Features
from gateway.features.datasets import endpoints
from gateway.features.datasets.builds import make_build_store
from gateway.features.datasets.datasets import Datasets
from gateway.features.datasets.job import keep_building
from gateway.services import Services
from gateway.state.audited_step import Drafts


def _open(services: Services, _: Features) -> Datasets:
    drafts = Drafts(services.redis, services.audit, "datasets:audit")
    return Datasets(services, make_build_store(services.redis), drafts)


DATASETS = Feature(Datasets, _open, (endpoints.router,), {"build_datasets": keep_building})
