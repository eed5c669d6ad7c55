"""What must hold of a gateway once all its cases are over: nothing is held, and its log tells of no own fault."""

from __future__ import annotations

import re
import time

from benchmarks.harness import POLL_SECONDS, ask
from benchmarks.wire_engines import Outcome
from benchmarks.wire_worlds import World

QUIET_SECONDS_MAX = 10.0
LINES_SHOWN = 20
FAULTS = re.compile(r"Traceback|internal_error|Exception in|KeyError|never retrieved|never awaited")
HELD = re.compile(r"^(apprentice_(?:in_flight|queue_length)(?:\{.*\})?) (\S+)$", re.MULTILINE)


def play_afterwards(world: World, group: str, part: int) -> list[Outcome]:
    """Two rows for each gateway."""
    began = time.monotonic()
    held = _held(world)
    while held and time.monotonic() < began + QUIET_SECONDS_MAX:
        time.sleep(POLL_SECONDS)  # waits for a process, in a thread of its own
        held = _held(world)
    log = world.log.read_text(encoding="utf-8", errors="replace")
    lines = log.splitlines()
    faults = [number for number, line in enumerate(lines) if FAULTS.search(line)]
    first = " | ".join(lines[max(0, faults[0] - 1) : faults[0] + LINES_SHOWN]) if faults else ""
    why = f"{len(faults)} lines, the first of them: {first}" if faults else ""
    seconds = time.monotonic() - began
    return [
        Outcome(group, f"{group}-{part}-holds-nothing", "nothing is under way once all is over", held, seconds),
        Outcome(group, f"{group}-{part}-logs-no-fault", "no fault of the gateway's own is in its log", why, 0.0),
    ]


def _held(world: World) -> str:
    """The gauges that are not zero."""
    text = ask(world.port, "GET", "/metrics")[2].decode()
    return "; ".join(f"{name}: {value}" for name, value in HELD.findall(text) if float(value))
