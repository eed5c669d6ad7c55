"""The part of a text that models read: only its two ends, so that a long text costs no more."""

from __future__ import annotations

CLIP_CHARACTERS = 400
END_CHARACTERS = 1_100


def clip_text(text: str) -> str:
    """The first and the last 400 characters: what is judged of a text as a whole."""
    if len(text) <= 2 * CLIP_CHARACTERS:
        return text
    return f"{text[:CLIP_CHARACTERS]} {text[-CLIP_CHARACTERS:]}"


def fold_text(text: str) -> str:
    """The part of a text that is judged, alike for texts that differ in letter case and spacing alone."""
    return " ".join(clip_text(text).casefold().split())


def clip_passage(text: str) -> str:
    """The first and the last 1,100 characters: what is judged of a text sentence by sentence."""
    if len(text) <= 2 * END_CHARACTERS:
        return text
    return f"{text[:END_CHARACTERS]}\n{text[-END_CHARACTERS:]}"
