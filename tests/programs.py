"""Programs of the machine that tests start. A test whose program is missing is left out, and named at the run's end."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

ROWS = [
    line.split()
    for line in (Path(__file__).with_name("debian-packages.txt")).read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def program(name: str) -> str:
    """The path of a program. Leaves the test, or the module that is imported, out where it is missing."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(reason(name), allow_module_level=True)
    return found


def needs(*names: str) -> pytest.MarkDecorator:
    """Leave a test out where one of these programs is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason="; ".join(map(reason, missing)))


def reason(name: str) -> str:
    """Why a test is left out, and what to install."""
    package = next((package for package, programs, _ in ROWS if name in programs.split(",")), name)
    return f"{name} is missing: apt-get install {package}"
