"""Redaction of texts before they are kept: e-mail addresses, phone numbers, payment cards and IBANs are masked.

A number is masked only if its check digits or numbering plan confirm its kind. An order number of sixteen digits stays,
unless it happens to be a valid card number.

The numbering plans take some time and memory to load: only a gateway that masks texts imports this file.
"""

from __future__ import annotations

import re
import sys

from phonenumbers import Leniency, PhoneNumberMatcher
from stdnum import iban, luhn

MARKS = "\u0300-\u036f"
"""Combining marks of letters in two parts, as macOS writes an ü."""
SPACES = " \u00a0\u202f-"
"""Separators between the groups of a number, with the spaces of web pages."""
EMAIL = re.compile(rf"[\w{MARKS}.%+'-]{{1,64}}@(?:[\w{MARKS}-]{{1,63}}\.)+[^\W\d_]{{2,24}}")
CARD = re.compile(rf"(?<![\d.])(?:\d(?:[{SPACES}]?\d){{12,18}}|\d{{4}}(?:\.\d{{4}}){{3}})(?![\d.]?\d)")
IBAN = re.compile(rf"(?:\b|(?<=\\[nrt]))[A-Z]{{2}}\d{{2}}(?:[{SPACES}]?[A-Z0-9]){{11,30}}\b", re.IGNORECASE)
"""It begins at the beginning of a word, or behind the escaped line end of a JSON text."""
MAYBE_PHONE = re.compile(r"\d(?:[^\w\n]{0,3}\d){6}")


def mask_text(text: str, phone_region: str | None = None) -> str:
    """The text with `[email]`, `[card]`, `[iban]` and `[phone]` in place of these. A phone number without a + is read
    as a number of `phone_region`; None: it is not masked."""
    if "@" in text:
        text = EMAIL.sub("[email]", text)
    text = IBAN.sub(lambda match: _masked_iban(match[0]), text)
    text = CARD.sub(lambda match: "[card]" if luhn.is_valid(re.sub(r"\D", "", match[0])) else match[0], text)
    return _mask_phones(text, phone_region) if MAYBE_PHONE.search(text) else text


def _masked_iban(text: str) -> str:
    """The match with the longest valid IBAN at its beginning masked. Words behind it may look like a part of it."""
    for end in range(len(text), 14, -1):
        if text[end - 1].isalnum() and iban.is_valid(text[:end]):
            return "[iban]" + text[end:]
    return text


def _mask_phones(text: str, region: str | None) -> str:
    parts, at = [], 0
    # The number of candidates has no limit, so none is left out: 64 KiB of text take at most about 2 s.
    for match in PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=sys.maxsize):
        parts += [text[at : match.start], "[phone]"]
        at = match.end
    return "".join([*parts, text[at:]])
