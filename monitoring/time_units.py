"""Units and ends of time, in seconds."""

from __future__ import annotations

DAY_SECONDS = 86_400
YEAR_10000 = 253_402_300_800
"""The first Unix second beyond the range of Python's dates."""
