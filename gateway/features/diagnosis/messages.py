"""Messages between a gateway and its process that finds a request's text and the training rows most like it."""

from __future__ import annotations

import msgspec

from monitoring.diagnosis.faults import FAR, TrainingNeighbour
from monitoring.texts import KeptText, TextSource


class LookupJob(msgspec.Struct):
    """The job. `folders` are the data sets that versions were trained on, by version; `version` is the one that the
    request's record names (None: there is no record any more)."""

    source: TextSource
    request: str
    folders: dict[str, str]
    version: str | None = None


class LookedUp(msgspec.Struct):
    """The result: the kept text (None: not kept), and the neighbours (None: `no_neighbours` says why).
    `far` is the similarity below which a text is unlike all rows."""

    text: KeptText | None = None
    neighbours: tuple[TrainingNeighbour, ...] | None = None
    no_neighbours: str = ""
    far: float = FAR
