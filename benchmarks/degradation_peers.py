"""river's detectors for `benchmarks.degradation`, in a virtual environment of their own, as a process of its own.

The process is this file, run by that environment's Python. It reads paths of matrices of 0 and 1, runs by labels, a
line each, and prints for each a line of JSON: by detector, the label of each run's first drift (null: never).
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

RIVER = "0.26.1"
NAMES = ("adwin", "page_hinkley", "hddm_a", "hddm_w")
STOP_SECONDS_MAX = 30.0


class River:
    """The process, from the first labels to the end of the `with` block. Without river it finds nothing."""

    def __init__(self, peers: Path, runs: int) -> None:
        self._program = python(peers)
        self._runs = runs
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.communicate(timeout=STOP_SECONDS_MAX)

    @property
    def asked(self) -> bool:
        """Whether there is anybody to ask."""
        return self._runs > 0 and self._program.exists()

    def first_drifts(self, bad: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[np.float64]]:
        """By detector, the label of the first drift in each of the first runs, infinite where there is none.

        Raises OSError if the process has failed.
        """
        if not self.asked:
            return {}
        if self._process is None:
            command = [str(self._program), "-P", __file__]
            self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "labels.npy"
            np.save(path, bad[: self._runs])
            self._process.stdin.write(f"{path}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise OSError("river's process has ended: see its error output")
        found: dict[str, list[int | None]] = json.loads(line)
        return {name: np.array([np.inf if at is None else at for at in alarms]) for name, alarms in found.items()}


def python(peers: Path) -> Path:
    """The Python of river's virtual environment, in the folder of all peers."""
    return peers / "river-venv" / "bin" / "python"


def detectors() -> dict[str, Callable[[], Any]]:
    """How each is made anew, with river's own parameters; Page-Hinkley is told to look for a rise only."""
    drift = importlib.import_module("river.drift")
    return {
        "adwin": drift.ADWIN,
        "page_hinkley": lambda: drift.PageHinkley(mode="up"),
        "hddm_a": drift.binary.HDDMA,
        "hddm_w": drift.binary.HDDMW,
    }


def first_drift(detector: Any, labels: Sequence[int]) -> int | None:
    """The label, from 1, at which it reports its first drift."""
    for n, label in enumerate(labels, 1):
        detector.update(label)
        if detector.drift_detected:
            return n
    return None


def main() -> None:
    """Read paths, print drifts."""
    made = detectors()
    for line in sys.stdin:
        runs = np.load(line.strip()).astype(int).tolist()
        print(json.dumps({name: [first_drift(new(), run) for run in runs] for name, new in made.items()}), flush=True)


if __name__ == "__main__":
    main()
