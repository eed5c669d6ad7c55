"""The input and the output of building and exporting a data set, as lines of JSON between a gateway and its child."""

from __future__ import annotations

from typing import Literal

import msgspec

from monitoring.datasets.rows_from_files import SourceFile
from monitoring.labels.request_label import LabelRules
from monitoring.texts import TextSource

ExportFormat = Literal["sft", "dpo", "parquet"]


class KeptSource(msgspec.Struct, frozen=True, kw_only=True):
    """The place of kept texts and judgements, and the rules for a task's labels. Times are Unix seconds. Without
    `since`, texts are only read as a sample of production's requests."""

    texts: TextSource
    rules: LabelRules
    since: float | None = None
    looked_since: float = 0.0
    until: float = 0.0


class DatasetOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a build. `class_ratio_max` bounds the largest class of the training rows; `class_field` is the
    field of the answers that is their class; empty: it is found."""

    heldout_share: float = 0.2
    class_ratio_max: float | None = None
    class_field: str = ""
    leave_out_faults: bool = False


class DatasetJob(msgspec.Struct, kw_only=True):
    """The job: build a data set for `task` from these files and kept texts, in its own folder inside `folder`."""

    task: str
    folder: str
    files: list[SourceFile] = []
    kept: KeptSource | None = None
    options: DatasetOptions = DatasetOptions()
    rows_max: int = 100_000


class DatasetResult(msgspec.Struct, tag="result"):
    """The result: the digest of the set, or an error message. `faults` describe the first rows that can't be read."""

    digest: str = ""
    error: str = ""
    faults: list[str] = []


class ExportJob(msgspec.Struct):
    """The job: write a part of a data set, the file `source`, in this format to the file `target`."""

    source: str
    target: str
    format: ExportFormat


class ExportResult(msgspec.Struct):
    """The result: the number of written rows, or an error message."""

    rows: int = 0
    error: str = ""


class HardCasesJob(msgspec.Struct):
    """The job: write a task's requests with a wrong answer and an agreed right one to the file `target`."""

    task: str
    kept: KeptSource
    target: str
    rows_max: int


class HardCasesResult(msgspec.Struct):
    """The result: the number of rows, and the numbers of kept texts by label, or an error message."""

    rows: int = 0
    counts: dict[str, int] = {}
    error: str = ""
