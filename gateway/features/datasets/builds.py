"""The buildings of data sets, as they stand in Redis."""

from __future__ import annotations

import msgspec
from redis.asyncio import Redis

from gateway.state.work_store import Work, WorkStore
from monitoring.datasets.build import DatasetOptions
from monitoring.datasets.reading import SourceFile


class Build(Work, frozen=True, kw_only=True):
    """One building. `digest` is there once it is done, and `faults` are the first rows that could not be read. `since`
    and `until` bound the requests whose texts go in, in Unix seconds. `folder` is the name of the folder that its files
    are in, which only gateways know that share it; empty: any."""

    files: list[SourceFile]
    options: DatasetOptions
    since: float | None
    until: float
    digest: str = ""
    faults: list[str] = msgspec.field(default_factory=list)
    folder: str = ""


def make_build_store(redis: Redis) -> WorkStore[Build]:
    """The store of buildings."""
    return WorkStore(redis, "dataset_builds", Build, "the building")
