"""What is asked beside the walk, and held as the walk is: to a time limit, to its turn, and to a caller who stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import Request

from gateway.callers import Caller
from gateway.door.wire import Call, Deadline, HungUp, Message
from gateway.errors import Problem
from gateway.house import House


def call_of(request: Request) -> Call:
    """The request on the wire, to read; what is told goes out by the framework."""
    return Call(request.scope, request.receive, _unsent)


async def _unsent(_: Message) -> None:
    """Nothing is sent this way."""


@contextmanager
def on_time(house: House, call: Call) -> Iterator[None]:
    """The time that a request may take. Raises Problem (503, 504) where it is over, HungUp where the caller is gone."""
    try:
        with Deadline(house.snapshot.current.policy.limits.request_timeout_seconds):
            yield
    except TimeoutError:
        raise Problem("timeout", "The request's time limit is over. Try again later.") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and (call.hung_up or house.admission.over):
            task.uncancel()
            raise (HungUp if call.hung_up else house.admission.shed("draining")) from None
        raise


@asynccontextmanager
async def in_turn(house: House, call: Call, caller: Caller) -> AsyncIterator[None]:
    """A place among the requests under way, waited for in line; the block ends when the caller hangs up.

    Raises Problem (429, 503) where the queue is full, or the wait too long.
    """
    with house.admission.admit(caller.public) as place, call.hang_up_cancels():
        if not place.held:
            await place.turn()
        yield
