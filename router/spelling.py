"""Typing errors in words of the training prompts: two letters swapped, one letter too many, wrong, or missing.

A model keeps no words, only marks of the words that it knows: two bits for each checksum.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

MARK_BITS = 1 << 19
GUESSED_LETTERS_MIN = 5
"""Shortest word of which a letter is guessed: shorter words have too many similar ones."""
MENDED_WORDS_MAX = 8
"""Most unknown words of a text that are corrected: a text with more is foreign rather than mistyped."""
WORD = re.compile(r"\w{4,24}")
Marks = npt.NDArray[np.uint8]
_LETTERS = b"abcdefghijklmnopqrstuvwxyz"
_CHANGES = np.array(
    [
        [zlib.crc32(bytes((letter, *bytes(behind)))) ^ zlib.crc32(bytes(behind + 1)) for letter in _LETTERS]
        for behind in range(25)
    ],
    np.uint32,
)
"""The bits of a checksum that a letter changes if it replaces a zero byte, by the bytes behind it and the letter."""


def mark_words(texts: Iterable[str]) -> Marks:
    """The marks of all words of the texts, of any length."""
    bits = np.zeros(MARK_BITS, np.uint8)
    for text in texts:
        for word in re.findall(r"\w+", text.casefold()):
            bits[[*_list_places(_sum(word))]] = 1
    return np.packbits(bits)


def mend_words(text: str, marks: Marks, is_word: Callable[[str], bool], places: int = 2) -> str:
    """The text with unknown words replaced by the known words most likely meant; others stay.

    A word that `is_word` accepts is not a typing error. With `places` 1, as in models of an earlier release, no letter
    is guessed.
    """
    words = dict.fromkeys(word for word in WORD.findall(text) if not word.isdecimal())
    unknown = [word for word in words if not _is_known(_sum(word), marks, places) and not is_word(word)]
    mended = {word: _mend(word, marks, places) for word in unknown[:MENDED_WORDS_MAX]}
    return WORD.sub(lambda match: mended.get(match[0], match[0]), text)


def _mend(word: str, marks: Marks, places: int) -> str:
    """The known word that is most likely meant; the word itself if there is none."""
    likely = [f"{word[:at]}{word[at + 1]}{word[at]}{word[at + 2 :]}" for at in range(len(word) - 1)]
    likely += [f"{word[:at]}{word[at + 1 :]}" for at in range(len(word))]
    at = _find_marked(np.array([_sum(other) for other in likely], np.uint32), marks, places)
    if at is not None:
        return likely[at]
    guessed = word.isascii() and len(word) >= GUESSED_LETTERS_MIN and places == 2
    return _guess_letter(word, marks) if guessed else word


def _guess_letter(word: str, marks: Marks) -> str:
    """The known word with one letter replaced or one added; the word itself if there is none."""
    gaps = [(at, at + 1) for at in range(len(word))] + [(at, at) for at in range(len(word) + 1)]
    sums = np.array([_sum(f"{word[:end]}\0{word[start:]}") for end, start in gaps], np.uint32)
    changed = sums[:, None] ^ _CHANGES[[len(word) - start for _, start in gaps]]
    at = _find_marked(changed.ravel(), marks, 2)
    if at is None:
        return word
    gap, letter = divmod(at, len(_LETTERS))
    end, start = gaps[gap]
    return f"{word[:end]}{chr(_LETTERS[letter])}{word[start:]}"


def _find_marked(sums: npt.NDArray[np.uint32], marks: Marks, places: int) -> int | None:
    """The place of the first checksum that has a mark."""
    first = sums & np.uint32(MARK_BITS - 1)
    marked = np.flatnonzero(marks[first >> np.uint32(3)] << (first & np.uint32(7)).astype(np.uint8) & np.uint8(128))
    return next((at for at in marked.tolist() if _is_known(int(sums[at]), marks, places)), None)


def _is_known(checksum: int, marks: Marks, places: int) -> bool:
    return all(marks[place >> 3] >> (7 - (place & 7)) & 1 for place in _list_places(checksum)[:places])


def _list_places(checksum: int) -> tuple[int, int]:
    return checksum % MARK_BITS, (checksum * 0x9E3779B1 & 0xFFFFFFFF) >> 13


def _sum(word: str) -> int:
    return zlib.crc32(word.encode(errors="replace"))
