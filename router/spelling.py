"""Typing errors in words that training prompts have: two letters in the wrong order, or one too many.

A model keeps marks of the words that it knows, not the words: one bit for each checksum.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

MARK_BITS = 1 << 19
WORD = re.compile(r"\w{4,24}")
Marks = npt.NDArray[np.uint8]


def mark_words(texts: Iterable[str]) -> Marks:
    """The marks of all words of the texts, of any length."""
    bits = np.zeros(MARK_BITS, np.uint8)
    for text in texts:
        bits[[_place(word) for word in re.findall(r"\w+", text.casefold())]] = 1
    return np.packbits(bits)


def mend_words(text: str, marks: Marks) -> str:
    """The text with words that are not known replaced by those that they most likely are; others stay."""
    return WORD.sub(lambda match: _mend(match[0], marks), text)


def _mend(word: str, marks: Marks) -> str:
    if _is_known(word, marks) or word.isdecimal():
        return word
    return next((other for other in _list_likely(word) if _is_known(other, marks)), word)


def _list_likely(word: str) -> Iterator[str]:
    for at in range(len(word) - 1):
        yield f"{word[:at]}{word[at + 1]}{word[at]}{word[at + 2 :]}"
    for at in range(len(word)):
        yield f"{word[:at]}{word[at + 1 :]}"


def _is_known(word: str, marks: Marks) -> bool:
    place = _place(word)
    return bool(marks[place >> 3] >> (7 - (place & 7)) & 1)


def _place(word: str) -> int:
    return zlib.crc32(word.encode(errors="replace")) % MARK_BITS
