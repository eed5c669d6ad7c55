"""Places that an erasure can't read or change: it goes on with all others, and names them at the end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from monitoring.helper_process import JobError

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The errors of decoding bytes that are not JSON, or not of the expected form."""


@contextmanager
def note_unread(unread: list[str], place: object) -> Iterator[None]:
    """Note a place that can't be read or changed, so that the erasure goes on with the others."""
    try:
        yield
    except (OSError, JobError, *UNREADABLE) as error:
        unread.append(f"{place}: {getattr(error, 'strerror', None) or error}")
