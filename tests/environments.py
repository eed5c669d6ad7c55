"""Environments of tools that can't share the tests' own: requirements/NAME.lock goes into var/NAME-venv."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def install_environment(name: str) -> Path:
    """The Python of the environment. Leaves a test out where it can't be installed."""
    lock, folder = ROOT / "requirements" / f"{name}.lock", ROOT / "var" / f"{name}-venv"
    folder.parent.mkdir(exist_ok=True)
    python, mark = folder / "bin" / "python", folder / lock.name
    uv = Path(sys.executable).with_name("uv")  # pip takes ten times as long
    with folder.with_suffix(".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not mark.exists() or mark.read_bytes() != lock.read_bytes():
            install = [uv, "pip", "install", "--quiet", "--python", python, "--require-hashes", "-r", lock]
            for command in ([uv, "venv", "--quiet", "--clear", "--python", sys.executable, folder], install):
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode:
                    pytest.skip(f"{name} can't be installed: {done.stderr[-300:]}")
            shutil.copy(lock, mark)
    return python
