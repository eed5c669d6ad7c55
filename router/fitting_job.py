"""The input and the output of a fitting: lines of JSON between a gateway and the fitting process."""

from __future__ import annotations

import msgspec


class FittingJob(msgspec.Struct):
    """A fitting; `bytes` packed bytes follow it. `minilm` is the file of the second embedding (empty: without it)."""

    bytes: int
    seed: int = 0
    minilm: str = ""


class FittingLine(msgspec.Struct, omit_defaults=True):
    """A row of the packed sample: the text that the selector took of a prompt, its id and its label. Rows of one
    `group` are wordings of one case. `other` marks other traffic."""

    text: str
    id: str = ""
    label: str | None = None
    other: bool = False
    group: str | None = None


class FittingResult(msgspec.Struct, tag="result"):
    """The end of a fitting: the model with its measured facts, or the sentence of an error.

    `auroc`: how well the score separates unseen training prompts from unseen other traffic; None if there was too
    little other traffic. `thresholds`: number of held-back scores that thresholds are based on.
    """

    model: bytes = b""
    error: str = ""
    auroc: float | None = None
    thresholds: int = 0
    rows: int = 0
    background: int = 0
    embedding: str = ""
