"""Process cases: what befalls the gateway, its Valkey, its disk and its clock, and what must hold of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.wire_engines import Outcome


@dataclass(frozen=True)
class Process:
    """A case: `run` gives the reasons for which it does not hold."""

    name: str
    says: str
    run: Callable[[], list[str]]


def play_process(case: Process) -> Outcome:
    """Run one case, with what it needs of its own."""
    began = time.monotonic()
    why = case.run()
    return Outcome("process", case.name, case.says, "; ".join(why), time.monotonic() - began)


PROCESSES: Sequence[Process] = ()
