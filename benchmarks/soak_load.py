"""The load of the soak: callers who ask, stream, judge and hang up at random, admins, and an engine's faults."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

CHAT = "/v1/chat/completions"
ANSWER_SECONDS_MAX = 60.0
LINGER_NONE = struct.pack("ii", 1, 0)
PROMPTS = tuple(f"A toaster, sealed, after {days} days, paid by card." for days in range(1, 40))
BAD_BODIES = (
    b"{",
    b'{"model":"returns"}',
    b'{"model":"returns","messages":[{"role":"wizard"}]}',
    b'{"model":"nothing","messages":[{"role":"user","content":"x"}]}',
    b'{"model":"returns","messages":[{"role":"user","content":"x"}],"frobnicate":1}',
    b'{"model":"returns","prompt":"\xff"}',
)
FAULTS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 429, "retry_after": 1},
    {"kind": "reset"},
    {"kind": "silent"},
    {"kind": "slow_first_token", "seconds": 5},
    {"kind": "dies", "after_tokens": 8},
    {"kind": "dies", "after_tokens": 3},
    {"kind": "stalls", "after_tokens": 5, "seconds": 5},
    {"kind": "error_event", "after_tokens": 4},
    {"kind": "raw_event", "after_tokens": 3},
    {"kind": "no_done"},
    {"kind": "empty_answer"},
    {"kind": "status", "status": 400},
)


class Gone(Exception):
    """The other side ended the connection before its answer was over."""


@dataclass(slots=True)
class Reply:
    """What came back: the status, the headers by lower-case name, the body as far as it was read."""

    status: int
    headers: dict[str, str]
    body: bytes = b""

    @property
    def failed_inside(self) -> bool:
        """Whether a stream ended with an error instead of [DONE]."""
        return b'data: {"error"' in self.body


class Wire:
    """One connection to the gateway, used again and again, until its owner hangs up."""

    def __init__(self, port: int, key: str) -> None:
        self._port = port
        self._key = key
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    async def ask(self, method: str, path: str, body: bytes = b"", events: int | None = None) -> Reply:
        """One request. With `events` no more is read than so many pieces of the answer. Raises Gone, OSError."""
        if self._writer is None:
            self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = f"{method} {path} HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {self._key}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._writer.write(head.encode() + body)
        if events == 0:
            return Reply(0, {})
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await self._read(events)
        except (asyncio.IncompleteReadError, ValueError) as error:
            raise Gone from error

    async def _read(self, events: int | None) -> Reply:
        assert self._reader is not None
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:] if line)
        }
        reply = Reply(int(lines[0].split()[1]), headers)
        if "chunked" not in headers.get("transfer-encoding", ""):
            reply.body = await self._reader.readexactly(int(headers.get("content-length", 0)))
            return reply
        while events is None or events > 0:
            size = int(await self._reader.readline(), 16)
            reply.body += (await self._reader.readexactly(size + 2))[:-2]
            if not size:
                return reply
            events = None if events is None else events - 1
        return reply

    def hang_up(self, abruptly: bool = False) -> None:
        """Close it; abruptly: with a reset, as when a process is killed."""
        if self._writer is not None:
            if abruptly:
                with contextlib.suppress(OSError):
                    it: socket.socket = self._writer.get_extra_info("socket")
                    it.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NONE)
            self._writer.transport.abort() if abruptly else self._writer.close()
        self._reader = self._writer = None


@dataclass
class Load:
    """Everything that goes on at the same time, drawn from one seed; `counts` says what it was."""

    port: int
    key: str
    admin_key: str
    engines: tuple[int, ...]
    versions: tuple[str, ...]
    seed: int
    callers: int
    counts: Counter[str] = field(default_factory=Counter)
    over: bool = False

    async def run(self, seconds: float) -> None:
        """So many seconds of it; then what has begun finishes, all faults are over and everybody has hung up."""
        self.over = False
        self.seed += 1
        asyncio.get_running_loop().call_later(seconds, self._end)
        draws = [random.Random(self.seed * 1000 + number) for number in range(self.callers + 2)]
        await asyncio.gather(
            *(self._caller(draw) for draw in draws[2:]), self._admin(draws[0]), self._engine_faults(draws[1])
        )

    def _end(self) -> None:
        self.over = True

    async def _caller(self, draw: random.Random) -> None:
        wire = Wire(self.port, self.key)
        while not self.over:
            try:
                await self._one(wire, draw)
            except (Gone, OSError, TimeoutError):
                self.counts["broken_connections"] += 1
                wire.hang_up()
            await asyncio.sleep(draw.random() * 0.02)
        wire.hang_up()

    async def _one(self, wire: Wire, draw: random.Random) -> None:
        what = draw.random()
        if what < 0.05:
            self.counts["bad_requests"] += 1
            await wire.ask("POST", CHAT, draw.choice(BAD_BODIES))
            return
        stream = what < 0.55
        body = {"model": "returns", "messages": [{"role": "user", "content": draw.choice(PROMPTS)}], "max_tokens": 24}
        if stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        raw = json.dumps(body).encode()
        self.counts["requests"] += 1
        if what < 0.2 or 0.55 <= what < 0.6:
            self.counts["hang_ups"] += 1
            await wire.ask("POST", CHAT, raw, draw.choice((0, 1, 1, 3, 6)) if stream else 0)
            await asyncio.sleep(draw.random() * 0.1)
            wire.hang_up(draw.random() < 0.5)
            return
        reply = await wire.ask("POST", CHAT, raw)
        self.counts["streams" if stream else "whole"] += 1
        self.counts[f"status_{reply.status}"] += 1
        self.counts["failed_inside"] += reply.failed_inside
        if reply.status == 200 and draw.random() < 0.2:
            judged = {"request_id": reply.headers["x-request-id"], "metric": "correct", "value": draw.random() < 0.9}
            given = await wire.ask("POST", "/v1/feedback", json.dumps(judged).encode())
            self.counts["feedback" if given.status == 201 else "feedback_refused"] += 1

    async def _admin(self, draw: random.Random) -> None:
        wire = Wire(self.port, self.admin_key)
        leads = self.versions[0]
        while not self.over:
            leads = draw.choice(self.versions[:2])
            other = self.versions[2]
            steps: tuple[tuple[str, str, dict[str, Any] | None], ...] = draw.choice(
                (
                    (("PUT", "aliases/returns", {"version": leads}),),
                    (("PUT", "aliases/returns", {"version": leads}),),
                    (("POST", "aliases/returns/rollback", {}),),
                    (("POST", f"adapters/{other}/stage?wait_seconds=5", None),),
                    (("POST", f"adapters/{other}/unload?wait_seconds=5", None),),
                    (("POST", "aliases/returns/shadow", {"version": self.versions[1], "share": 0.3}),),
                    (("POST", "aliases/returns/shadow", {"version": self.versions[1], "share": 0}),),
                    (("PUT", "overrides/soak", {"action": "general", "contains": "paid by card, twice"}),),
                    (("POST", "replicas/small-0/cordon", {}), ("POST", "replicas/small-0/uncordon", None)),
                    (("GET", "adapters", None), ("GET", "audit", None), ("GET", "state", None)),
                    (("POST", "reload", None),),
                )
            )
            for method, path, body in steps:
                await self._tell(wire, method, path, body)
            if draw.random() < 0.3:
                await self._make_and_revoke_a_key(wire)
            await asyncio.sleep(draw.uniform(0.1, 0.5))
        await self._tell(wire, "POST", "replicas/small-0/uncordon", None)
        wire.hang_up()

    async def _make_and_revoke_a_key(self, wire: Wire) -> None:
        made = await self._tell(wire, "POST", "callers", {"name": "for a while", "limits": {"requests_per_minute": 60}})
        if made is not None and made.status == 201:
            caller = json.loads(made.body)
            own = Wire(self.port, caller["key"])
            with contextlib.suppress(Gone, OSError, TimeoutError):
                await own.ask("GET", "/v1/models")
                body = {"model": "returns", "messages": [{"role": "user", "content": PROMPTS[0]}], "max_tokens": 4}
                await own.ask("POST", CHAT, json.dumps(body).encode())
            own.hang_up()
            await self._tell(wire, "DELETE", f"callers/{caller['public']}", None)

    async def _tell(self, wire: Wire, method: str, path: str, body: dict[str, Any] | None) -> Reply | None:
        self.counts["admin_calls"] += 1
        self.counts["swaps"] += path in ("aliases/returns", "aliases/returns/rollback")
        try:
            reply = await wire.ask(method, f"/admin/v1/{path}", b"" if body is None else json.dumps(body).encode())
        except (Gone, OSError, TimeoutError):
            self.counts["broken_connections"] += 1
            wire.hang_up()
            return None
        self.counts["admin_refused"] += reply.status >= 400
        return reply

    async def _engine_faults(self, draw: random.Random) -> None:
        wires = [Wire(port, "") for port in self.engines]
        while not self.over:
            wire = draw.choice(wires)
            rule = {"faults": [draw.choice(FAULTS)], "times": draw.randint(1, 6)}
            await wire.ask("POST", "/__faults", json.dumps(rule).encode())
            self.counts["faults"] += 1
            await asyncio.sleep(draw.uniform(0.2, 1.0))
            await wire.ask("DELETE", "/__faults")
            await asyncio.sleep(draw.uniform(0.1, 0.6))
        for wire in wires:
            wire.hang_up()
