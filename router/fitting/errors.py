"""The error of a model that can't be fitted."""

from __future__ import annotations


class FittingError(Exception):
    """Nothing could be fitted from what was given; the message is a sentence that says what to do."""
