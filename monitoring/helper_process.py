"""Set-up for helper processes: low CPU priority, exit when stdin closes."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn, Protocol, TypeVar

import msgspec

NICENESS = 10
ERROR_MARK = b"!"
"""The prefix of an output line that is an error message, not JSON."""
Job = TypeVar("Job")


class _WithData(Protocol):
    bytes: int


DataJob = TypeVar("DataJob", bound=_WithData)


class JobError(Exception):
    """A job can't be done now; the text is a sentence for its requester."""


class ProgressStep(msgspec.Struct, tag="step"):
    """The progress of a helper process: `share` from 0 to 1."""

    stage: str
    share: float


def run_job(kind: type[Job], work: Callable[[Job], object]) -> NoReturn:
    """Read a job of this kind as a line of JSON, do it, print the result as a line of JSON, and end the process.

    The exit code is 0, or 1 after an exception. For a JobError, its text is printed behind ERROR_MARK in place of the
    result; other exceptions print a trace to stderr.
    """
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    _work_to_the_end(lambda: work(job))


def run_data_job(kind: type[DataJob], work: Callable[[DataJob, bytes], object]) -> NoReturn:
    """As `run_job`, for a job that is followed by data; its `bytes` is their length."""
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    data = sys.stdin.buffer.read(job.bytes)
    _work_to_the_end(lambda: work(job, data))


def tell_step(stage: str, share: float) -> None:
    """Print the progress."""
    _print(ProgressStep(stage, round(share, 4)))


def _work_to_the_end(work: Callable[[], object]) -> NoReturn:
    threading.Thread(target=_end_with_the_input, daemon=True).start()
    os.nice(NICENESS)
    try:
        _print(work())
    except JobError as error:
        sys.stdout.buffer.write(ERROR_MARK + " ".join(str(error).split()).encode() + b"\n")
        sys.stdout.buffer.flush()
        os._exit(1)
    except Exception:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # the thread that reads the input would keep the process alive


def _print(message: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_the_input() -> None:
    """End this process at once when its input closes, so that it never outlives its parent."""
    sys.stdin.buffer.read()
    os._exit(1)
