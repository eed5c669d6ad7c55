"""Wordings of requests as mails have them: frames around training prompts, typing errors, two requests in one.

The frames are a shipped sample: greetings, closings, and sentences without a request. Training prompts are bare and
real requests are not, so a model is fitted and calibrated with training prompts inside frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from router.fitting.errors import FittingError

FILE = Path(__file__).parents[1] / "data" / "frames.txt"
KINDS = ("greeting", "closing", "filler")
TYPO_SHARE = 0.03
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Frames = Mapping[str, Sequence[str]]


def read_frames() -> Frames:
    """The frames by kind. Raises FittingError if the file is damaged."""
    try:
        pairs = [line.split("\t", 1) for line in FILE.read_text(encoding="utf-8").splitlines()]
        return {kind: [text for name, text in pairs if name == kind] for kind in KINDS}
    except (OSError, ValueError) as error:
        raise FittingError("router/data/frames.txt can not be read: install the package again.") from error


def split_frames(frames: Frames) -> tuple[Frames, Frames]:
    """The frames in two halves that share no text."""
    return ({kind: texts[::2] for kind, texts in frames.items()}, {kind: texts[1::2] for kind, texts in frames.items()})


def list_frames(frames: Frames) -> list[str]:
    """The frames of all kinds."""
    return [text for texts in frames.values() for text in texts]


def put_in_frame(text: str, frames: Frames, draw: np.random.Generator) -> str:
    """The text between a greeting and a closing, all on one line or each on its own line."""
    gap = "\n" if draw.random() < 0.5 else " "
    return gap.join((pick(frames["greeting"], draw), text, pick(frames["closing"], draw)))


def add_typos(text: str, draw: np.random.Generator) -> str:
    """The text with some of its characters left out, doubled, replaced, or in the wrong order."""
    letters = list(text)
    for at in np.flatnonzero(draw.random(len(letters)) < TYPO_SHARE):
        match int(draw.integers(4)):
            case 0:
                letters[at] = ""
            case 1:
                letters[at] *= 2
            case 2:
                letters[at] = LETTERS[int(draw.integers(len(LETTERS)))]
            case _ if at + 1 < len(letters):
                letters[at], letters[at + 1] = letters[at + 1], letters[at]
    return "".join(letters)


def pick(texts: Sequence[str], draw: np.random.Generator) -> str:
    """One of the texts, drawn at random."""
    return texts[int(draw.integers(len(texts)))]
