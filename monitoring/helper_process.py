"""Set-up for helper processes: low CPU priority, exit when stdin closes."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn, TypeVar

import msgspec

NICENESS = 10
Job = TypeVar("Job")


def run_job(kind: type[Job], work: Callable[[Job], object]) -> NoReturn:
    """Read a job of this kind as a line of JSON, do it, print the result as a line of JSON, and end the process.

    The exit code is 0, or 1 after an exception, whose trace goes to stderr.
    """
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    live_with_input()
    try:
        sys.stdout.buffer.write(msgspec.json.encode(work(job)) + b"\n")
        sys.stdout.buffer.flush()
    except Exception:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # whatever reads the input would keep it


def live_with_input() -> None:
    """From now on this process ends at once, with code 1, when its input is closed: it never outlives who began it.

    Called once all of the job has been read.
    """
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    os.nice(NICENESS)


def _end_with_the_input() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
