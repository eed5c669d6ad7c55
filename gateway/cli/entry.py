"""Where `apprentice` begins. Ctrl-C ends it without a trace, also while the commands are loaded; so do other signals
while it asks a gateway.

So does an output that can't be written: on a full disk with one line, where its reader has left with none.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

BY_SIGNAL = 128
"""The exit code of a command that a signal ends, less the signal's number: as a shell counts it."""
STOPPED, TERMINATED = BY_SIGNAL + signal.SIGINT, BY_SIGNAL + signal.SIGTERM
ENDING = (signal.SIGTERM, signal.SIGHUP)
READER_LEFT = 1
FULL = 2
UNWRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE})
"""Errors of an output that can't be written."""


class EndedBySignal(KeyboardInterrupt):
    """Ctrl-C to all but the exit code: another signal ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = BY_SIGNAL + number


def main() -> None:
    """Load the commands, and run the one that was asked for."""
    gc.set_threshold(50_000, 20, 100)  # what is loaded stays: looking through it took a tenth of the time
    try:
        # httpx looks for a command line of its own, with rich and pygments: 4 MB and 40 ms of each start
        sys.modules.setdefault("httpx._main", None)  # type: ignore[arg-type]
        from gateway.cli.main import main as run

        if isinstance(sys.stdout, io.TextIOWrapper):  # where it is closed there is none
            sys.stdout.reconfigure(errors="replace")  # on a terminal without UTF-8 it would be an error
        try:
            run()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(STOPPED)
    except OSError as error:
        _end_without_output(error)
    finally:
        gc.freeze()  # the interpreter would look through all of it once more


@contextlib.contextmanager
def end_by_signals() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the block as Ctrl-C does: else commands that it runs go on, and its files stay.

    Raises EndedBySignal.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = [each for each in ENDING if is_main and signal.getsignal(each) is signal.SIG_DFL]  # nohup ignores one
    for number in numbers:
        signal.signal(number, _end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: object) -> NoReturn:
    raise EndedBySignal(number)


def is_of_output(error: OSError) -> bool:
    """True if the error may be that of an output which can't be written; most of those of files have a name."""
    return error.filename is None and error.errno in UNWRITTEN


def _end_without_output(error: OSError) -> NoReturn:
    """End a command whose output can't be written. Raises the error again where it is another one."""
    if not is_of_output(error):
        raise error
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # else Python tries once more at its end
    if error.errno == errno.EPIPE:
        sys.exit(READER_LEFT)
    try:
        print(f"apprentice: The output, or a file, can't be written: {error.strerror}.", file=sys.stderr, flush=True)
    except OSError:  # it is on the same disk
        os.dup2(nowhere, 2)
    sys.exit(FULL)


if __name__ == "__main__":
    main()
