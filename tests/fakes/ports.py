"""Ports of this machine."""

from __future__ import annotations

import contextlib
import os
import random
import socket

PORTS = range(20_000, 32_000)
"""Below those that the system gives to whoever asks for any: it gives none of them away before it is bound."""
WORKERS = 16
_run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))  # runs beside each other start elsewhere
_worker = (sum(_run.encode()) + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:])) % WORKERS
_not_given = random.SystemRandom().sample(PORTS[_worker::WORKERS], len(PORTS) // WORKERS)


def free_port() -> int:
    """A port of the loopback that nobody listens on now, and that nobody gets by chance: each worker has its own."""
    while _not_given:
        port = _not_given.pop()
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
