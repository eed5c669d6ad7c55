"""Whatever bytes come, however they are cut: answered in order and well formed, nothing held, nobody misled."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest
from uvicorn.server import ServerState

from gateway.configuration.sections import DoorLimits
from gateway.server.connection import Connection
from gateway.server.listener import Address, Listener
from gateway.server.shared_capacity import SharedCapacity
from tests.gateway.server.listening import Answers, Listening
from tests.gateway.server.test_rfc9112 import ROWS

SHARDS = 4
INPUTS = 25_000
"""Of each shard: 100,000 in all."""
PIECES = [
    *(
        b"\r\n",
        b"\n",
        b"\r",
        b"\x00",
        b" ",
        b":",
        b"\r\n\r\n",
        b"0\r\n\r\n",
        b"5\r\nhello\r\n",
        b"ffffffff\r\n",
        b"\xff",
    ),
    *(b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n"),
    *(
        b"Connection: Upgrade\r\nUpgrade: h2c\r\n",
        b"Expect: 100-continue\r\n",
        b"Host: other\r\n",
        b"GET / HTTP/1.1\r\n",
    ),
    *(b"X: " + b"y" * 300 + b"\r\n", b"PUT ", b" HTTP/1.0\r\n", b"%2F", b"?a=b", b"http://gateway"),
]
SEEDS = [sent for sent, _ in ROWS.values()]
LIMITS = DoorLimits(head_bytes_max=1024, headers_max=12)


class Transport:
    """The connection's output, without a network."""

    def __init__(self) -> None:
        self.protocol: Connection
        self.sent = bytearray()
        self.closing = False

    def write(self, data: bytes) -> None:
        assert not self.closing, "something was written behind the end"
        self.sent += data

    def write_eof(self) -> None:
        return None

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        return None

    def resume_reading(self) -> None:
        return None

    def get_extra_info(self, name: str) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else None


def mutated(chance: random.Random) -> bytes:
    """A few requests, damaged a little or a lot."""
    data = bytearray(b"".join(chance.choice(SEEDS) for _ in range(chance.randint(1, 3))))
    for _ in range(chance.choice((0, 1, 1, 2, 4, 8))):
        at = chance.randrange(len(data) + 1)
        kind = chance.random()
        if kind < 0.5:
            data[at:at] = chance.choice(PIECES)
        elif kind < 0.7:
            del data[at : at + chance.randint(1, 20)]
        elif kind < 0.9 and at < len(data):
            data[at] = chance.randrange(256)
        else:
            data[at:at] = data[: chance.randint(1, 60)]
    return bytes(data)


async def _answered(app: Listening, state: ServerState) -> None:
    """Wait until only requests whose bodies do not come are left."""
    for _ in range(3):  # what is left for the next turn of the event loop may begin more
        await asyncio.sleep(0)
        while len(state.tasks) > sum(not exchange.complete and not exchange.ended for exchange in app.opened):
            await asyncio.sleep(0)


async def told(parts: list[bytes]) -> tuple[list[int], list[bytes]]:
    """The statuses of the answers to these bytes, and the bodies that the application was sent."""
    app, state, budget = Listening(limits=LIMITS), ServerState(), SharedCapacity(1 << 20)
    listener = Listener(Address("tests", "", 0), LIMITS, budget, state, app)
    connection, transport = Connection(listener), Transport()
    transport.protocol = connection
    connection.connection_made(transport)  # type: ignore[arg-type]
    for part in parts:
        connection.data_received(part)
        await asyncio.sleep(0)
    await _answered(app, state)
    if not connection.eof_received():
        transport.close()
    await _answered(app, state)
    transport.close()
    while state.connections or state.tasks:
        await asyncio.sleep(0)
    assert budget.taken == 0
    assert listener.connections == 0
    answers = Answers(bytes(transport.sent))
    assert all(status in (200, 400, 401, 405, 413, 415, 431, 501) for status in answers.statuses)
    return answers.statuses, [answers.bodies[place] for place, status in enumerate(answers.statuses) if status == 200]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("shard", range(SHARDS))
async def test_any_bytes_are_answered_alike_however_they_are_cut(shard: int) -> None:
    chance = random.Random(20_261_128 + shard)
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: faults.append(context))
    for number in range(INPUTS):
        data = mutated(chance)
        ends = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(1, 4)))
        cut = [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]
        whole, parts = await told([data]), await told([part for part in cut if part])
        assert not faults, (number, data, faults)
        assert whole == parts, (number, data, ends)
