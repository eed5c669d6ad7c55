"""Repeats: labels of the same input, session or subject as others of the latest labels count less.

Their answers are right or wrong together. A weight depends on earlier labels alone, so the claim of
`rising_errors.py` stands. Where digests can't tell, the dispersion of the labels does (`dependence.py`).

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from monitoring.quality.signals.entries import Label, Seen

LATEST = 64
KEY_CHARACTERS = 8
WEIGHT_MIN = 0.1
"""Where all callers send one input, a slip must still be found."""

Latest = tuple[tuple[str, ...], ...]
"""The keys of the latest labels, oldest first: of their input, and of their session and subject."""


def find_keys(seen: Seen) -> tuple[str, ...]:
    """The keys of a request: two requests that have one in common are not independent."""
    names = [*([] if seen.request_digest is None else [seen.request_digest]), *seen.handles]
    return tuple([name.rpartition(":")[2][:KEY_CHARACTERS] for name in names if name])


def find_weight(latest: Latest, keys: tuple[str, ...]) -> float:
    """The weight of a label with these keys, above 0 and at most 1: equal parts for all that have one in common."""
    common = sum(not set(keys).isdisjoint(earlier) for earlier in latest) if keys else 0
    return max(WEIGHT_MIN, 1.0 / (1.0 + common))


def add_keys(latest: Latest, keys: tuple[str, ...]) -> Latest:
    """The keys of the latest labels after one more."""
    return (*latest, keys)[-LATEST:]


def weigh(latest: Mapping[str, Latest], signal: str, label: Label, seen: Seen) -> tuple[Label, dict[str, Latest]]:
    """The label of this request with its weight, and the keys of the latest labels of all signals after it."""
    keys, earlier = find_keys(seen), latest.get(signal, ())
    weighed = msgspec.structs.replace(label, weight=find_weight(earlier, keys))
    return weighed, {**latest, signal: add_keys(earlier, keys)}
