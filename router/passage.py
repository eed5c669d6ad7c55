"""A text as units that can be scored alone or together: its sentences, and parts of long sentences.

In a mail the request is one sentence among others. A model therefore scores windows of units: sums over units are
computed once, and each window is a difference of running sums.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router.embedding import Vectors, WordEmbedding
from router.ngrams import BUCKETS, find_buckets

END_CHARACTERS = 1_100
PIECES_MAX = 40
JUDGED_CHARACTERS_MIN = 12
"""A shorter piece is too little to call it foreign."""
_BREAK = re.compile(r"(?<=[.!?…;])\s+|\s*\n\s*|(?<=[。！？；])")  # noqa: RUF001 - the ends of Chinese and Japanese sentences

Integers = npt.NDArray[np.intp]


class WordLimits(NamedTuple):
    """Words of a training prompt: in the middle one, and what nine in ten do not exceed. Only in a text that has more,
    something may be foreign; a sentence that has more is looked at in parts."""

    usual: int
    most: int


class Passage(NamedTuple):
    """A text that was read. `pieces` are its sentences; all arrays have one row a unit, or one a window.

    `buckets` and `repeats` (how often each is in the whole text) are in the order of units, which begin at `starts`.
    `vectors` are sums of word vectors by unit. `windows` are pairs of the first unit and the one after the last: the
    whole text, then `pieces` where there are several, pairs of these, and parts of long ones. `judged`: the windows
    that are long enough to be called foreign, in the order of the text; from
    `extracts_from` on windows are parts of a long sentence.
    """

    text: str
    pieces: tuple[str, ...]
    buckets: Integers
    repeats: Vectors
    starts: Integers
    vectors: Vectors
    windows: Integers
    judged: list[int]
    extracts_from: int


def read_passage(text: str, embedding: WordEmbedding, sizes: Sequence[int], limits: WordLimits | None) -> Passage:
    """Read a text, at most its first and last 1,100 characters; without limits as a single unit."""
    clipped = clip_passage(clip_passage(text).casefold())
    pieces = (clipped,) if limits is None else tuple(split_pieces(clipped)) or (clipped,)
    words: list[str] = []
    firsts: list[int] = []  # of each unit, the first word
    spans: list[tuple[int, int]] = []  # of each piece, its units
    for piece in pieces:
        spoken = piece.split() or [""]
        begin = len(firsts)
        count = 1 if limits is None or len(spoken) <= limits.most else -(-2 * len(spoken) // limits.usual)
        firsts += [len(words) + len(spoken) * at // count for at in range(count)]
        words += spoken
        spans.append((begin, len(firsts)))
    edges = np.cumsum([1, *(len(word) + 1 for word in words)])[firsts]
    buckets, places = find_buckets(f" {' '.join(words)} ", sizes)
    unit = np.maximum(np.searchsorted(edges, places, "right") - 1, 0)
    order = np.argsort(unit, kind="stable")
    buckets = buckets[order]
    own = spans if len(spans) > 1 else []
    pairs = [(one[0], other[1]) for one, other in pairwise(spans)]
    extracts = [(at, at + 2) for begin, end in spans for at in range(begin, end - 1)]
    windows = [(0, len(firsts)), *own, *pairs, *extracts]
    extracts_from = len(windows) - len(extracts)
    sentences = [
        1 + at for at, (begin, end) in enumerate(own) if end == begin + 1 and len(pieces[at]) >= JUDGED_CHARACTERS_MIN
    ]
    return Passage(
        text=clipped,
        pieces=pieces,
        buckets=buckets,
        repeats=np.bincount(buckets, minlength=BUCKETS)[buckets].astype(np.float32),
        starts=np.searchsorted(unit[order], np.arange(len(firsts))),
        vectors=np.add.reduceat(embedding.look_up(words), firsts, axis=0),
        windows=np.array(windows, np.intp),
        judged=[]
        if limits is None or len(words) <= limits.most
        else sorted([*sentences, *range(extracts_from, len(windows))], key=lambda at: windows[at]),
        extracts_from=extracts_from,
    )


def clip_passage(text: str) -> str:
    """The first and the last 1,100 characters: what is read of a text, so that a long one costs no more."""
    if len(text) <= 2 * END_CHARACTERS:
        return text
    return f"{text[:END_CHARACTERS]}\n{text[-END_CHARACTERS:]}"


def split_pieces(text: str) -> list[str]:
    """The sentences and lines of a text; those after the fortieth are one."""
    pieces = [piece for piece in _BREAK.split(text) if piece and not piece.isspace()]
    return pieces if len(pieces) <= PIECES_MAX else [*pieces[: PIECES_MAX - 1], " ".join(pieces[PIECES_MAX - 1 :])]
