"""The buckets of a text's words, pairs of words and runs of 3 to 5 characters, in any script."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from router.clipping import clip_text

BUCKETS = 1 << 15
FOLDED_MAX = 2_424
"""Most characters that are read of a folded text."""
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_SHIFT = np.uint64(64 - 15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SALTS = tuple(np.uint64(salt) for salt in (0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB))


def _powers(base: int) -> npt.NDArray[np.uint64]:
    """The base's powers, modulo 2^64, one for each place of a text."""
    powers = [1]
    for _ in range(FOLDED_MAX + 8):
        powers.append(powers[-1] * base & _MASK)
    return np.array(powers, np.uint64)


_POWERS = _powers(_BASE)
_INVERSES = _powers(pow(_BASE, -1, 1 << 64))


def count_buckets(text: str) -> npt.NDArray[np.intp]:
    """The buckets of all n-grams of the clipped text, each as often as it occurs."""
    return find_buckets(fold(clip_text(text)))[0]


def fold(text: str) -> str:
    """The text with folded letters, each run of white space as one space, and a space at both ends."""
    return f" {' '.join(text.casefold().split())} "[:FOLDED_MAX]


def find_buckets(folded: str, is_lean: bool = False) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The buckets of runs of 3 to 5 characters, of words and of pairs of words, and the place where each begins.

    `is_lean`: only of words and of every second run of 4 characters, by its bucket; these carry nearly as much. Each
    kind has its own salt, so a word and the same run of characters have different buckets.
    """
    points = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(points * _POWERS[: len(points)], out=sums[1:])
    hashes, places = [], []
    for size in (4,) if is_lean else (3, 4, 5):
        if len(points) >= size:
            hashes.append((sums[size:] - sums[:-size]) * _INVERSES[: len(sums) - size] ^ _SALTS[size - 3])
            places.append(np.arange(len(hashes[-1])))
    spaces = np.flatnonzero(points == 32)
    starts, ends = spaces[:-1] + 1, spaces[1:]
    if len(points) > 2:
        hashes.append((sums[ends] - sums[starts]) * _INVERSES[starts] ^ _SALTS[3])
        places.append(starts)
        if not is_lean:
            hashes.append((sums[ends[1:]] - sums[starts[:-1]]) * _INVERSES[starts[:-1]] ^ _SALTS[4])
            places.append(starts[:-1])
    if not hashes:
        return np.zeros(0, np.intp), np.zeros(0, np.intp)
    mixed = np.concatenate(hashes)
    mixed ^= mixed >> np.uint64(32)
    mixed *= _MIX
    buckets = (mixed >> _SHIFT).astype(np.intp)
    place = np.concatenate(places)
    if not is_lean:
        return buckets, place
    chosen = (buckets & 1) == 0
    chosen[len(points) - 3 :] = True  # the words
    return buckets[chosen], place[chosen]
