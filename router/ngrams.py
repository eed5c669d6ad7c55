"""A text as the buckets of its words, pairs of words and runs of 3 to 5 characters, of any script."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from router.embedding import clip_text

BUCKETS = 1 << 15
_LENGTH_MAX = 2 * 400 + 8
_BASE = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1
_SHIFT = np.uint64(64 - 15)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_SALTS = tuple(np.uint64(salt) for salt in (0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB))


def _powers(base: int) -> npt.NDArray[np.uint64]:
    """The base's powers, modulo 2^64, one for each place of a text."""
    powers = [1]
    for _ in range(4 * _LENGTH_MAX):
        powers.append(powers[-1] * base & _MASK)
    return np.array(powers, np.uint64)


_POWERS = _powers(_BASE)
_INVERSES = _powers(pow(_BASE, -1, 1 << 64))


def count_buckets(text: str) -> npt.NDArray[np.intp]:
    """The buckets of everything that is looked for in the clipped text, as often as it occurs.

    Letters are folded and runs of white space count as one space. Each kind has a salt of its own, so that a word is
    not its own run of characters.
    """
    folded = f" {' '.join(clip_text(text).casefold().split())} "[: 3 * _LENGTH_MAX]
    points = np.frombuffer(folded.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(points * _POWERS[: len(points)], out=sums[1:])
    parts = [
        ((sums[size:] - sums[:-size]) * _INVERSES[: len(sums) - size] ^ _SALTS[size - 3])
        for size in (3, 4, 5)
        if len(points) >= size
    ]
    spaces = np.flatnonzero(points == 32)
    starts, ends = spaces[:-1] + 1, spaces[1:]
    if len(points) > 2:
        parts.append((sums[ends] - sums[starts]) * _INVERSES[starts] ^ _SALTS[3])
        parts.append((sums[ends[1:]] - sums[starts[:-1]]) * _INVERSES[starts[:-1]] ^ _SALTS[4])
    if not parts:
        return np.zeros(0, np.intp)
    hashes = np.concatenate(parts)
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    return (hashes >> _SHIFT).astype(np.intp)
