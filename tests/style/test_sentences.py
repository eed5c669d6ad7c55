"""Plain English in documents: short sentences, and today's words for things that had others."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.style.source import ROOT, files, shown, strings, tracked

WORDS_IN_A_SENTENCE_MAX = 25
DOCUMENTS = sorted(path for path in tracked() if path.endswith(".md") and (path.startswith("docs/") or "/" not in path))
NOT_LOOKED_AT = ("CHANGELOG.md",)
OLD_WORDS = {
    r"\brungs?\b": "check",
    r"\bblueprints?\b": "general prompt",
    r"\bstandbys?\b": "previous version",
    r"\bshel(f|ves)\b": "object store",
    r"\bdut(y|ies)\b": "background job",
    r"\bthe house\b": "services",
    r"\b(fallback|task.s|its|their) exits?\b": "fallback",
    r"\bslices?\b": "quota",
    r"\banew\b|\bonce more\b": "again",
    r"\bgo(es)? by\b": "use",
    r"\bso many\b|\bas ever\b": "a number",
}


def without_blocks(document: str) -> str:
    """A document without blocks of code and comments; its lines keep their numbers."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.sub(r"```.*?```|<!--.*?-->", lambda block: "\n" * block[0].count("\n"), text, flags=re.DOTALL)


def prose(document: str) -> Iterator[tuple[int, str]]:
    """Paragraphs and items of a document with their line; without code, tables and headings."""
    text = without_blocks(document)
    held: list[str] = []
    first = 1
    for number, line in enumerate([*text.splitlines(), ""], 1):
        begins_item = re.match(r"\s*([-*]|\d+\.) ", line)
        if not line.strip() or line.startswith(("|", "#", "<")) or begins_item:
            if held:
                yield first, " ".join(held)
            held = []
        if line.strip() and not line.startswith(("|", "#", "<")):
            first = first if held else number
            held.append(re.sub(r"^\s*([-*>]|\d+\.) ", "", line.strip()))


def sentences(paragraph: str) -> list[str]:
    """Sentences of a paragraph. Code counts as one word, a link as its text; a full stop inside code ends nothing."""
    plain = re.sub(r"`[^`]*`", "CODE", paragraph)
    plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", plain)
    return re.split(r"(?<=[.!?:])[*_)\"]*\s+(?=[A-Z0-9(*\"])", plain)


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in NOT_LOOKED_AT])
def test_sentences_are_short(document: str) -> None:
    long = [
        f"{document}:{line} {len(sentence.split())} words: {sentence}"
        for line, paragraph in prose(document)
        for sentence in sentences(paragraph)
        if len(sentence.split()) > WORDS_IN_A_SENTENCE_MAX
    ]
    assert not long, "\n".join(["make two of them:", *long])


def test_messages_use_no_idioms() -> None:
    """In the texts of the product that people read: help, errors, reports."""
    idioms = re.compile(
        r"\b(anew|once more|go(es)? by|so many(?! \w+ that)|as ever|stands (in|there|twice))\b", re.IGNORECASE
    )
    found = [
        f"{shown(path, line)} {idiom[0]}: {text}"
        for path in files("gateway", "router", "serving", "monitoring")
        for line, text in strings(path)
        if " " in text and (idiom := idioms.search(text))
    ]
    assert not found, "\n".join(["say it in standard words:", *found])


@pytest.mark.parametrize("document", [path for path in DOCUMENTS if path not in NOT_LOOKED_AT])
def test_documents_use_todays_words(document: str) -> None:
    text = without_blocks(document)
    old = [
        f"{document}:{line} {found[0]}: write {word}"
        for line, words in enumerate(re.sub(r"`[^`\n]*`", "", text).splitlines(), 1)
        for pattern, word in OLD_WORDS.items()
        if (found := re.search(pattern, words, re.IGNORECASE))
    ]
    assert not old, old
