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
"""The beginning of a line that is an error, and no JSON."""
Job = TypeVar("Job")


class _WithData(Protocol):
    bytes: int


DataJob = TypeVar("DataJob", bound=_WithData)


class JobError(Exception):
    """A job can't be done now; the text is a sentence for who asked for it."""


class ProgressStep(msgspec.Struct, tag="step"):
    """The progress of a helper process: `share` from 0 to 1."""

    stage: str
    share: float


def run_job(kind: type[Job], work: Callable[[Job], object]) -> NoReturn:
    """Read a job of this kind as a line of JSON, do it, print the result as a line of JSON, and end the process.

    The exit code is 0, or 1 after an exception, whose trace goes to stderr; in the place of the result, the text of a
    JobError is printed behind ERROR_MARK.
    """
    job = msgspec.json.decode(sys.stdin.buffer.readline(), type=kind)
    _work_to_the_end(lambda: work(job))


def run_data_job(kind: type[DataJob], work: Callable[[DataJob, bytes], object]) -> NoReturn:
    """As `run_job`, for a job behind which as many bytes of data follow as it names."""
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
    os._exit(0)  # whatever reads the input would keep it


def _print(message: object) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


def _end_with_the_input() -> None:
    """End this process at once when its input is closed: it never outlives who began it."""
    sys.stdin.buffer.read()
    os._exit(1)
