"""Repeats: a label counts less if one of the latest labels has the same input, session or subject.

Their answers tend to be right or wrong together. A weight depends on earlier labels alone, so the claim of
`rising_errors.py` holds. If digests can't show repeats, the dispersion of the labels does (`dependence.py`). The
earlier labels of a session predict how often its next one is wrong (`detectors/sessions.py`).

Pure functions over frozen data that go through JSON unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from monitoring.quality.detectors.sessions import NO_PAST, Past
from monitoring.quality.signals.entries import Label, RecordEntry, list_sessions

LATEST = 64
KEY_CHARACTERS = 8
SESSIONS = 128
INPUT_WEIGHT_MIN, SESSION_WEIGHT_MIN = 0.2, 0.5
"""The least weights: a degradation must still be found if all callers send one input, or name one session."""
RETRY_WEIGHT = 0.01
"""The weight of an input sent again in its session: the answer was wrong, so it is no second draw. It does not hold if
the latest labels are of few inputs."""

Latest = tuple[tuple[str, ...], ...]
"""The keys of the latest labels, oldest first: those of input, session and subject."""
Sessions = dict[str, Past]
"""The labels of the latest sessions and subjects by key, the latest at the end."""


def find_keys(record: RecordEntry) -> tuple[str, ...]:
    """The keys of a request, its input's first. Two requests with a key in common are not independent."""
    return tuple([(name or "")[:KEY_CHARACTERS] for name in (record.request_digest, *list_sessions(record))])


def find_weight(latest: Latest, keys: tuple[str, ...]) -> float:
    """The weight of a label with these keys, above 0 and at most 1: equal parts for labels with a key in common."""
    of_input = [bool(keys[0]) and earlier[:1] == keys[:1] for earlier in latest]
    of_session = [not set(keys[1:]).isdisjoint(earlier[1:]) for earlier in latest]
    if any(map(min, of_input, of_session)) and 2 * len({earlier[:1] for earlier in latest}) > len(latest):
        return RETRY_WEIGHT
    inputs, others = sum(of_input), sum(of_session)
    by_input, by_session = max(INPUT_WEIGHT_MIN, 1.0 / (1.0 + inputs)), max(SESSION_WEIGHT_MIN, 1.0 / (1.0 + others))
    return min(by_input, by_session)


def add_keys(latest: Latest, keys: tuple[str, ...]) -> Latest:
    """The keys of the latest labels after one more."""
    return (*latest, keys)[-LATEST:]


def find_past(sessions: Sessions, keys: tuple[str, ...]) -> Past | None:
    """The earlier labels in the longest session or subject with one of these keys; None if there is none."""
    return max([sessions.get(key, NO_PAST) for key in keys[1:]], key=lambda past: past.labels, default=None)


def add_badness(sessions: Sessions, keys: tuple[str, ...], badness: float) -> Sessions:
    """The labels of the latest sessions after one more."""
    if not keys[1:]:
        return sessions
    moved = dict(sessions)
    for key in dict.fromkeys(keys[1:]):
        moved[key] = moved.pop(key, NO_PAST).add(badness)
    while len(moved) > SESSIONS:
        del moved[next(iter(moved))]
    return moved


def weigh(
    latest: Mapping[str, Latest], sessions: Mapping[str, Sessions], signal: str, label: Label, record: RecordEntry
) -> tuple[Label, dict[str, Latest], dict[str, Sessions]]:
    """The label with its weight and its session's past. Also the keys of the latest labels, and the latest sessions, of
    all signals after it."""
    keys, earlier, current = find_keys(record), latest.get(signal, ()), sessions.get(signal, {})
    weighed = replace(label, weight=find_weight(earlier, keys), session=find_past(current, keys))
    moved = add_badness(current, keys, label.badness)
    return weighed, {**latest, signal: add_keys(earlier, keys)}, {**sessions, signal: moved} if moved else {**sessions}
