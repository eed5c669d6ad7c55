"""The size limit of a fitted model in bytes, and the error of a model that can't be used.

This module does not import numpy, which a gateway loads only once it has a model.
"""

from __future__ import annotations

MODEL_BYTES_MAX = 2_000_000
"""Longest model of a kind that is kept for a version."""


class UnusableModel(Exception):
    """A model, or the embedding that it reads texts with, is missing or damaged; the message is a sentence that says
    what to do."""
