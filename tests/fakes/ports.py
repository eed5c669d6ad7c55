"""Ports of this machine."""

from __future__ import annotations

import contextlib
import random
import socket

PORTS = range(20_000, 32_000)
"""Below those that the system gives to whoever asks for any: it gives none of them away before it is bound."""


def free_port() -> int:
    """A port of the loopback that nobody listens on now, and that nobody gets by chance."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")
