"""The messages to and from monitoring/datasets/hard_run.py. No gateway loads what reads the archive."""

from __future__ import annotations

import msgspec

from monitoring.datasets.build_job import KeptSource


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
