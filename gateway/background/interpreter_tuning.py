"""Tuning of the interpreter: short time slices for threads, and less work for the garbage collector."""

from __future__ import annotations

import gc
import sys

SWITCH_SECONDS = 0.0005


def share_interpreter() -> None:
    """A thread at work lets the event loop on within half a millisecond, not five."""
    sys.setswitchinterval(SWITCH_SECONDS)


def freeze_garbage() -> None:
    """Objects of the start stay: the collector need not walk it at each pass (55 µs a request)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
