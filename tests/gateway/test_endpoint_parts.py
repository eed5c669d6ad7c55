"""The shared parts of endpoints: the caller, its role, and the query of the address."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from gateway.app import ROUTERS


def calls_of(dependant: Dependant) -> Iterator[object]:
    """The functions that FastAPI calls before an endpoint, for its arguments."""
    for each in dependant.dependencies:
        yield each.call
        yield from calls_of(each)


def test_nothing_before_an_endpoint_takes_a_thread() -> None:
    """FastAPI runs each function that is not a coroutine in a thread: two of them were a third of a call's CPU."""
    routes = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
    calls = {call for route in routes for call in calls_of(route.dependant)}
    assert [call for call in calls if not inspect.iscoroutinefunction(call)] == []
