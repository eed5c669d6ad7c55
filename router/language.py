"""The language of a text, as far as a glance tells: by its script, and for Latin scripts by its commonest words.

It tells a monitor that people have begun to write in another language. It is no more than a guess: a handful of words
can be of several languages, and of a language that is not listed it says what it is most like, or nothing.
"""

from __future__ import annotations

import re
import sys
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import repeat
from types import MappingProxyType

READ_CHARACTERS_MAX = 400
WORDS_READ_MAX = 48
UNKNOWN = "und"
"""ISO 639's word for a language that can't be told."""
LETTERS_READ_MAX = 32
"""So many letters of another script than Latin are looked at."""
SHARE_MIN = 1.25
"""How many times more the first language's words have to weigh than the second's."""

FREQUENT: Mapping[str, str] = MappingProxyType(
    {
        "en": "the and of to is in that it for was you with this have are not be on my as at we can what from which i",
        "de": "der die das und ist nicht ich ein eine zu mit den auf für dem sie wir von im es auch wie kann mein des",
        "fr": "le la les et est des un une je vous que pour dans pas ce il nous avec sur mon qui au du ne à été c'est",
        "es": "el la los las y es que en un una por con para no se mi del lo como está pero más al su ha he yo",
        "it": "il lo la gli e è che di un una per con non si mi del della sono ho ma come questo nel mio alla ha i",
        "pt": "o a os as e é que de em um uma por com para não se meu minha do da no na está mas como foi eu ao",
        "nl": "de het een en is van ik niet dat te voor met op zijn mijn er maar wat we ook bij aan hebben heb naar",
        "sv": "och det att är en ett jag inte på som för med den till av har min vi kan om var så från men",
        "da": "og det at er en et jeg ikke på som for med den til af har min vi kan om var så fra men ved",
        "nb": "og det å er en et jeg ikke på som for med den til av har min vi kan om var så fra men ved",
        "fi": "ja on ei se että en olen oli mutta tämä minun kun niin ole mitä hän voi ovat myös jos kuin sen",
        "pl": "i w nie na się to jest z że do mam jak ale czy po od mi dla mój co tak są został przez",
        "cs": "a v na se je to že s z do jsem ale jak pro by mi můj ne má jsou když který po od už",
        "hu": "a az és nem hogy egy is van ez meg de csak volt nekem kell mint már én ha el vagy azt",
        "ro": "și în nu o la de un cu pe este că am se mi pentru din să care mai sunt dar ce al fi",
        "tr": "ve bir bu için ne de da ile ben mi çok ama gibi değil var daha olarak benim sonra kadar",
        "id": "dan yang di tidak saya ini itu untuk dengan dari ke ada adalah akan sudah bisa atau pada kami",
        "vi": "và là của không có cho tôi một được này trong với các đã những người từ khi ở đến thì",
    }
)
"""Some of the commonest words of languages in Latin script."""
SCRIPTS: Sequence[tuple[int, int, str]] = (
    (0x0370, 0x03FF, "el"),
    (0x0400, 0x052F, "ru"),
    (0x0530, 0x058F, "hy"),
    (0x0590, 0x05FF, "he"),
    (0x0600, 0x06FF, "ar"),
    (0x0900, 0x097F, "hi"),
    (0x0980, 0x09FF, "bn"),
    (0x0B80, 0x0BFF, "ta"),
    (0x0C00, 0x0C7F, "te"),
    (0x0E00, 0x0E7F, "th"),
    (0x10A0, 0x10FF, "ka"),
    (0x3040, 0x30FF, "ja"),
    (0x3400, 0x9FFF, "zh"),
    (0xAC00, 0xD7AF, "ko"),
)
"""Ranges of code points, and the language that is mostly written so."""
FIRST_LETTERS = tuple(first for first, _, _ in SCRIPTS)
TELLING: Mapping[str, Sequence[tuple[re.Pattern[str], str]]] = MappingProxyType(
    {
        "ru": ((re.compile("[іїєґ]"), "uk"), (re.compile("[ђћљњџ]"), "sr")),
        "ar": ((re.compile("[ٹڈڑںے]"), "ur"), (re.compile("[پچژگ]"), "fa")),
        "zh": ((re.compile("[\u3040-\u30ff]"), "ja"),),
    }
)
"""Letters that tell languages of one script apart."""
OTHER_LETTERS = re.compile(r"[\u0370-\u058f\u0590-\u10ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
FIELD_BITS = 16
WORD_WEIGHT = 60
"""What a word weighs that is of one language alone; of many languages, it weighs as much for all of them together."""
LANGUAGES = tuple(FREQUENT)


def _packed() -> Mapping[str, int]:
    """What each common word weighs for each language, as one number with a field of FIELD_BITS for each of them.

    So a text's words are summed up for all languages at once: with at most WORDS_READ_MAX words no field flows
    over into the next.
    """
    of: dict[str, list[int]] = {}
    for at, words in enumerate(FREQUENT.values()):
        for word in words.split():
            of.setdefault(word, []).append(at)
    return MappingProxyType(
        {word: sum(WORD_WEIGHT // len(found) << FIELD_BITS * at for at in found) for word, found in of.items()}
    )


BY_WORD = _packed()


def language_of(text: str) -> str:
    """The language of a text by its first READ_CHARACTERS_MAX characters, in ISO 639-1; `und` where it can't be told.

    Some microseconds: each word is looked up once, and of another script than Latin a few letters are looked at.
    """
    text = text[:READ_CHARACTERS_MAX]
    if not text.isascii():
        seen = text[:: 1 + len(text) // LETTERS_READ_MAX]
        other = OTHER_LETTERS.findall(seen)
        if 3 * len(other) > len(seen):
            return _by_script(text, other)
    words = text.lower().split(None, WORDS_READ_MAX)[:WORDS_READ_MAX]
    weights = sum(map(BY_WORD.get, words, repeat(0)))
    if not weights:
        return UNKNOWN
    found = list(memoryview(weights.to_bytes(len(LANGUAGES) * FIELD_BITS // 8, sys.byteorder)).cast("H"))
    if sys.byteorder == "big":
        found.reverse()
    second, first = sorted(found)[-2:]
    if first < WORD_WEIGHT or first < SHARE_MIN * second:
        return UNKNOWN
    return LANGUAGES[found.index(first)]


def _by_script(text: str, letters: Sequence[str]) -> str:
    counts: dict[str, int] = {}
    for letter in letters:
        point = ord(letter)
        at = bisect_right(FIRST_LETTERS, point) - 1
        language = SCRIPTS[at][2] if at >= 0 and point <= SCRIPTS[at][1] else UNKNOWN
        counts[language] = counts.get(language, 0) + 1
    found = max(counts, key=counts.__getitem__)
    for telling, language in TELLING.get(found, ()):
        if telling.search(text) is not None:
            return language
    return found
