"""The state of readiness."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.services import Services

PLACES = 4
"""Answers at the same time, each with its data in memory: one is computed, the others wait."""


@dataclass(frozen=True)
class Readiness:
    """`turn` is held while a process computes: one at a time."""

    services: Services
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(PLACES))
