"""A text as units that can be scored alone or together: its sentences, and parts of long sentences.

In a mail the request is one sentence of many. A model therefore scores windows of units: sums over units are computed
once, and each window is a difference of running sums.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from itertools import accumulate, chain, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from router.clipping import clip_passage
from router.embedding import StaticEmbedding, Vectors
from router.ngrams import find_buckets

PIECES_MAX = 32
EXTRACTS_MAX = 24
"""Most parts of long sentences; with more words, each part is longer."""
JUDGED_CHARACTERS_MIN = 12
"""Fewest characters of a piece that may be called foreign."""
_BREAK = re.compile(r"[.!?…;](?<![.!?…;]{2})[.!?…;]*\s+|\n\s*|[。！？；]")  # noqa: RUF001 - the ends of Chinese and Japanese sentences

Integers = npt.NDArray[np.intp]


class WordLimits(NamedTuple):
    """Words of a training prompt: `usual` in the median, `most` at the 90th percentile. Only a text of more than
    `usual` words may have foreign parts. A longer sentence is split into parts of half of `most`."""

    usual: int
    most: int


class Passage(NamedTuple):
    """A text that was read.

    `pieces`: its sentences. `buckets`: its n-grams. `units`: the unit in which each n-gram begins. `vectors`: the sum
    of word vectors in each unit. `windows` has a row for each window, with 1 for each unit in it. First comes the whole
    text, then each piece and each pair of neighbours if there are several. From `singles_from` on come single units of
    long sentences, from `extracts_from` on pairs of these. `pieces_in`: the pieces that each window touches. `judged`:
    windows long enough to be called foreign, in the order of the text.
    """

    text: str
    pieces: tuple[str, ...]
    buckets: Integers
    units: Integers
    vectors: Vectors
    windows: Vectors
    pieces_in: list[tuple[int, int]]
    judged: list[int]
    singles_from: int
    extracts_from: int


def read_passage(text: str, embedding: StaticEmbedding, limits: WordLimits, with_singles: bool) -> Passage:
    """Read a text's first and last 1,100 characters. `with_singles`: single units of long sentences are windows too."""
    clipped = clip_passage(clip_passage(text).casefold())
    pieces = split_pieces(clipped)
    by_piece = [piece.split() or [""] for piece in pieces]
    words = [word for piece in by_piece for word in piece]
    firsts: list[int] = []  # the first word of each unit
    spans: list[tuple[int, int]] = []  # the units of each piece
    part_words = max(limits.most, 2 * len(words) // EXTRACTS_MAX) / 2
    at = 0
    for piece in by_piece:
        count = 1 if len(piece) <= limits.usual else math.ceil(len(piece) / part_words)
        spans.append((len(firsts), len(firsts) + count))
        firsts += [at + len(piece) * part // count for part in range(count)]
        at += len(piece)
    own = list(range(len(pieces))) if len(pieces) > 1 else []
    extracts = [(at, piece) for piece, (begin, end) in enumerate(spans) for at in range(begin, end - 1)]
    windows = [(0, len(firsts)), *(spans[at] for at in own), *((spans[at][0], spans[at + 1][1]) for at in own[:-1])]
    several = [(piece, span) for piece, span in enumerate(spans) if span[1] - span[0] > 1 and with_singles]
    singles = [(at, piece) for piece, span in several for at in range(*span)]
    singles_from = len(windows)
    windows += [(at, at + 1) for at, _ in singles]
    extracts_from = len(windows)
    windows += [(at, at + 2) for at, _ in extracts]
    judged = [*range(extracts_from, len(windows))]
    judged += [1 + at for at in own if spans[at][1] == spans[at][0] + 1 and len(pieces[at]) >= JUDGED_CHARACTERS_MIN]
    buckets, units, vectors = _read_units(words, firsts, embedding)
    return Passage(
        text=clipped,
        pieces=tuple(pieces),
        buckets=buckets,
        units=units,
        vectors=vectors,
        windows=_make_rows(windows, len(firsts)),
        pieces_in=[
            (0, len(pieces)),
            *((at, at + 1) for at in own),
            *((at, at + 2) for at in own[:-1]),
            *((piece, piece + 1) for _, piece in singles),
            *((piece, piece + 1) for _, piece in extracts),
        ],
        judged=sorted(judged, key=lambda at: windows[at]) if len(words) > limits.usual else [],
        singles_from=singles_from,
        extracts_from=extracts_from,
    )


def _read_units(
    words: Sequence[str], firsts: Sequence[int], embedding: StaticEmbedding
) -> tuple[Integers, Integers, Vectors]:
    """The n-grams of the words, the unit of each, and the sums of word vectors by unit. Units begin at `firsts`."""
    buckets, places = find_buckets(f" {' '.join(words)} ", is_lean=True)
    rows = embedding.look_up(words)
    if len(firsts) == 1:
        return buckets, np.zeros(len(buckets), np.intp), rows.sum(0, keepdims=True)
    ends = np.fromiter(accumulate(map(len, words)), np.intp, len(words))
    later = np.array(firsts[1:])
    units = np.searchsorted(ends.take(later - 1) + later + 1, places, "right")
    return buckets, units, _make_rows([*pairwise([*firsts, len(words)])], len(words)) @ rows


def _make_rows(spans: Sequence[tuple[int, int]], width: int) -> Vectors:
    """A row for each span, with 1 inside the span and 0 elsewhere."""
    ends = np.fromiter(chain.from_iterable(spans), np.intp, 2 * len(spans)).reshape(-1, 2)
    places = np.arange(width)
    return ((ends[:, :1] <= places) & (places < ends[:, 1:])).astype(np.float32)


def split_pieces(text: str) -> list[str]:
    """The sentences and lines of a text; all from the thirty-second on are one piece. At least one, maybe empty."""
    pieces: list[str] = []
    start = 0
    for end in _BREAK.finditer(text):
        if len(pieces) == PIECES_MAX - 1:
            break
        if not text[start : end.end()].isspace():
            pieces.append(text[start : end.end()])
            start = end.end()
    return [*pieces, text[start:]] if text[start:].strip() or not pieces else pieces
