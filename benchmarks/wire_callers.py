"""Caller cases: the bytes that a caller sends on connections of its own address, and what comes back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness import ask
from benchmarks.wire_answers import Answer, Unreadable, read_answers
from benchmarks.wire_engines import SLACK_SECONDS, Outcome, holds, marker
from benchmarks.wire_format import Awaited, Call, CallerCase, CallerExpect, CallerStep, Meanwhile, replaced
from benchmarks.wire_worlds import ECHO, World, task_of
from tests.fakes.engine import FakeEngine

WRITE_SECONDS_MAX = 5.0
MORE_SECONDS = 0.3
"""How long a connection is watched for answers that should not come."""
LOOK_SECONDS = 0.02
CANCEL_SECONDS_MAX = 1.0
READ_BYTES = 1 << 16
LEFT_SECONDS_MAX = 8.0
"""How long it may take to read what was left unread."""


@dataclass
class Conversation:
    """One connection as it went. Times are those of the monotonic clock."""

    raw: bytearray = field(default_factory=bytearray)
    closed: bool = False
    began_at: float = 0.0
    first_at: float = 0.0
    closed_at: float = 0.0
    left_at: float = 0.0
    sent_bytes: int = 0
    methods: list[str] = field(default_factory=list)
    problem: str = ""

    def answers(self) -> list[Answer]:
        """The answers so far. Raises Unreadable."""
        return read_answers(bytes(self.raw), self.closed, self.methods)


class Caller:
    """One connection of a case."""

    def __init__(self, case: CallerCase, port: int, source: str, values: Mapping[str, str]) -> None:
        self.case = case
        self.seen = Conversation()
        self._port = port
        self._source = source
        self._values = values
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._came = asyncio.Event()

    async def play(self) -> None:
        """Do all steps, then read until there is nothing more to expect."""
        loop = asyncio.get_running_loop()
        own, seen = self._socket, self.seen
        own.setblocking(False)
        own.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.case.reads:
            own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        own.bind((self._source, 0))
        seen.began_at = time.monotonic()
        reading = None
        try:
            late = SLACK_SECONDS if self.case.reads else LEFT_SECONDS_MAX
            async with asyncio.timeout(self.case.seconds + late):
                await loop.sock_connect(own, ("127.0.0.1", self._port))
                if self.case.reads:
                    reading = loop.create_task(self._read())
                for step in self.case.send:
                    await self._do(step, self._values)
                if reading is not None:
                    await self._read_on()
                elif not seen.left_at:
                    await asyncio.sleep(self.case.seconds)
                    own.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
                    await self._read()
        except TimeoutError:
            pass
        except OSError as error:
            self._ended()
            seen.problem = repr(error)
        finally:
            if reading is not None:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
            own.close()

    async def _do(self, step: CallerStep, values: Mapping[str, str]) -> None:
        value = step.value
        match step.kind:
            case "request" | "bytes" | "fill" | "together":
                await self._write(b"".join(self._frames(step, values)))
            case "repeat":
                for number in range(value.times):
                    for one in value.steps:
                        if self.seen.closed:
                            return
                        await self._do(one, {**values, "%N%": str(number)})
            case "wait":
                await asyncio.sleep(value)
            case "read":
                await self._until(value)
            case "half_close":
                self._socket.shutdown(socket.SHUT_WR)
            case "close" | "reset":
                self.seen.left_at = time.monotonic()
                if step.kind == "reset":
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self._socket.close()

    def _frames(self, step: CallerStep, values: Mapping[str, str]) -> Iterable[bytes]:
        value = step.value
        if step.kind == "request":
            self.seen.methods.append(value.method)
            yield frame(value, values)
        elif step.kind == "bytes":
            yield value if isinstance(value, bytes) else replaced(f"{value}\n", values)[:-1].encode()
        elif step.kind == "fill":
            yield b"x" * value if isinstance(value, int) else value.text.encode() * value.times
        elif step.kind == "together":
            for one in value:
                yield from self._frames(one, values)
        elif step.kind == "repeat":
            for number in range(value.times):
                for one in value.steps:
                    yield from self._frames(one, {**values, "%N%": str(number)})
        else:
            raise ValueError(f"{step.kind} is not bytes that could be sent together with others")

    async def _write(self, data: bytes) -> None:
        """Send it all, unless the gateway takes no more of it."""
        loop = asyncio.get_running_loop()
        view = memoryview(data)
        try:
            async with asyncio.timeout(WRITE_SECONDS_MAX):
                while view and not self.seen.closed:
                    part = view[:READ_BYTES]
                    await loop.sock_sendall(self._socket, part)
                    self.seen.sent_bytes += len(part)
                    view = view[len(part) :]
        except (OSError, TimeoutError):
            await asyncio.sleep(LOOK_SECONDS)  # what was answered before is still to be read

    async def _read(self) -> None:
        loop, seen = asyncio.get_running_loop(), self.seen
        try:
            while part := await loop.sock_recv(self._socket, READ_BYTES):
                seen.first_at = seen.first_at or time.monotonic()
                seen.raw += part
                self._came.set()
        except OSError:
            pass
        self._ended()

    def _ended(self) -> None:
        self.seen.closed = True
        self.seen.closed_at = self.seen.closed_at or time.monotonic()
        self._came.set()

    async def _until(self, wanted: Awaited) -> None:
        def there() -> bool:
            if self.seen.closed or len(self.seen.raw) >= (wanted.bytes or 1 << 60):
                return True
            if wanted.text is not None and wanted.text.encode() in self.seen.raw:
                return True
            return wanted.answers is not None and self._count() >= wanted.answers

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wanted.seconds):
                while not there():
                    self._came.clear()
                    await self._came.wait()

    async def _read_on(self) -> None:
        """Until the connection has ended, or as many answers are there as are expected, and nothing more comes."""
        seen, expected = self.seen, self.case.expect
        until_closed = any(one.closed for one in expected)
        wanted = max((_most(one.answers, one.statuses) for one in expected), default=0)
        while not (seen.closed or seen.left_at or (not until_closed and self._count() >= wanted)):
            self._came.clear()
            await self._came.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(MORE_SECONDS):
                while not seen.closed and not seen.left_at:
                    self._came.clear()
                    await self._came.wait()

    def _count(self) -> int:
        try:
            return sum(one.whole for one in self.seen.answers())
        except Unreadable:
            return 1 << 30


def _most(answers: Any, statuses: list[int] | None) -> int:
    if statuses is not None:
        return len(statuses)
    if answers is None:
        return 1
    return int(answers if isinstance(answers, int) else answers[1])


def frame(call: Call, values: Mapping[str, str]) -> bytes:
    """A request's bytes, in order: line, Host, key, Content-Type, length, own headers, body."""
    body = _body(call, values)
    lines = [f"{call.method} {call.path} HTTP/{call.version}"]
    if call.host:
        lines.append(f"Host: {values['%HOST%']}")
    if call.key != "none":
        lines.append(f"Authorization: Bearer {values[f'%{call.key.upper()}_KEY%']}")
    names = {name.lower() for name, _ in call.headers}
    if body and "content-type" not in names:
        lines.append("Content-Type: application/json")
    if call.chunks:
        lines.append("Transfer-Encoding: chunked")
    elif call.length != "none" and (body or call.length != "true"):
        lines.append(f"Content-Length: {len(body) if call.length == 'true' else call.length}")
    lines += [f"{name}: {value}" for name, value in call.headers]
    head = replaced("\r\n".join(lines) + "\r\n\r\n", values).encode()
    return bytes(head + (_chunked(body, call, values) if call.chunks else body))


def _body(call: Call, values: Mapping[str, str]) -> bytes:
    if call.method in ("GET", "HEAD", "OPTIONS", "DELETE") and call.body is None:
        return b""
    if isinstance(call.body, str):
        return bytes(replaced(f"{call.body}\n", values)[:-1].encode())
    if isinstance(call.body, bytes):
        return call.body
    asked = json.dumps(_asked() | call.more if call.body is None else call.body)
    return bytes(replaced(asked, values).encode())


def _asked() -> dict[str, Any]:
    return {"model": "%MODEL%", "messages": [{"role": "user", "content": "%CASE%%N%"}]}


def _chunked(body: bytes, call: Call, values: Mapping[str, str]) -> bytes:
    size = call.chunks or len(body)
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    trailers = "".join(f"{name}: {value}\r\n" for name, value in call.trailers)
    whole = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return whole + bytes(b"0\r\n" + replaced(f"{trailers}\r\n", values).encode())


# ---- one case -----------------------------------------------------------------------------------


async def play_caller_case(world: World, number: int, case: CallerCase) -> Outcome:
    """All connections of a case, and what came back."""
    model = ECHO if case.engine is None else task_of(number)
    values = {f"%{name.upper()}_KEY%": key for name, key in world.keys.items()}
    values |= {"%KEY%": world.keys["caller"], "%MODEL%": model, "%CASE%": marker(case.name), "%N%": ""}
    values |= {"%HOST%": f"127.0.0.1:{world.port}"}
    values["%BODY%"] = replaced(json.dumps(_asked()), values)
    values["%LENGTH%"] = str(len(values["%BODY%"]))
    source = f"127.0.{1 + number // 250}.{1 + number % 250}"
    callers = [Caller(case, world.port, source, values) for _ in range(case.connections)]
    began = time.monotonic()
    memory = _Memory(world.pid)
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(memory.watch())]
        slow: list[str] = []
        if case.meanwhile is not None:
            beside.append(group.create_task(_ask_beside(world, case.meanwhile, slow)))
        await asyncio.gather(*(caller.play() for caller in callers))
        for one in beside:
            one.cancel()
    engine = world.primaries.get(case.name) or world.echo
    assert engine is not None
    found = [await _against(one, callers, engine, case, memory.grown_mb) for one in case.expect]
    why = [] if any(not one for one in found) else min(found, key=len)
    return Outcome("caller", case.name, case.says, "; ".join([*slow, *why]), time.monotonic() - began)


async def _against(
    expect: CallerExpect, callers: list[Caller], engine: FakeEngine, case: CallerCase, grown_mb: float
) -> list[str]:
    own = [reasons_against(expect, caller.seen) for caller in callers]
    why = max(own, key=len)
    asked = [one for one in engine.requests if marker(case.name).encode() in one.raw]
    if not holds(expect.engine_requests, len(asked)):
        why = [*why, f"{len(asked)} requests at the engine, not {expect.engine_requests}"]
    if expect.engine_cancelled is not None:
        left_at = max(caller.seen.left_at for caller in callers)
        with contextlib.suppress(TimeoutError):
            await engine.until(lambda: all(one.outcome != "running" for one in asked), CANCEL_SECONDS_MAX)
        late = [
            one for one in asked if one.outcome != "cancelled" or (one.ended_at or 0) > left_at + CANCEL_SECONDS_MAX
        ]
        if late or not asked:
            why = [*why, f"the engine's work was not cancelled within 1 s: {[one.outcome for one in asked]}"]
    if expect.memory_mb_max is not None and grown_mb > expect.memory_mb_max:
        why = [*why, f"the gateway's memory grew by {grown_mb:.0f} MB, over {expect.memory_mb_max}"]
    return why


def reasons_against(expect: CallerExpect, seen: Conversation) -> list[str]:
    """What does not hold of what is expected of one connection."""
    try:
        answers = seen.answers()
    except Unreadable as error:
        return [f"no HTTP answer: {error}"]
    statuses, codes, texts = (
        [one.status for one in answers],
        [one.code for one in answers],
        [one.text for one in answers],
    )
    raw = seen.raw.decode(errors="replace")
    end = seen.closed_at if expect.closed else max(seen.first_at, seen.began_at)
    seconds = end - seen.began_at
    wanted_status = [expect.status] if isinstance(expect.status, int) else expect.status
    wanted_code = [expect.code] if isinstance(expect.code, str) else expect.code
    rules: list[tuple[bool, str]] = [
        (holds(expect.answers, len(answers)), f"{len(answers)} answers, not {expect.answers}: {statuses} {codes}"),
        (expect.statuses in (None, statuses), f"statuses {statuses}, not {expect.statuses} {codes}"),
        (
            wanted_status is None or (bool(answers) and all(one in wanted_status for one in statuses)),
            f"status {statuses[:5]} {codes[:5]}, not {expect.status}{seen.problem}",
        ),
        (wanted_code is None or any(one in wanted_code for one in codes), f"code {codes[:5]}, not {expect.code}"),
        (expect.texts in (None, texts), f"texts {texts[:5]}"),
        (not expect.in_order or _in_order(texts), f"texts out of order: {texts[:5]}"),
        (expect.closed in (None, seen.closed), "the connection is open" if expect.closed else "it was closed"),
        (
            expect.seconds_max is None or seconds <= expect.seconds_max + SLACK_SECONDS,
            f"took {seconds:.1f} s, over {expect.seconds_max}",
        ),
        (expect.seconds_min is None or seconds >= expect.seconds_min - 0.1, f"took {seconds:.1f} s"),
        (
            expect.sent_bytes_max is None or seen.sent_bytes <= expect.sent_bytes_max,
            f"{seen.sent_bytes} bytes were taken, over {expect.sent_bytes_max}",
        ),
        *((one in raw, f"{one!r} did not come: {raw[:160]!r}") for one in expect.present),
        *((one not in raw, f"{one!r} came") for one in expect.absent),
    ]
    for name, pattern in expect.headers.items():
        value = answers[0].header(name) if answers else None
        right = value is None if pattern == "absent" else re.fullmatch(pattern, value or "") is not None
        rules.append((right, f"{name}: {value}"))
    return [text for right, text in rules if not right]


def _in_order(texts: list[str | None]) -> bool:
    numbers = [int(text.rpartition("]")[2]) for text in texts if text and text.rpartition("]")[2].isdigit()]
    return numbers == list(range(len(texts)))


async def _ask_beside(world: World, meanwhile: Meanwhile, slow: list[str]) -> None:
    """Another caller, from another address. One slow answer is told once."""
    key = None if meanwhile.key == "none" else world.keys[meanwhile.key]
    while True:
        began = time.monotonic()
        try:
            status, _, body = await asyncio.to_thread(ask, world.port, "GET", meanwhile.path, None, key, 10.0)
        except OSError as error:
            why = f"another caller got no answer: {error}"
        else:
            why = f"another caller got {status}: {body[:200].decode()}" if status != meanwhile.status else ""
        seconds = time.monotonic() - began
        if not why and seconds > meanwhile.seconds_max:
            why = f"another caller waited {seconds:.2f} s, over {meanwhile.seconds_max}"
        if why and not slow:
            slow.append(why)
        await asyncio.sleep(LOOK_SECONDS)


class _Memory:
    """The most memory that the gateway held beyond what it held at the beginning."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._now()
        self.grown_mb = 0.0

    def _now(self) -> float:
        for line in Path(f"/proc/{self._pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0

    async def watch(self) -> None:
        """Look every 20 ms until it is cancelled."""
        while True:
            self.grown_mb = max(self.grown_mb, self._now() - self._before)
            await asyncio.sleep(LOOK_SECONDS)
