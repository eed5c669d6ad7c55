"""Requests beside the walk, with the walk's rules: a time limit, a turn in the queue, an end if the caller hangs up."""

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
    """The response of `answer`. Raises Problem (504) if the time limit passes, or (503) if the gateway stops."""
    exchange: Exchange = request.scope["exchange"]  # only to read: the framework sends the response
    try:
        with _on_time(services, exchange):
            return await answer(exchange)
    except HungUp:
        return Response(status_code=499)


@contextmanager
def _on_time(services: Services, exchange: Exchange) -> Iterator[None]:
    """The time limit of a request. Raises Problem (504 after it, 503 if the gateway stops), or HungUp."""
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
    """Wait in the queue for a place among the running requests. The block is cancelled when the caller hangs up.

    Raises Problem (429, 503) if the queue is full or the wait is too long.
    """
    with services.admission.admit(caller.public) as place, exchange.hang_up_cancels():
        if not place.is_taken:
            await place.turn()
        yield
