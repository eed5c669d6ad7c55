"""Patterns and forms that engines may fail at: they end no second engine, and need permission."""

from __future__ import annotations

import pytest

from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Dies, ErrorEvent, Fault, Reset, Silent, Status
from tests.walks.fault_world import World, ask, calls, world

__all__ = ["world"]


@pytest.mark.invariant("No caller's pattern or grammar is compiled without leave, nor ends two engines.")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault", [Reset(), Dies(0), Silent(), Status(500), ErrorEvent(0)], ids=["reset", "cut", "silent", "500", "event"]
)
async def test_request_with_a_callers_pattern_that_ends_an_engine_is_sent_to_no_other(
    world: World, small: FakeEngine, general: FakeEngine, fault: Fault, stream: bool
) -> None:
    async with world(commit="complete", parameters_allowed=["regex"]) as gateway:
        await ask(gateway)
        small.faults.add(fault, model="returns@*")
        general.requests.clear()
        small.requests.clear()
        told = await ask(gateway, stream=stream, structured_outputs={"regex": "a+"})
        assert told.status in (502, 504)
        assert (len(calls(small)), len(calls(general))) == (1, 0)
        plain = await ask(gateway, stream=stream)
        assert (plain.whole, plain.models) == (True, {"large"})


async def test_a_form_that_two_replicas_fail_at_is_sent_to_no_more(
    world: World, small: FakeEngine, general: FakeEngine
) -> None:
    """vLLM answers 500 to some schemas that it can't compile: six attempts were made, three in each pool."""
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
    async with world() as gateway:
        for engine in (small, general):
            engine.faults.add(Status(500))
        told = await ask(gateway, response_format=form)
        attempts = [len(calls(engine)) for engine in (small, general)]
        await ask(gateway)
        plain = [len(calls(engine)) for engine in (small, general)]
    assert (told.status, (told.error or {})["code"], attempts) == (502, "engine_error", [2, 1])
    assert "They may not be able to compile it" in (told.error or {})["message"]
    assert sum(plain) - sum(attempts) > 3, "what asks for no form is tried as before"


@pytest.mark.parametrize("status", [401, 405, 503])
async def test_request_with_a_callers_pattern_goes_on_where_no_engine_ended(
    world: World, small: FakeEngine, status: int
) -> None:
    async with world(parameters_allowed=["regex"]) as gateway:
        small.faults.add(Status(status), model="returns@*")
        told = await ask(gateway, structured_outputs={"regex": "a+"})
    assert (told.whole, told.models) == (True, {"large"})


async def test_pattern_of_a_caller_needs_its_tasks_permission(world: World, small: FakeEngine) -> None:
    async with world() as gateway:
        told = await ask(gateway, structured_outputs={"regex": "a+"})
    assert (told.status, (told.error or {})["code"]) == (400, "parameter_not_allowed")
    assert calls(small) == []
