"""A gateway that nobody asks anything: its memory, the CPU time of its jobs, and the commands that Redis gets of them.

Part of `python -m benchmarks.scale --idle [--seconds 30] [--json]`. It has an adapter on an engine, so that no job is
without its subject. The monitor's process counts beside the gateway, not with it. Redis counts commands in scripts too.
"""

from __future__ import annotations

import socket
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.harness import FOLDER, Goal, Unmeasurable, child_named, cpu_seconds, scheduling
from benchmarks.scale_streams import resident_mb
from benchmarks.subjects import start_engine, start_gateway

IDLE_GOALS = (Goal("idle_mb", at_most=100), Goal("cpu_ms_per_second", at_most=7))
SETTLE_SECONDS = 10.0
"""The time after which no job has anything to do with the start."""
MONITOR = "monitoring.quality.signals.run"


def measure_idle(seconds: float) -> dict[str, Any]:
    """Start a gateway, let it be, stop it. Raises Unmeasurable."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="idle-", dir=FOLDER)))
        gateway = start_gateway(stack, [start_engine(stack, None)], folder, None, None)
        time.sleep(SETTLE_SECONDS)
        monitor = child_named(gateway.pid, MONITOR)
        if monitor is None or gateway.valkey_pid is None:
            raise Unmeasurable("The monitor's process was not found.")
        pids = {"cpu": gateway.pid, "monitor_cpu": monitor, "valkey_cpu": gateway.valkey_pid}
        state = folder / "data" / "valkey" / "valkey.sock"
        began, commands = time.monotonic(), commands_processed(state)
        used = {name: cpu_seconds(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        lasted = time.monotonic() - began
        figures = {
            f"{name}_ms_per_second": (cpu_seconds(pid) - used[name]) / lasted * 1000 for name, pid in pids.items()
        }
        figures["commands_per_second"] = (commands_processed(state) - commands) / lasted
        figures |= {"idle_mb": resident_mb(gateway.pid), "monitor_mb": resident_mb(monitor)}
    return {"seconds": seconds, "scheduling": scheduling(), "figures": figures}


def commands_processed(state: Path) -> int:
    """Commands that Redis has carried out so far."""
    with socket.socket(socket.AF_UNIX) as peer, peer.makefile("rb") as answer:
        peer.connect(str(state))
        peer.sendall(b"INFO stats\r\n")
        size = int(answer.readline()[1:])
        counts = dict(line.split(":", 1) for line in answer.read(size).decode().splitlines() if ":" in line)
    return int(counts["total_commands_processed"])
