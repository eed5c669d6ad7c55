"""Limits of connections: places, shares of an address, room for bodies, and callers that read slowly or nothing."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.configuration.sections import DoorLimits
from gateway.server.asgi_messages import HungUp
from gateway.server.exchange import Exchange
from gateway.server.listener import network_of
from gateway.server.shared_capacity import SharedCapacity
from tests.gateway.server.listening import ADMIN_KEY, KEY, Answers, Listening, listening
from tests.gateway.server.raw_requests import AUTHORIZATION, NEXT, POST, ask
from tests.waiting import until


async def test_places_are_kept_for_probes_and_admins() -> None:
    limits = DoorLimits(connections_max=4, connections_reserved=2, address_share_max=1)
    probe = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
    async with listening(Listening(limits=limits)) as port, open_sockets(port, 4):
        assert (await ask(port, probe)).statuses == [200]
        assert (await ask(port, NEXT)).statuses == [503]
        assert (await ask(port, NEXT.replace(KEY.encode(), ADMIN_KEY.encode()))).statuses == [200]
        assert (await ask(port, half_closes=False)).statuses == [503], "who says nothing has a second"
        async with open_sockets(port, 2):
            assert (await ask(port, probe)).statuses == [503]


async def test_refused_connections_take_no_place_while_they_are_closed() -> None:
    limits = DoorLimits(connections_max=8, connections_reserved=0, address_share_max=0.5)
    app = Listening(limits=limits)
    async with listening(app):
        assert app.listener is not None
        many = [
            (connection, app.listener.enter(connection, "10.0.0.1")) for connection in (object() for _ in range(20))
        ]
        assert [standing for _, standing in many].count("open") == 4
        other = object()
        assert app.listener.enter(other, "10.0.0.2") == "open"
        for connection, standing in many:
            app.listener.leave(connection, "10.0.0.1", standing)
        app.listener.leave(other, "10.0.0.2", "open")
        assert app.connections == 0


async def test_one_address_has_its_share_of_the_connections() -> None:
    limits = DoorLimits(connections_max=8, connections_reserved=0, address_share_max=0.5)
    async with listening(Listening(limits=limits)) as port, open_sockets(port, 4):
        assert (await ask(port, NEXT)).statuses == [503]
        assert (await ask_from("127.0.0.2", port, NEXT)).statuses == [200]


async def test_one_address_has_its_share_of_the_places_for_probes() -> None:
    limits = DoorLimits(connections_max=1, connections_reserved=2, address_share_max=0.5)
    probe = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
    async with listening(Listening(limits=limits)) as port, open_sockets(port, 2):
        assert (await ask(port, probe)).statuses == [503]
        assert (await ask_from("127.0.0.2", port, probe)).statuses == [200]


async def ask_from(host: str, port: int, sent: bytes) -> Answers:
    """The same from another address of this machine."""
    with socket.create_connection(("127.0.0.1", port), source_address=(host, 0)) as other:
        reader, writer = await asyncio.open_connection(sock=other)
        writer.write(sent)
        writer.write_eof()
        try:
            return Answers(await reader.read())
        finally:
            writer.close()


@asynccontextmanager
async def open_sockets(port: int, count: int) -> AsyncIterator[None]:
    """So many connections that say nothing."""
    writers = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(count)]
    await asyncio.sleep(0.05)
    try:
        yield
    finally:
        for writer in writers:
            writer.close()
        await asyncio.sleep(0.05)


async def test_no_byte_of_a_body_is_held_without_a_key() -> None:
    app = Listening()
    async with listening(app) as port:
        nobody = POST.replace(AUTHORIZATION, b"")
        answers = await ask(port, nobody + b"Content-Length: 1000000\r\n\r\n", b"x" * 100_000)
        assert (answers.statuses, app.body_bytes) == ([401], 0)
        assert answers.headers[0]["connection"] == "close"
        told = await ask(port, nobody + b"Content-Length: 1000000\r\nExpect: 100-continue\r\n\r\n")
        assert told.raw.startswith(b"HTTP/1.1 401")
    assert app.refusals == ["invalid_api_key"] * 2
    assert not app.opened


async def test_all_bodies_under_way_share_one_budget() -> None:
    app = Listening(bodies_bytes_max=100_000)
    async with listening(app) as port:
        first = POST + b"Content-Length: 80000\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first + b"x" * 60_000)
        while app.body_bytes < 60_000:
            await asyncio.sleep(0.01)
        assert (await ask(port, first + b"x" * 80_000)).statuses == [503]
        writer.write(b"x" * 20_000)
        writer.write_eof()
        assert Answers(await reader.read()).statuses == [200]
        assert (await ask(port, first + b"x" * 80_000)).statuses == [200]
        assert app.body_bytes == 0
        writer.close()


def test_one_caller_has_its_share_of_the_room_for_bodies() -> None:
    bodies = SharedCapacity(100, share_max=0.5)
    assert bodies.take("a", 50)
    assert not bodies.take("a", 1)
    assert bodies.take("b", 50)
    assert not bodies.take("c", 1)
    bodies.give_back("a", 50)
    assert bodies.take("c", 1)


def test_connections_of_one_network_count_together() -> None:
    assert network_of("127.0.0.1") == network_of("::ffff:127.0.0.1") == "127.0.0.1"
    assert network_of("2001:db8:1:2::1") == network_of("2001:db8:1:2:ffff::9") == "2001:db8:1:2::/64"
    assert network_of("fe80::1%eth0") == "fe80::/64"


async def test_a_caller_that_reads_nothing_is_cut_in_stated_time(caplog: pytest.LogCaptureFixture) -> None:
    ended = asyncio.Event()

    async def flood(exchange: Exchange) -> None:
        try:
            with exchange.hang_up_cancels():
                await exchange.begin(200, [])
                while True:
                    await exchange.write(b"x" * 65_536)
        finally:
            ended.set()

    app = Listening(flood, limits=DoorLimits(unread_seconds_max=0.3))
    async with listening(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()
        writer.write(NEXT)
        async with asyncio.timeout(30):
            await ended.wait()
            while app.connections:
                await asyncio.sleep(0.01)
        writer.close()
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


async def test_a_caller_that_reads_slowly_is_not_cut() -> None:
    async def flood(exchange: Exchange) -> None:
        with exchange.hang_up_cancels():
            await exchange.begin(200, [])
            while True:
                await exchange.write(b"x" * 65_536)

    app = Listening(flood, limits=DoorLimits(unread_seconds_max=2.0))
    async with listening(app) as port:
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
            caller.connect(("127.0.0.1", port))
            caller.setblocking(False)
            caller.sendall(NEXT)
            for _ in range(35):
                await asyncio.sleep(0.1)
                for _ in range(64):
                    with suppress(BlockingIOError):
                        assert caller.recv(65_536), "it was cut"
            assert app.connections == 1


@pytest.mark.parametrize("half_closes", [True, False])
async def test_a_caller_that_reads_its_last_answer_slowly_gets_all_of_it(half_closes: bool) -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(200, [], b"x" * 10_000_000)

    app = Listening(answer, limits=DoorLimits(unread_seconds_max=0.5))
    async with listening(app) as port, asyncio.timeout(60):
        with socket.socket() as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            caller.connect(("127.0.0.1", port))
            caller.sendall(NEXT if half_closes else NEXT.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            if half_closes:
                caller.shutdown(socket.SHUT_WR)
            caller.setblocking(False)
            loop, read_bytes = asyncio.get_running_loop(), 0
            while part := await loop.sock_recv(caller, 16_384):  # the kernel takes more only once a third has gone
                read_bytes += len(part)
                await asyncio.sleep(0.01)
    assert read_bytes > 10_000_000


async def test_a_caller_that_reads_nothing_and_sends_no_more_is_cut() -> None:
    async def answer(exchange: Exchange) -> None:
        await exchange.whole(200, [], b"x" * 4_000_000)

    app = Listening(answer, limits=DoorLimits(unread_seconds_max=0.3))
    async with listening(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()
        writer.write(NEXT)
        writer.write_eof()
        async with asyncio.timeout(30):
            while app.connections:
                await asyncio.sleep(0.01)
        writer.close()


async def test_requests_without_a_key_hold_nobody_up() -> None:
    app = Listening()
    async with listening(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.pause_reading()
        writer.write(b"GET /x HTTP/1.1\r\nHost:\r\n\r\n" * 50_000)
        probe = b"GET /health/live HTTP/1.1\r\nHost: gateway\r\n\r\n"
        assert (await ask(port, probe)).statuses == [200]
        assert len(app.refusals) <= 100
        writer.close()


@pytest.mark.parametrize(("raised", "is_told"), [(HungUp(), False), (KeyError("a fault of ours"), True)])
async def test_a_hang_up_hides_no_fault_of_the_gateway(
    caplog: pytest.LogCaptureFixture, raised: Exception, is_told: bool
) -> None:
    async def fail(exchange: Exchange) -> None:
        with suppress(HungUp):
            await exchange.body(10)
        assert exchange.hung_up
        raise raised

    app = Listening(fail, key_for_all=True)
    with caplog.at_level(logging.INFO):
        async with listening(app) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST / HTTP/1.1\r\nHost: gateway\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()
            await until(lambda: app.connections == 0 and app.listener and not app.listener.tasks)
    told = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert told == ([raised] if is_told else [])
