"""Near duplicates of texts in linear time: MinHash finds candidates, and their shingles decide.

Two texts are near duplicates if the Jaccard similarity of their shingles (five characters in a row) is at least NEAR.
Shingles that nearly all texts of a set share, such as a form around each case, do not count. They alone would make two
different cases near duplicates. Candidates share a band of six of 144 hashes: at NEAR one in 70,000 pairs is missed.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NEAR = 0.85
CHARACTERS = 5
BANDS, HASHES_IN_BAND = 24, 6
HASHES = BANDS * HASHES_IN_BAND
CANDIDATES_MAX = 2000
"""The most texts of one band. Texts of one template may fill it; only the latest are compared."""
ESTIMATE_MARGIN = 0.15
"""Five standard errors of an estimate from 144 hashes."""
SHINGLES_AT_ONCE = 1 << 13
SIGNATURES_MIN = 1 << 10
FORM_SHARE = 0.9
"""The least share of a set's texts that have a shingle of their common form."""
FORM_PART = 0.75
"""A common form is left out if it is this part of a median text: texts of people have far less in common."""
FORM_TEXTS_MIN, FORM_TEXTS_MAX = 20, 200
"""The least number of texts for a common form, and the most that are read, since all their shingles are in memory."""
Hashes = NDArray[np.uint64]


class Sketch(NamedTuple):
    """The data of a text that an index compares: shortened shingles, shortened least hashes, and the keys of its
    bands."""

    shingles: NDArray[np.uint32]
    signature: NDArray[np.uint16]
    keys: list[int]


class NearIndex:
    """An index of numbered texts that finds texts near another one."""

    def __init__(self, texts: Sequence[str] = ()) -> None:
        """Shingles of the common form of these `texts` are not compared."""
        self._form = find_form(texts)
        random = np.random.default_rng(0)
        self._multipliers = random.integers(1, 1 << 63, HASHES, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._key_multipliers = self._multipliers.reshape(BANDS, HASHES_IN_BAND)
        self._bands: dict[int, int | array[int]] = {}
        """The places of texts by key. Most keys have a single place: a number is far smaller than an array."""
        self._signatures = np.empty((SIGNATURES_MIN, HASHES), dtype=np.uint16)
        self._shingles: list[NDArray[np.uint32]] = []
        self._numbers: list[int] = []

    def sketch(self, text: str) -> Sketch:
        """Make the sketch of a text. This takes far longer than a search for it."""
        shingles = shingles_of(text)
        own = np.setdiff1d(shingles, self._form, assume_unique=True) if len(self._form) else shingles
        shingles = own if len(own) else shingles  # the text is only the form
        signature = np.full(HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
        for at in range(0, len(shingles), SHINGLES_AT_ONCE):
            some = shingles[at : at + SHINGLES_AT_ONCE, None] * self._multipliers
            np.minimum(signature, _mix(some).min(axis=0), out=signature)
        bands = signature.reshape(BANDS, HASHES_IN_BAND)
        keys = _mix((bands * self._key_multipliers).sum(axis=1, dtype=np.uint64)).tolist()
        return Sketch((shingles >> np.uint64(32)).astype(np.uint32), signature.astype(np.uint16), keys)

    def near(self, sketch: Sketch) -> Iterator[tuple[int, float]]:
        """The numbers of texts near this one, each with its similarity, most similar first."""
        bands = [band for key in sketch.keys if (band := self._bands.get(key)) is not None]
        if not bands:
            return
        is_candidate = np.zeros(len(self._numbers), dtype=np.bool_)
        for band in bands:
            is_candidate[band if isinstance(band, int) else np.frombuffer(band, dtype=np.int32)] = True
        candidates = np.flatnonzero(is_candidate)
        equal = self._signatures.take(candidates, axis=0) == sketch.signature
        hashes = equal.view(np.uint8).sum(axis=1, dtype=np.uint8)
        likely = candidates[hashes >= (NEAR - ESTIMATE_MARGIN) * HASHES].tolist()
        similar = sorted((-_similarity(sketch.shingles, self._shingles[place]), place) for place in likely)
        yield from ((self._numbers[place], -value) for value, place in similar if -value >= NEAR)

    def add(self, number: int, sketch: Sketch) -> None:
        """Add a text."""
        place = len(self._numbers)
        self._numbers.append(number)
        self._shingles.append(sketch.shingles)
        if place == len(self._signatures):
            self._signatures = np.concatenate([self._signatures, np.empty_like(self._signatures)])
        self._signatures[place] = sketch.signature
        for key in sketch.keys:
            band = self._bands.setdefault(key, place)
            if isinstance(band, array):
                band.append(place)
                if len(band) > CANDIDATES_MAX:
                    del band[0]
            elif band != place:
                self._bands[key] = array("i", [band, place])


def find_form(texts: Sequence[str]) -> Hashes:
    """The shingles that nearly all of these texts have, if they make up most of a text; else none."""
    of_each = [shingles_of(text) for text in texts[:: max(1, -(-len(texts) // FORM_TEXTS_MAX))]]
    if len(of_each) < FORM_TEXTS_MIN:
        return np.empty(0, dtype=np.uint64)
    shingles, counts = np.unique(np.concatenate(of_each), return_counts=True)
    form = shingles[counts >= FORM_SHARE * len(of_each)]
    return form if len(form) >= FORM_PART * np.median([len(each) for each in of_each]) else form[:0]


def shingles_of(text: str) -> Hashes:
    """The hashes of all runs of CHARACTERS in a text, each once, sorted. A shorter text is one shingle."""
    letters = np.frombuffer(text.ljust(CHARACTERS).encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    hashes = np.zeros(len(letters) - CHARACTERS + 1, dtype=np.uint64)
    for offset in range(CHARACTERS):
        hashes = hashes * np.uint64(0x100000001B3) + letters[offset : offset + len(hashes)]
    return np.unique(_mix(hashes))


def _mix(hashes: Hashes) -> Hashes:
    """Mix the bits of each hash in place: the last step of splitmix64."""
    shifted = hashes >> np.uint64(30)
    hashes ^= shifted
    hashes *= np.uint64(0xBF58476D1CE4E5B9)
    np.right_shift(hashes, np.uint64(27), out=shifted)
    hashes ^= shifted
    hashes *= np.uint64(0x94D049BB133111EB)
    np.right_shift(hashes, np.uint64(31), out=shifted)
    hashes ^= shifted
    return hashes


def _similarity(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    """The Jaccard similarity of two texts' shingles."""
    common = len(np.intersect1d(first, second, assume_unique=True))
    return common / (len(first) + len(second) - common)
