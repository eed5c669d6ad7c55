"""The messages between a gateway and the process that prepares the files of a training: the job, and its result."""

from __future__ import annotations

import msgspec

ROWS_FILE = "rows.jsonl"
HELDOUT_FILE = "heldout.jsonl"


class PreparationJob(msgspec.Struct):
    """The sources: files of rows, of held-out rows (none: a share of the rows is held out), and of older rows. An
    erasure waits for the lock of the folder `datasets`."""

    folder: str
    train: str
    heldout: str
    older: list[str]
    heldout_share: float
    rehearsal_share: float
    seed: int
    rows_max: int
    bytes_max: int
    datasets: str


class Preparation(msgspec.Struct):
    """The numbers of rows; `error` is a sentence if there are none."""

    rows: int = 0
    heldout: int = 0
    rehearsed: int = 0
    error: str = ""
