"""Inputs that earlier data sets of a task held out: they are held out again, whatever rows come beside them."""

from __future__ import annotations

from pathlib import Path

import msgspec

from monitoring.datasets.folder import CARD_FILE, HELDOUT_FILE
from monitoring.datasets.rows import DataRow, digest_of_input


class _Options(msgspec.Struct):
    heldout_share: float


class _Card(msgspec.Struct):
    task: str
    options: _Options


def list_held_before(folder: Path, task: str, heldout_share: float) -> frozenset[str]:
    """The digests of inputs that sets of the task in this folder have held out, of no larger share than this one.

    A set that can't be read tells nothing.
    """
    digests, lines = set[str](), set[int]()
    for path in folder.glob(f"[!.]*/{CARD_FILE}"):
        try:
            card = msgspec.json.decode(path.read_bytes(), type=_Card)
            if card.task != task or card.options.heldout_share > heldout_share:
                continue
            with path.with_name(HELDOUT_FILE).open("rb") as rows:
                for line in rows:
                    if (name := hash(line)) not in lines:  # sets have most of their rows in common
                        lines.add(name)
                        digests.add(digest_of_input(msgspec.json.decode(line, type=DataRow)))
        except (OSError, msgspec.DecodeError):
            continue
    return frozenset(digests)
