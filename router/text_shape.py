"""The shape of a text, independent of its subject: its length, digits, symbols, choices and turns of speech.

Topics that a model was not fitted on have other words, but similar shapes. The lists of words are English; in a text of
another language they count nothing, and the other features are used.
"""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt

from router.clipping import clip_text


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_WORD = re.compile(r"\w+")
_NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
_CHOICE = re.compile(r"^[A-Z][.)] .*$", re.MULTILINE)
_NEGATIONS = _listed("not no never none neither except nor incorrect false least cannot without t")
_QUESTIONS = _listed("how what which who whom whose why when where")
_NUMERALS = _listed(
    "one two three four five six seven eight nine ten eleven twelve dozen hundred thousand million half twice third "
    "quarter double triple thrice"
)
_COMPARISONS = _listed(
    "more less than each every per remaining left rest another other total altogether after before if then same fewer "
    "longer older younger times percent fraction ratio average"
)
_PRONOUNS = _listed("i you he she his her my your we our they their")
_COUNTED = ".,?!$%\"()'\n"
_COUNTED_POINTS = np.array([ord(character) for character in _COUNTED])
_VALUE_DIGITS_MAX = 15

FEATURES = 34


def compute_shape(text: str) -> npt.NDArray[np.float32]:
    """The text's features, each a finite number: its length, and others of its first and last 400 characters."""
    length, text = len(text), clip_text(text)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    count = max(1, len(points))
    ascii_counts = np.bincount(np.minimum(points, 127), minlength=128)
    digits, upper = int(ascii_counts[48:58].sum()), int(ascii_counts[65:91].sum())
    lower, foreign = int(ascii_counts[97:123].sum()), int(ascii_counts[127])
    spaces = int(ascii_counts[32] + ascii_counts[9] + ascii_counts[10] + ascii_counts[13])
    symbols = count - digits - upper - lower - foreign - spaces
    stops, commas, asks, exclaims, dollars, percents, quotes, opening, _, apostrophes, lines = ascii_counts[
        _COUNTED_POINTS
    ].tolist()
    numbers = _NUMBER.findall(text)
    choices = _CHOICE.findall(text)
    stem = text.find(f"\n{choices[0]}") if choices else len(text)
    ends = stops + asks + exclaims
    return np.array(
        [
            math.log1p(length),
            math.log1p(max(0, stem)),
            digits / count,
            symbols / count,
            upper / count,
            foreign / count,
            stops / count * 100,
            min(commas, 20),
            min(asks, 3),
            float(dollars > 0),
            float(percents > 0),
            min(quotes, 4),
            min(opening, 6),
            min(apostrophes, 6),
            math.log1p(lines),
            math.log1p(ends),
            math.log1p(count / (ends + 1)),
            float(text[:stem].rstrip().endswith("?")),
            *_of_numbers(numbers),
            *_of_choices(choices),
            *_of_words(_WORD.findall(text.casefold())),
        ],
        np.float32,
    )


def _of_numbers(numbers: list[str]) -> tuple[float, ...]:
    """Features of the numbers: how many, how many different, how many with decimals, and the largest."""
    plain = [number.replace(",", "") for number in numbers]
    largest = max((float(digits[:_VALUE_DIGITS_MAX]) for digits in plain), default=0.0)
    decimals = sum("." in digits for digits in plain)
    return math.log1p(len(plain)), math.log1p(len(set(plain))), min(decimals, 5), math.log1p(largest)


def _of_choices(choices: list[str]) -> tuple[float, ...]:
    """Features of the choices: their number and mean length."""
    mean = sum(map(len, choices)) / len(choices) if choices else 0.0
    return min(len(choices), 10), math.log1p(mean)


def _of_words(words: list[str]) -> tuple[float, ...]:
    """Features of the words: number, length, variety, and the number of each listed kind."""
    count = max(1, len(words))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    different = set(words)
    return (
        len(words) / 50,
        float(lengths.sum()) / count,
        len(different) / count,
        float((lengths > 8).sum()) / count,
        float((lengths <= 3).sum()) / count,
        min(len(different & _NEGATIONS), 4),
        min(len(different & _QUESTIONS), 4),
        sum(map(_NUMERALS.__contains__, words)) / count * 10,
        sum(map(_COMPARISONS.__contains__, words)) / count * 10,
        sum(map(_PRONOUNS.__contains__, words)) / count * 10,
    )
