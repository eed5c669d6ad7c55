"""Overlap of an answer with the expected one: ROUGE-L, by the words that both have in the same order."""

from __future__ import annotations

import re

WORD = re.compile(r"\w+")
WORDS_MAX = 4000
"""More words of a text are not compared: it would hold the event loop for too long."""


def measure_overlap(expected: str, answer: str) -> float:
    """ROUGE-L (Lin 2004), from 0 to 1: the F1 of the longest common subsequence of words, whatever their case."""
    expected_words, answer_words = _words(expected), _words(answer)
    shared = _count_shared(expected_words, answer_words)
    return 2 * shared / (len(expected_words) + len(answer_words)) if shared else 0.0


def _words(text: str) -> list[str]:
    return WORD.findall(text.casefold())[:WORDS_MAX]


def _count_shared(first: list[str], second: list[str]) -> int:
    """Length of the longest common subsequence, bit by bit in one integer (Hyyrö 2004): a zero for each step."""
    places: dict[str, int] = {}
    for at, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << at
    whole = steps = (1 << len(first)) - 1
    for word in second:
        hit = steps & places.get(word, 0)
        steps = (steps + hit | steps - hit) & whole
    return len(first) - steps.bit_count()
