"""Set-up for helper processes: low CPU priority, exit when stdin closes."""

from __future__ import annotations

import os
import sys
import threading

NICENESS = 10


def live_with_input() -> None:
    """From now on this process ends at once, with code 1, when its input is closed: it never outlives who began it.

    Called once all of the job has been read.
    """
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    os.nice(NICENESS)


def _end_with_the_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
