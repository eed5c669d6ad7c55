"""Many streams at an engine's pace: what is kept of it, with what CPU time and memory.

Part of `python -m benchmarks.scale --streams 1024 [--pace-ms 20] [--seconds 10] [--processes 2] [--json]`. C engines
send an event to each stream at a fixed pace. One process is all callers: each begins a stream anew as soon as its last
one has ended. The bounds are the defaults, with as many replicas as hold the streams; nothing is pinned. Callers and
engines share the cores with the gateway: what they take of them is told, too.
"""

from __future__ import annotations

import os
import selectors
import socket
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from benchmarks.harness import FOLDER, Goal, Unmeasurable, cpu_seconds, prefer, scheduling
from benchmarks.scale_processes import children_of
from benchmarks.subjects import Subject, chunks_sent, set_pace, start_engine, start_gateway
from benchmarks.walk import PATH, body

STREAM_GOALS = (
    Goal("pace_kept_share", at_least=0.95),
    Goal("refused", at_most=0),
    Goal("streaming_mb", at_most=180),
)
IN_FLIGHT_MAX = 256
"""The default of `in_flight_max` of a replica."""
READ_BYTES = 1 << 16
WARM_UP_SECONDS = 3.0
LATE_PACES = 2.0
"""A gap of more paces than this is late."""


@dataclass
class Callers:
    """All callers: an open connection each, over which one stream follows another."""

    port: int
    request: bytes
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    gaps: list[float] = field(default_factory=list)
    refused: int = 0

    def connect(self, count: int) -> None:
        """Begin so many streams."""
        for _ in range(count):
            peer = socket.create_connection(("127.0.0.1", self.port))
            peer.sendall(self.request)
            peer.setblocking(False)
            self.selector.register(peer, selectors.EVENT_READ, [0.0])

    def read(self, seconds: float) -> None:
        """Read what comes, and note the time between two reads of one stream."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            for key, _ in self.selector.select(min(until - now, 0.1)):
                self._take(cast(socket.socket, key.fileobj), key.data, time.monotonic())

    def _take(self, peer: socket.socket, last: list[float], now: float) -> None:
        data = peer.recv(READ_BYTES)
        if not data:
            raise Unmeasurable("A stream was cut.")
        if last[0]:
            self.gaps.append(now - last[0])
        last[0] = now
        if b"HTTP/1.1 " in data and b"HTTP/1.1 200 " not in data:
            self.refused += 1
        if b"data: [DONE]" in data:
            last[0] = 0.0
            peer.sendall(self.request)

    def close(self) -> None:
        """Hang up."""
        for key in list(self.selector.get_map().values()):
            cast(socket.socket, key.fileobj).close()
        self.selector.close()


def resident_mb(pid: int) -> float:
    """The memory of a process in MB."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def measure_streams(streams: int, pace_ms: float, seconds: float, processes: int) -> dict[str, Any]:
    """Start everything, let the streams run, stop everything. Raises Unmeasurable."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pace_seconds = pace_ms / 1000
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streams-", dir=FOLDER)))
        engines = [start_engine(stack, None) for _ in range(-(-2 * streams // IN_FLIGHT_MAX))]
        gateway = start_gateway(stack, engines, folder, None, None, "--processes", str(processes))
        load = [os.getpid(), *(engine.pid for engine in engines)]
        for pid in (gateway.pid, *load):
            prefer(pid)
        idle_mb = max(map(resident_mb, children_of(gateway.pid)))
        for engine in engines:
            set_pace(engine, int(pace_ms * 1000))
        callers = Callers(gateway.port, request_of(gateway))
        stack.callback(callers.close)
        callers.connect(streams)
        callers.read(WARM_UP_SECONDS)
        callers.gaps.clear()
        began_mb = max(map(resident_mb, children_of(gateway.pid)))
        began, sent, used = time.monotonic(), sum(map(chunks_sent, engines)), cpu_of(gateway)
        load_used = sum(map(cpu_seconds, load))
        callers.read(seconds)
        lasted = time.monotonic() - began
        sent, used = sum(map(chunks_sent, engines)) - sent, cpu_of(gateway) - used
        load_used = sum(map(cpu_seconds, load)) - load_used
        ended_mb = max(map(resident_mb, children_of(gateway.pid)))
    gaps = sorted(callers.gaps)
    if not gaps or not sent:
        raise Unmeasurable("No stream ran.")
    figures = {
        "refused": callers.refused,
        "pace_kept_share": sent / lasted * pace_seconds / streams,
        "gaps_on_time_share": sum(gap <= LATE_PACES * pace_seconds for gap in gaps) / len(gaps),
        "gap_p99_ms": gaps[int(len(gaps) * 0.99)] * 1000,
        "cpu_us_per_chunk": used / sent * 1e6,
        "cores": used / lasted,
        "cores_of_callers_and_engines": load_used / lasted,
        "idle_mb": idle_mb,
        "streaming_mb": ended_mb,
        "growth_mb": ended_mb - began_mb,
    }
    settings = {"streams": streams, "pace_ms": pace_ms, "seconds": seconds, "processes": processes}
    return {**settings, "scheduling": scheduling(), "figures": figures}


def request_of(gateway: Subject) -> bytes:
    """The bytes of one streamed request."""
    asked = body(gateway.model, True)
    head = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {gateway.key}\r\n"
    return f"{head}content-type: application/json\r\ncontent-length: {len(asked)}\r\n\r\n".encode() + asked


def cpu_of(gateway: Subject) -> float:
    """CPU seconds of all processes that serve."""
    return sum(map(cpu_seconds, children_of(gateway.pid)))
