"""The beginnings of refusals, in several languages. Pure.

The list is short on purpose: it has only beginnings that no real answer has. "I'm sorry, but this can't be returned" is
an answer; "I'm sorry, but I can't help with that" is a refusal.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

REFUSAL_LENGTH_MAX = 400
"""Most characters of a refusal: a longer text is not taken for one, whatever its beginning."""


class Wording(NamedTuple):
    """A language's refusals: optional apologies, and openings of which one must follow. Folded, with plain quotes."""

    apologies: tuple[str, ...]
    openings: tuple[str, ...]


WORDINGS: Mapping[str, Wording] = MappingProxyType(
    {
        "English": Wording(
            ("i'm sorry, but ", "i am sorry, but ", "i'm sorry, ", "sorry, but ", "sorry, ", "i apologize, but "),
            (
                *("i can't assist with", "i cannot assist with", "i can't help with", "i cannot help with"),
                *("i'm unable to assist", "i am unable to assist", "i'm unable to help", "i am unable to help"),
                *("i'm not able to assist", "i'm not able to help", "i won't be able to help with"),
                *("i can't fulfill that request", "i cannot fulfill your request", "i can't comply with"),
                *("as an ai language model", "as a language model"),
            ),
        ),
        "German": Wording(
            ("es tut mir leid, aber ", "es tut mir leid, ", "tut mir leid, aber ", "tut mir leid, ", "leider "),
            (
                *("dabei kann ich dir nicht helfen", "dabei kann ich ihnen nicht helfen"),
                *("kann ich dir dabei nicht helfen", "kann ich ihnen dabei nicht helfen"),
                *("ich kann dir dabei nicht helfen", "ich kann ihnen dabei nicht helfen", "als ki-sprachmodell"),
            ),
        ),
        "French": Wording(
            ("je suis désolé, mais ", "je suis désolée, mais ", "je suis désolé, ", "désolé, mais ", "désolé, "),
            (
                *("je ne peux pas vous aider avec", "je ne peux pas vous aider à", "je ne peux pas t'aider"),
                *("je ne peux pas répondre à cette demande", "en tant que modèle de langage"),
            ),
        ),
        "Spanish": Wording(
            ("lo siento, pero ", "lo siento, "),
            ("no puedo ayudarte con", "no puedo ayudarle con", "no puedo ayudar con", "como modelo de lenguaje"),
        ),
        "Italian": Wording(
            ("mi dispiace, ma ", "mi dispiace, "),
            ("non posso aiutarti con", "non posso aiutarla con", "non posso aiutare con", "come modello linguistico"),
        ),
        "Portuguese": Wording(
            ("desculpe, mas ", "desculpe, ", "sinto muito, mas ", "lamento, mas "),
            ("não posso ajudar com", "não posso ajudá-lo com", "não posso te ajudar com", "como modelo de linguagem"),
        ),
        "Dutch": Wording(
            ("het spijt me, maar ", "het spijt me, ", "sorry, maar "),
            ("ik kan je daar niet mee helpen", "ik kan u daar niet mee helpen", "als ai-taalmodel"),
        ),
        "Chinese": Wording(
            ("很抱歉，但", "很抱歉，", "抱歉，但", "抱歉，", "对不起，但", "对不起，"),  # noqa: RUF001 - as it is written
            ("我无法协助", "我不能协助", "我无法帮助您", "我无法提供帮助", "作为一个人工智能", "作为一个ai"),
        ),
        "Japanese": Wording(
            ("申し訳ありませんが、", "申し訳ございませんが、"),
            ("そのご要望にはお応えできません", "そのリクエストにはお応えできません", "お手伝いできません"),
        ),
    }
)
APOLOGIES: tuple[str, ...] = tuple(text for wording in WORDINGS.values() for text in wording.apologies)
OPENINGS: tuple[str, ...] = tuple(text for wording in WORDINGS.values() for text in wording.openings)


def is_refusal(text: str) -> bool:
    """True if a short text begins as refusals do, maybe after white space, quotation marks and an apology."""
    if len(text) > REFUSAL_LENGTH_MAX:
        return False
    folded = text.casefold().replace("’", "'").lstrip(" \t\r\n\"'“„«*")  # noqa: RUF001 - the typographic quote is meant
    if folded.startswith(OPENINGS):
        return True
    return any(folded.startswith(apology) and folded.startswith(OPENINGS, len(apology)) for apology in APOLOGIES)
