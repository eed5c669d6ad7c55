"""Packages of Node that tests use: installed by the lock file in tests/walks/node, once for all of them."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.programs import program
from tests.style.source import ROOT

NODE = Path(__file__).parent / "node"
INSTALLED = ROOT / "var" / "node-sdk"


def install_node_packages() -> Path:
    """The folder that holds them, and the scripts of tests. Leaves a test out where they can't be installed."""
    for name in ("node", "npm"):
        program(name)
    INSTALLED.mkdir(parents=True, exist_ok=True)
    with (INSTALLED / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for path in NODE.iterdir():
            shutil.copy(path, INSTALLED / path.name)
        wanted = json.loads((NODE / "package.json").read_text())["dependencies"]
        if any(_find_version(name) != version for name, version in wanted.items()):
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--silent"]
            done = subprocess.run(command, cwd=INSTALLED, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"npm can't install the packages for Node: {done.stderr[-300:]}")
    return INSTALLED


def _find_version(name: str) -> str | None:
    path = INSTALLED / "node_modules" / name / "package.json"
    return str(json.loads(path.read_text())["version"]) if path.exists() else None
