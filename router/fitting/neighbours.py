"""The training prompts that a scope score compares a text with, and how close they are to each other.

Where prompts are crowded, a text in scope is close to them too. This crowding is subtracted from a likeness. Then the
same likeness means the same for a prompt of a narrow class and of a wide class.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from router.embedding import Vectors, scale_to_one

ECHOES = 10
"""Number of prompts whose margins a text's margins are compared with; also used to measure each prompt's crowding."""
ECHO_CROWDING_SHARE = 0.75
ROWS_AT_ONCE = 512


def measure_crowding(nearest: npt.NDArray[np.int8]) -> Vectors:
    """Half of each prompt's similarity to its nearest other prompt."""
    whole = nearest.astype(np.float32) * np.float32(1 / 127)
    crowding = np.zeros(len(whole), np.float32)
    for start in range(0, len(whole), ROWS_AT_ONCE):
        near = whole[start : start + ROWS_AT_ONCE] @ whole.T
        near[np.arange(len(near)), start + np.arange(len(near))] = 0.0
        crowding[start : start + ROWS_AT_ONCE] = near.max(1) / 2
    return round_to_halves(crowding)


def measure_echo_crowding(echoes: npt.NDArray[np.int8], starts: npt.NDArray[np.uint32]) -> Vectors:
    """A share of each prompt's mean similarity, by margins, to the nearest in its class. Classes begin at `starts`.

    A prompt that is alone in its class gets the mean of all others.
    """
    whole = echoes.astype(np.float32) * np.float32(1 / 127)
    crowding = np.full(len(whole), np.nan, np.float32)
    for begin, end in pairwise(starts.tolist()):
        count = min(ECHOES, end - begin - 1)
        for start in range(begin, end if count else begin, ROWS_AT_ONCE):
            near = whole[start : min(start + ROWS_AT_ONCE, end)] @ whole[begin:end].T
            near[np.arange(len(near)), start - begin + np.arange(len(near))] = -np.inf
            near.partition(-count, 1)
            crowding[start : start + len(near)] = near[:, -count:].mean(1)
    alone = np.isnan(crowding)
    crowding[alone] = 0.0 if alone.all() else crowding[~alone].mean()
    return round_to_halves(np.float32(ECHO_CROWDING_SHARE) * crowding)


def find_echoes(margins: Vectors) -> tuple[Vectors, npt.NDArray[np.int8]]:
    """The middle of the margins, and the direction of each margin vector from there, as bytes."""
    middle = margins.mean(0).astype(np.float32)
    return middle, np.round(scale_to_one(margins - middle) * 127).astype(np.int8)


def find_axes(vectors: Vectors, count: int) -> Vectors:
    """The axes along which the vectors extend most. On them, what prompts have in common weighs more than chance."""
    return round_to_halves(np.linalg.eigh(vectors.T @ vectors)[1][:, -count:])


def round_to_halves(values: npt.NDArray[Any]) -> Vectors:
    """The values after storage with 16 bits."""
    return values.astype(np.float16).astype(np.float32)
