"""Requests beside the walk, held as the walk is: to a time limit, to a turn, and to a caller who stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import Request, Response

from gateway.callers import Caller
from gateway.errors import Problem
from gateway.server.asgi_messages import HungUp
from gateway.server.deadline import Deadline
from gateway.server.exchange import Exchange
from gateway.services import Services


async def answer_in_time(
    services: Services, request: Request, answer: Callable[[Exchange], Awaitable[Response]]
) -> Response:
    """The response of `answer` to a request, within the time limit. Raises Problem (503, 504) where that is over."""
    exchange: Exchange = request.scope["exchange"]  # to read; what is told goes out by the framework
    try:
        with _on_time(services, exchange):
            return await answer(exchange)
    except HungUp:
        return Response(status_code=499)


@contextmanager
def _on_time(services: Services, exchange: Exchange) -> Iterator[None]:
    """The time that a request may take. Raises Problem (503, 504) where it is over, HungUp where the caller is gone."""
    try:
        with Deadline(services.snapshot.current.policy.limits.request_timeout_seconds):
            yield
    except TimeoutError:
        raise Problem("timeout", "The request's time limit is over. Try again later.") from None
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and (exchange.hung_up or services.admission.stage == "over"):
            task.uncancel()
            raise (HungUp if exchange.hung_up else services.admission.shed("draining")) from None
        raise


@asynccontextmanager
async def wait_in_turn(services: Services, exchange: Exchange, caller: Caller) -> AsyncIterator[None]:
    """A place among the requests under way, waited for in line; the block ends when the caller hangs up.

    Raises Problem (429, 503) where the queue is full, or the wait too long.
    """
    with services.admission.admit(caller.public) as place, exchange.hang_up_cancels():
        if not place.is_taken:
            await place.turn()
        yield
