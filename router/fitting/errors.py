"""The error of a model that can't be fitted."""

from __future__ import annotations


class FittingError(Exception):
    """The input can't be fitted; the message is a sentence that says what to do."""
