"""The bound of a fitted model's bytes, and the error of one that can't be used.

Without numpy: a gateway loads that only once it has a model.
"""

from __future__ import annotations

MODEL_BYTES_MAX = 2_000_000
"""Longest model of a kind that is kept for a version."""


class UnusableModel(Exception):
    """A model, or the embedding that it reads texts with, is missing or damaged; the message is a sentence that says
    what to do."""
