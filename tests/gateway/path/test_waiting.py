"""The waiting of a request: the length of a pause."""

from __future__ import annotations

import time

import uvloop

from gateway.path.ledger import Ledger
from gateway.path.waiting import wait_before_attempt
from monitoring.records import Record


def test_pause_that_the_event_loop_ends_early_counts_as_long_as_it_was() -> None:
    async def look() -> None:
        ledger = Ledger(Record(id="a", at=0.0, endpoint="chat", caller="c", requested_model="returns"), 0.0)
        began_at = time.monotonic()
        await wait_before_attempt(0.0004, ledger)  # uvloop rounds it to no millisecond at all
        assert 0 < ledger.paused_seconds <= time.monotonic() - began_at

    uvloop.run(look())
