"""Runs a command that is told to stop when the process that started it is gone, were it by SIGKILL.

    python tether.py PARENT_PID command argument…

The kernel's parent-death signal is set here, in a program that then becomes the command, rather than in a
function between fork and exec, where Python code may deadlock. SIGTERM and not SIGKILL, since an engine has
processes of its own that only it can end. Linux only; elsewhere the command runs untethered. Run by path, it
imports nothing of ours.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the command `arguments[1:]`, tied to the process `arguments[0]`. Exits if that is gone."""
    parent_pid, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the process that started this command is gone")
    os.execvp(command[0], command)  # noqa: S606 - the command comes from our own code, as a list


if __name__ == "__main__":
    main(sys.argv[1:])
