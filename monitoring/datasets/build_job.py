"""The input and the output of building and exporting a data set, as lines of JSON between a gateway and its child."""

from __future__ import annotations

from typing import Literal

import msgspec

from monitoring.datasets.rows_from_files import SourceFile
from monitoring.labels.request_label import LabelRules
from monitoring.texts import TextSource

ExportFormat = Literal["sft", "dpo", "parquet"]


class KeptSource(msgspec.Struct, frozen=True, kw_only=True):
    """Where kept texts and judgements are, and by which rules a task's labels follow from them. Unix seconds; without
    `since` texts are only looked at, as what production asks."""

    texts: TextSource
    rules: LabelRules
    since: float | None = None
    looked_since: float = 0.0
    until: float = 0.0


class DatasetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The choices of who builds a set. `class_ratio_max` bounds the largest class of the training rows; `class_field`
    is the field of the answers that is their class, empty to find it."""

    heldout_share: float = 0.2
    class_ratio_max: float | None = None
    class_field: str = ""
    leave_out_faults: bool = False


class DatasetJob(msgspec.Struct, kw_only=True):
    """The job: a data set for `task` of these files and kept texts, into a folder of its own inside `folder`."""

    task: str
    folder: str
    files: list[SourceFile] = []
    kept: KeptSource | None = None
    options: DatasetOptions = DatasetOptions()
    rows_max: int = 100_000


class DatasetResult(msgspec.Struct, tag="result"):
    """The end: the digest of the set, or an error's sentence. `faults` are the first rows that can't be read."""

    digest: str = ""
    error: str = ""
    faults: list[str] = []


class ExportJob(msgspec.Struct):
    """The job: a part of a data set, the file `source`, in this format as the file `target`."""

    source: str
    target: str
    format: ExportFormat


class ExportResult(msgspec.Struct):
    """The end: the number of rows that were written, or an error's sentence."""

    rows: int = 0
    error: str = ""


class HardCasesJob(msgspec.Struct):
    """The job: the requests of a task that got a wrong answer and whose right one is agreed, into the file `target`."""

    task: str
    kept: KeptSource
    target: str
    rows_max: int


class HardCasesResult(msgspec.Struct):
    """The end: the number of rows, and that of kept texts by label, or an error's sentence."""

    rows: int = 0
    counts: dict[str, int] = {}
    error: str = ""
