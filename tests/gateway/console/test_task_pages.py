"""The figures of the console's pages of tasks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from gateway.console.task_pages import sum_counters
from gateway.sibling_processes import Siblings
from monitoring.metrics import Meters
from serving.shared_memory import SharedMemory


async def test_totals_of_all_processes_are_unknown_where_nobody_tells_those_of_the_others() -> None:
    services: Any = SimpleNamespace(meters=Meters(), control=SimpleNamespace(siblings=Siblings()))
    assert await sum_counters(services) == {}
    services.control.siblings = Siblings(SharedMemory(2))
    assert await sum_counters(services) is None
