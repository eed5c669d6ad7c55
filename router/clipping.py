"""The part of a text that models read: only its two ends, so that a long text costs no more."""

from __future__ import annotations

CLIP_CHARACTERS = 400
END_CHARACTERS = 1_100


def clip_text(text: str) -> str:
    """The first and last 400 characters: the part of a text that is judged as a whole."""
    if len(text) <= 2 * CLIP_CHARACTERS:
        return text
    return f"{text[:CLIP_CHARACTERS]} {text[-CLIP_CHARACTERS:]}"


def fold_text(text: str) -> str:
    """The judged part of a text, equal for texts that differ only in letter case and spacing."""
    return " ".join(clip_text(text).casefold().split())


def clip_passage(text: str) -> str:
    """The first and last 1,100 characters: the part of a text that is judged sentence by sentence."""
    if len(text) <= 2 * END_CHARACTERS:
        return text
    return f"{text[:END_CHARACTERS]}\n{text[-END_CHARACTERS:]}"
