"""Messages between a gateway and its process that finds a request's text and the training rows most like it."""

from __future__ import annotations

import msgspec

from monitoring.diagnosis.faults import FAR, TrainingNeighbour
from monitoring.texts import KeptText, TextSource


class LookupJob(msgspec.Struct):
    """The job. `folders` are the versions' data sets, by version. `version` is the one in the request's record; None
    if the record no longer exists."""

    source: TextSource
    request: str
    folders: dict[str, str]
    version: str | None = None


class LookedUp(msgspec.Struct):
    """The result: the kept text (None: not kept), and the neighbours (None: `no_neighbours` gives the reason).
    Below the similarity `far` a text is unlike all rows."""

    text: KeptText | None = None
    neighbours: tuple[TrainingNeighbour, ...] | None = None
    no_neighbours: str = ""
    far: float = FAR
