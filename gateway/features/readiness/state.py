"""The state of readiness."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.services import Services


@dataclass(frozen=True)
class Readiness:
    """`turn` is held while a process computes: one at a time."""

    services: Services
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
