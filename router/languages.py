"""The language of a short text, by its common words and letters: enough to tell that it is not the usual language.

For languages in Latin letters `data/languages.txt` has their commonest words. Each other script counts as one language.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from types import MappingProxyType

FILE = Path(__file__).with_name("data") / "languages.txt"
LETTERS: Mapping[str, str] = MappingProxyType(
    {
        "German": "äöüß",
        "French": "éèêçàùœîôû",
        "Spanish": "ñ¿¡áóú",
        "Italian": "èòàìù",
        "Portuguese": "ãõçâê",
        "Polish": "łąężźśćń",
        "Swedish": "åäö",
        "Danish": "åæø",
        "Norwegian": "åæø",
        "Finnish": "äö",
        "Turkish": "ğışçöü",
        "Czech": "řěůšžč",
        "Hungarian": "őűáéö",
        "Romanian": "ăâîșț",
        "Vietnamese": "ạảấầẩậắằẳặẹếềểễệịọốồổỗộớờởỡợụủứừửữựỳỵđơư",
    }
)
SCRIPT_SHARE_MIN = 0.5
"""If at least this share of a text's letters is in another script than Latin, that script is its language."""
EVIDENCE_MIN = 1.5
LEAD_MIN = 1.0
"""Least evidence for a language, and its least lead over every known language."""
WORDS_MAX = 40
SCRIPTS: Mapping[str, str] = MappingProxyType({"CJK": "Chinese", "HIRAGANA": "Japanese", "KATAKANA": "Japanese"})

_MARKS = re.compile("[¿¡]")
_NOTHING: Mapping[str, float] = MappingProxyType({})


@cache
def _read_words() -> Mapping[str, Mapping[str, float]]:
    """The evidence of each common word or letter, by language. The more languages have it, the weaker it is."""
    owners: dict[str, list[str]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        name, words = line.split("\t")
        for word in {*words.split(), *LETTERS.get(name, "")}:
            owners.setdefault(word, []).append(name)
    return {word: dict.fromkeys(names, 1.0 / len(names)) for word, names in owners.items()}


def weigh_languages(text: str) -> Mapping[str, float]:
    """The evidence for each language or script that the text may be in."""
    folded = text.casefold()
    # No ASCII letter is evidence. Most texts are ASCII, so their letters need no look.
    letters = [] if folded.isascii() else [*islice(filter(str.isalpha, folded), 8 * WORDS_MAX)]
    foreign = [letter for letter in letters if letter > "\u02ff" and not "\u1e00" <= letter <= "\u1eff"]
    if letters and len(foreign) >= SCRIPT_SHARE_MIN * len(letters):
        scripts = [unicodedata.name(letter, "unknown").partition(" ")[0] for letter in foreign]
        kana = any(name in ("HIRAGANA", "KATAKANA") for name in scripts)
        name = "HIRAGANA" if kana else max(sorted(set(scripts)), key=scripts.count)
        return {SCRIPTS.get(name, name.capitalize()): float(len(foreign))}
    signs = _read_words()
    evidence_by_language: dict[str, float] = {}
    words = [word if word.isalpha() else _strip(word) for word in folded.split(maxsplit=WORDS_MAX)[:WORDS_MAX]]
    for sign in (*words, *(letter for letter in letters if letter > "\x7f"), *_MARKS.findall(text)):
        for name, evidence in signs.get(sign, _NOTHING).items():
            evidence_by_language[name] = evidence_by_language.get(name, 0.0) + evidence
    return evidence_by_language


def _strip(word: str) -> str:
    """The word without characters that are not letters."""
    return "".join([sign for sign in word if sign.isalpha() or sign == "'"])


def find_languages(texts: Iterable[str], share_min: float) -> tuple[str, ...]:
    """The languages with at least this share of the texts that give clear evidence of a language."""
    counts: dict[str, int] = {}
    for text in texts:
        evidence = weigh_languages(text)
        name = max(sorted(evidence), key=lambda language: evidence[language], default="")
        if evidence.get(name, 0.0) >= EVIDENCE_MIN:
            counts[name] = counts.get(name, 0) + 1
    total = sum(counts.values())
    return tuple(sorted(name for name, count in counts.items() if count >= share_min * total))


def find_other_language(text: str, languages: Sequence[str]) -> str:
    """The language of a text if it is clearly none of the known ones; empty if that is not clear."""
    evidence = weigh_languages(text)
    if not evidence or not languages:
        return ""
    best = max(sorted(evidence), key=lambda language: evidence[language])
    usual = max(evidence.get(name, 0.0) for name in languages)
    return best if evidence[best] >= EVIDENCE_MIN and evidence[best] >= usual + LEAD_MIN else ""
