"""Parts of an answer that its reader takes as they came: whole events, in their order, within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from serving.errors import (
    Oversize,
    Silent,
    Truncated,
)
from tests.serving.test_engine_client import STREAM_HEAD, ask, talking
from tests.waiting import until


def http_chunk(body: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(body), body)


EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'


class Takes:
    """Takes parts of a body, but not those with `not` in them."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def __call__(self, parts: list[bytes]) -> int:
        kept = next((place for place, part in enumerate(parts) if b"not" in part), len(parts))
        self.parts += parts[:kept]
        return kept


@asynccontextmanager
async def passing(*steps: Any, **more: Any) -> AsyncIterator[tuple[Any, Takes, asyncio.Task[bytes]]]:
    """A stream that has begun, with somebody who takes its parts, and a task that waits for what is left."""
    waits = asyncio.Event()
    async with talking([STREAM_HEAD + http_chunk(b"first"), waits, *steps], **more) as (engine, client):
        answer = await ask(engine, client)
        assert await answer.next_chunk() == b"first"
        takes = Takes()
        answer.pass_to(takes)
        waiting = asyncio.create_task(answer.next_chunk())
        await asyncio.sleep(0)
        waits.set()
        try:
            yield answer, takes, waiting
        finally:
            waiting.cancel()
            answer.close()
            for step in steps:
                if isinstance(step, asyncio.Event):
                    step.set()


@pytest.mark.parametrize("size", [1, 15, 16, 200, 254, 255, 256, 257, 2046, 2047, 2048, 5000, 70_000])
@pytest.mark.parametrize("cut_at", [None, 1, 5, -1, -2, -3])
async def test_parts_are_taken_as_they_came_wherever_the_network_cut_them(size: int, cut_at: int | None) -> None:
    bodies = [(EVENT * (size // len(EVENT) + 1))[-size:] for _ in range(4)]
    whole = b"".join(map(http_chunk, bodies))
    steps = [http_chunk(body) for body in bodies] if cut_at is None else [whole[:cut_at], whole[cut_at:]]
    go = [asyncio.Event() for _ in steps]
    never = asyncio.Event()
    async with passing(*(one for pair in zip(go, steps, strict=True) for one in pair), never) as (_, takes, waiting):
        for one in go:
            await asyncio.sleep(0.01)
            one.set()
        await until(lambda: sum(map(len, takes.parts)) == 4 * size)
        assert b"".join(takes.parts) == b"".join(bodies)
        assert not waiting.done()


async def test_part_that_is_left_wakes_its_reader_and_those_behind_it_wait() -> None:
    go, never = asyncio.Event(), asyncio.Event()
    sent = [EVENT, b"not this\n\n", EVENT + b"\n\n"]
    async with passing(http_chunk(EVENT), go, b"".join(map(http_chunk, sent)), never) as (answer, takes, waiting):
        await until(lambda: takes.parts == [EVENT])
        go.set()
        assert await waiting == b"".join(sent[1:])
        assert takes.parts == [EVENT, EVENT]
        answer.pass_to(None)


async def test_parts_wait_while_nobody_waits_for_them() -> None:
    never = asyncio.Event()
    async with talking([STREAM_HEAD + http_chunk(b"first"), http_chunk(EVENT), never]) as (engine, client):
        answer = await ask(engine, client)
        takes = Takes()
        answer.pass_to(takes)
        connection = answer._connection
        await until(lambda: connection._buffered == 5 + len(EVENT))
        assert await answer.next_chunk() == b"first" + EVENT
        assert not takes.parts
        answer.close()
        never.set()


@pytest.mark.parametrize("end", [b"0\r\n\r\n", None])
async def test_reader_is_told_of_the_end_behind_parts_that_were_taken(end: bytes | None) -> None:
    async with passing(http_chunk(EVENT) * 3, end) as (_, takes, waiting):
        if end is None:
            with pytest.raises(Truncated):
                await waiting
        else:
            assert await waiting == b""
        assert b"".join(takes.parts) == EVENT * 3


@pytest.mark.parametrize("framing", [b"zz\r\n", b"-1\r\n", b"0x2f\r\n", b" 2f\r\n", b"2_f\r\n", b"%x \n" % len(EVENT)])
async def test_part_with_a_wrong_size_is_not_taken(framing: bytes) -> None:
    never = asyncio.Event()
    async with passing(http_chunk(EVENT), never) as (_, takes, _waiting):
        await until(lambda: takes.parts == [EVENT])
    go = asyncio.Event()
    async with passing(http_chunk(EVENT), go, framing + EVENT + b"\r\n", never) as (_, takes, waiting):
        await until(lambda: takes.parts == [EVENT])
        go.set()
        with pytest.raises(Truncated):
            await waiting
        assert takes.parts == [EVENT]


@pytest.mark.parametrize("together", [True, False])
async def test_parts_that_are_taken_count_against_the_longest_answer(together: bool) -> None:
    never = asyncio.Event()
    steps = [http_chunk(EVENT) * 40] if together else [http_chunk(EVENT)] * 40
    async with passing(*steps, never, answer_bytes_max=20 * len(EVENT)) as (_, takes, waiting):
        with pytest.raises(Oversize):
            await asyncio.wait_for(waiting, 30)
        assert len(b"".join(takes.parts)) <= 20 * len(EVENT)


async def test_parts_that_are_taken_without_a_token_end_no_silence() -> None:
    never = asyncio.Event()
    async with passing(*[http_chunk(EVENT)] * 3, never) as (answer, takes, waiting):
        answer.expect_tokens(0.2)
        await until(lambda: len(b"".join(takes.parts)) == 3 * len(EVENT))
        with pytest.raises(Silent):
            await asyncio.wait_for(waiting, 30)


async def test_a_closed_answer_leaves_its_connection_to_the_next() -> None:
    end, waits = b"0\r\n\r\n", asyncio.Event()
    async with talking([STREAM_HEAD + end], [STREAM_HEAD, waits, http_chunk(EVENT), end]) as (engine, client):
        first = await ask(engine, client)
        assert await first.next_chunk() == b""
        first.close()
        second = await ask(engine, client)
        takes = Takes()
        second.pass_to(takes)
        first.pass_to(None)
        waiting = asyncio.create_task(second.next_chunk())
        await asyncio.sleep(0)
        waits.set()
        assert await waiting == b""
        assert takes.parts == [EVENT]
        second.close()
