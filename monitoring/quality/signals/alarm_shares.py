"""How the accepted false alarms are parted: among how many streams, and what each stream's part rests on.

Both grow as they do, and never come down while a detector stands: it keeps the most streams that there were when
something came that it sees, as it keeps the most labels a day. Evidence that was not enough when it came is not made
enough by other versions that are retired, or by labels and requests that stop. What the operator allows is not kept:
who raises it asks for more alarms, on what has been seen already too.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from monitoring.quality.detectors import drift, lately
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.signals.watch import Watch

OF_LABELS = ("reviewed", "feedback", "shadow", "holdout", "complaints")


class Streams(NamedTuple):
    """How many labelled and unlabelled streams there are: those of which anything was seen."""

    labelled: int = 0
    unlabelled: int = 0


def streams_of(watch: Watch) -> Streams:
    """The streams of one version."""
    of_labels = (watch.reviewed.labels > 0) + (watch.feedback.labels > 0) + (watch.complaints is not None)
    of_classes = sum([one.labels > 0 for one in watch.classes.values()])
    of_pairs = (watch.shadow.pairs > 0) + (watch.holdout.pairs > 0)
    return Streams(of_labels + of_classes + of_pairs, len(watch.signals))


def with_most(known: Watch | None, moved: Watch, streams: Streams, at: float) -> Watch:
    """A watch that an entry at `at` has moved, once it is known how many streams of all versions there are now."""
    found: dict[str, Any] = {}
    for name in OF_LABELS:
        track, before = getattr(moved, name), known and getattr(known, name)
        if track is not None and track is not before and track.streams < streams.labelled:
            found[name] = msgspec.structs.replace(track, streams=streams.labelled)
    if known is None or moved.classes is not known.classes:
        before = known.classes if known is not None else {}
        classes = {
            name: msgspec.structs.replace(track, streams=streams.labelled)
            for name, track in moved.classes.items()
            if track is not before.get(name) and track.streams < streams.labelled
        }
        if classes:
            found["classes"] = {**moved.classes, **classes}
    if known is None or moved.signals is not known.signals:
        signals = _of_signals(known.signals if known is not None else {}, moved, streams.unlabelled, at)
        if signals:
            found["signals"] = {**moved.signals, **signals}
    return msgspec.structs.replace(moved, **found) if found else moved


def _of_signals(before: Mapping[str, Signal], moved: Watch, streams: int, at: float) -> dict[str, Signal]:
    """Those unlabelled streams that a value was added to while there is more than ever since their detectors began."""
    per_day = lately.busiest(0.0, moved.request_rate, at)
    return {
        name: msgspec.structs.replace(
            signal, streams=max(signal.streams, streams), busiest=max(signal.busiest, per_day)
        )
        for name, signal in moved.signals.items()
        if (signal.streams < streams or signal.busiest < per_day)
        and signal is not before.get(name)
        and not drift.learns(signal)
    }
