"""Launcher of a command that gets SIGTERM when its parent process dies, even by SIGKILL.

    python tether.py PARENT_PID command argument…

It sets the kernel's parent-death signal and then becomes the command. Python code between fork and exec could
deadlock instead. The signal is SIGTERM, since only the engine can end its own children. Linux only: elsewhere the
command runs without it. This file is run by its path and imports nothing of the project.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Become the command `arguments[1:]`, tied to the process `arguments[0]`. Exit if that process is gone."""
    parent_pid, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != parent_pid:
        sys.exit("the process that started this command is gone")
    os.execvp(command[0], command)  # noqa: S606 - the command comes from our own code, as a list


if __name__ == "__main__":
    main(sys.argv[1:])
