"""The input and the output of a fitting: lines of JSON between a gateway and the fitting process."""

from __future__ import annotations

import msgspec


class FittingJob(msgspec.Struct):
    """The job: a fitting of `bytes` packed bytes. `minilm` is the file of that embedding; empty: without it."""

    bytes: int
    seed: int = 0
    minilm: str = ""


class FittingLine(msgspec.Struct, omit_defaults=True):
    """A row of the packed sample: what the selector took of a prompt, its id and its label. Rows of one `group` are
    wordings of one case. `other` marks other traffic."""

    text: str
    id: str = ""
    label: str | None = None
    other: bool = False
    group: str | None = None


class FittingResult(msgspec.Struct, tag="result"):
    """The end: the model, with what is to be known of it; or an error's sentence.

    `auroc`: how surely the score tells training prompts that it had not seen from other traffic that it had not seen,
    None where there was too little of it. `thresholds`: held-back scores that thresholds rest on.
    """

    model: bytes = b""
    error: str = ""
    auroc: float | None = None
    thresholds: int = 0
    rows: int = 0
    background: int = 0
    embedding: str = ""
