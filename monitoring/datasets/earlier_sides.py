"""The side (trained or held out) of inputs in earlier data sets of a task. An input keeps its side in later sets."""

from __future__ import annotations

from pathlib import Path

import msgspec

from monitoring.datasets.folder import CARD_FILE, HELDOUT_FILE, TRAIN_FILE
from monitoring.datasets.rows import DataRow, digest_of_input
from monitoring.datasets.splitting import EarlierSides


class _Options(msgspec.Struct):
    heldout_share: float


class _Card(msgspec.Struct):
    task: str
    options: _Options


def list_earlier_sides(folder: Path, task: str, heldout_share: float) -> EarlierSides:
    """The digests of inputs that the task's sets in this folder held out or trained on. Held-out inputs are from sets
    with at most this held-out share, others from sets with at least this share.

    Unreadable sets are skipped.
    """
    held, trained = _Inputs(), _Inputs()
    for path in folder.glob(f"[!.]*/{CARD_FILE}"):
        try:
            card = msgspec.json.decode(path.read_bytes(), type=_Card)
            if card.task == task and card.options.heldout_share <= heldout_share:
                held.read(path.with_name(HELDOUT_FILE))
            if card.task == task and card.options.heldout_share >= heldout_share:
                trained.read(path.with_name(TRAIN_FILE))
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            continue
    return EarlierSides(held.digests, trained.digests)


class _Inputs:
    """Inputs of one side. Sets share most of their rows, so each line is decoded only once."""

    def __init__(self) -> None:
        self.digests = set[str]()
        self._lines = set[int]()

    def read(self, path: Path) -> None:
        """Read one file of rows. Raises OSError, DecodeError."""
        with path.open("rb") as rows:
            for line in rows:
                if (name := hash(line)) not in self._lines:
                    self._lines.add(name)
                    self.digests.add(digest_of_input(msgspec.json.decode(line, type=DataRow)))
