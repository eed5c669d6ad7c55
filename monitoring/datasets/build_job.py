"""The input and the output of the building of a data set, as lines of JSON between a gateway and its child process."""

from __future__ import annotations

import msgspec

from monitoring.datasets.build import DatasetOptions
from monitoring.datasets.reading import SourceFile


class DatasetJob(msgspec.Struct, kw_only=True):
    """The job: a data set for `task` of these files, into a folder of its own inside `folder`."""

    task: str
    folder: str
    files: list[SourceFile] = []
    options: DatasetOptions = DatasetOptions()
    rows_max: int = 100_000


class DatasetStep(msgspec.Struct, tag="step"):
    """The progress: `share` from 0 to 1."""

    stage: str
    share: float


class DatasetResult(msgspec.Struct, tag="result"):
    """The end: the digest of the set, or an error's sentence. `faults` are the first rows that can't be read."""

    digest: str = ""
    error: str = ""
    faults: list[str] = []
