"""The shares of the accepted false alarms: the number of signals that share them, and the labels of each.

Both numbers only rise while a detector runs. It keeps the largest number of signals, and of labels a day, at any time
when it saw something. So evidence that was too weak when it came does not become enough because versions are retired,
or labels and requests stop. The operator's accepted number of alarms is not kept: a higher number also applies to
earlier evidence.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from msgspec.structs import replace

from monitoring.quality.detectors import drift, recent_values
from monitoring.quality.detectors.drift import Signal
from monitoring.quality.signals.version_watch import Watch, get_labelled, replace_labelled


class SignalCounts(NamedTuple):
    """The numbers of labelled and unlabelled signals with any data."""

    labelled: int = 0
    unlabelled: int = 0


def count_signals(watch: Watch) -> SignalCounts:
    """The signals of one version."""
    return SignalCounts(sum([signal.is_counted for signal in get_labelled(watch).values()]), len(watch.signals))


def keep_most(earlier: Watch | None, moved: Watch, counts: SignalCounts, at: float) -> Watch:
    """The watch after an entry at `at`. Signals that saw the entry keep the largest number of signals so far."""
    before = get_labelled(earlier) if earlier is not None else {}
    more: dict[str, Any] = {
        name: replace(signal, signals=counts.labelled)
        for name, signal in get_labelled(moved).items()
        if signal is not before.get(name) and signal.signals < counts.labelled
    }
    moved = replace_labelled(moved, more)
    if earlier is None or moved.signals is not earlier.signals:
        signals = _of_signals(earlier.signals if earlier is not None else {}, moved, counts.unlabelled, at)
        if signals:
            return replace(moved, signals={**moved.signals, **signals})
    return moved


def _of_signals(before: Mapping[str, Signal], moved: Watch, count: int, at: float) -> dict[str, Signal]:
    """The unlabelled signals with a new value, and with more signals or requests a day than ever since their start."""
    per_day = recent_values.find_busiest(0.0, moved.request_rate, at)
    return {
        name: replace(signal, signals=max(signal.signals, count), busiest=max(signal.busiest, per_day))
        for name, signal in moved.signals.items()
        if (signal.signals < count or signal.busiest < per_day)
        and signal is not before.get(name)
        and not drift.learns(signal)
    }
