"""What an engine does with a request, step by step, as an engine case says: a fault of the fake engine."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.wire_format import EngineStep, Tokens
from tests.fakes.engine import FakeEngine
from tests.fakes.faults import Fault, Moment
from tests.fakes.wire import AnswerOver, Exchange

TOKENS = 60
STREAM = [("content-type", "text/event-stream; charset=utf-8")]
PROMPT_TOKENS = 8
WRITE_BYTES = 1 << 16


def words(count: int = TOKENS) -> str:
    """The text of so many tokens."""
    return "".join(f"w{number} " for number in range(1, count + 1))


class Script(Fault):
    """Plays its first list of steps to the first request, the second to the next, the last to all that follow."""

    def __init__(self, engine: FakeEngine, attempts: Sequence[Sequence[EngineStep]]) -> None:
        self._engine = engine
        self._attempts = attempts
        self._seen = 0

    async def on_request(self, moment: Moment) -> None:
        """Play the steps. Raises AnswerOver at their end."""
        steps = self._attempts[min(self._seen, len(self._attempts) - 1)]
        self._seen += 1
        player = Player(self._engine, moment)
        await player.play(steps)
        await player.end()
        raise AnswerOver("done")


class Player:
    """One answer as it is sent."""

    def __init__(self, engine: FakeEngine, moment: Moment) -> None:
        self._engine = engine
        self._exchange: Exchange = moment.exchange
        self._body = moment.body
        self._stream = moment.stream
        self._told = 0
        self._line_end = "\n"
        self._split_bytes = 0
        self._gzip: Any = None
        self._raw = False

    async def play(self, steps: Sequence[EngineStep]) -> None:
        """Do one step after another. Raises AnswerOver where one ends the answer."""
        for step in steps:
            await getattr(self, f"_do_{step.kind}")(step.value)

    async def end(self) -> None:
        """End the body, if a step has begun one and none has ended it."""
        if self._exchange.ended:
            return
        if self._raw or not self._exchange.begun:
            await self._exchange.close()
        if self._gzip is not None:
            await self._exchange.write(self._gzip.flush(zlib.Z_FINISH))
        await self._exchange.end()

    # ---- steps, by their names in a case file ----

    async def _do_healthy(self, _: Any) -> None:
        if self._stream:
            await self._do_tokens(TOKENS)
            await self._do_finish("stop")
            await self._do_usage(True)
            await self._do_done(True)
        else:
            await self._do_completion({})

    async def _do_begin(self, begin: Any) -> None:
        if begin.length == "close":
            lines = [f"HTTP/1.1 {begin.status} OK", *(f"{name}: {value}" for name, value in begin.headers.items())]
            self._exchange.begun = True
            await self._do_raw("\r\n".join([*lines, "connection: close", "\r\n"]))
        else:
            await self._exchange.begin(begin.status, begin.headers.items(), begin.length)

    async def _do_whole(self, whole: Any) -> None:
        body = whole.text if whole.text is not None else json.dumps(whole.json_)
        headers = {"content-type": "application/json", **whole.headers}
        kind = headers.pop("content-type")
        await self._exchange.whole(whole.status, body.encode(), headers.items(), kind)

    async def _do_completion(self, changes: dict[str, Any]) -> None:
        choice = {"index": 0, "message": {"role": "assistant", "content": words()}, "finish_reason": "stop"}
        healthy = {**self._identity("chat.completion"), "choices": [choice], "usage": self._usage(TOKENS)}
        body = json.dumps(healthy | changes).encode()
        headers = [("content-type", "application/json")]
        if self._gzip is not None:
            body = self._gzip.compress(body) + self._gzip.flush(zlib.Z_FINISH)
            headers.append(("content-encoding", "gzip"))
            self._gzip = None
        await self._exchange.begin(200, headers, len(body))
        await self._exchange.write(body)
        await self._exchange.end()

    async def _do_tokens(self, tokens: int | Tokens) -> None:
        tokens = Tokens(count=tokens) if isinstance(tokens, int) else tokens
        for number in range(tokens.count):
            if number and tokens.every_seconds:
                await asyncio.sleep(tokens.every_seconds)
            self._told += 1
            delta: dict[str, Any] = {"content": f"w{self._told} "}
            if self._told == 1:
                delta = {"role": "assistant", **delta}
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}
            await self._do_event({"choices": [choice | tokens.choice]})

    async def _do_event(self, event: dict[str, Any] | str) -> None:
        if isinstance(event, dict):
            event = json.dumps(self._identity("chat.completion.chunk") | event)
        await self._do_body(f"data: {event}\n\n")

    async def _do_finish(self, reason: str) -> None:
        await self._do_event({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})

    async def _do_usage(self, _: Any) -> None:
        await self._do_event({"choices": [], "usage": self._usage(self._told)})

    async def _do_done(self, _: Any) -> None:
        await self._do_body("data: [DONE]\n\n")

    async def _do_body(self, data: str | bytes) -> None:
        if not self._exchange.begun:
            await self._exchange.begin(200, [*STREAM, *([("content-encoding", "gzip")] if self._gzip else [])])
        if isinstance(data, str):
            data = data.replace("\n", self._line_end).encode(errors="surrogatepass")
        for piece in self._pieces(data):
            await (self._exchange.raw(piece) if self._raw else self._exchange.write(piece))
            if self._split_bytes:
                await asyncio.sleep(0)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        if self._gzip is not None:
            yield self._gzip.compress(data) + self._gzip.flush(zlib.Z_SYNC_FLUSH)
            return
        size = self._split_bytes or WRITE_BYTES
        yield from (data[start : start + size] for start in range(0, len(data), size))

    async def _do_raw(self, data: str | bytes) -> None:
        """The connection belongs to the case from here on: nothing is framed any more."""
        self._raw = True
        data = data.encode() if isinstance(data, str) else data
        await self._exchange.raw(data)

    async def _do_text_bytes(self, size: int) -> None:
        self._told += 1
        await self._do_event({"choices": [{"index": 0, "delta": {"content": "x" * size}, "finish_reason": None}]})

    async def _do_fill(self, size: int) -> None:
        """So many bytes without a line end."""
        for start in range(0, size, WRITE_BYTES):
            piece = b"x" * min(WRITE_BYTES, size - start)
            await (self._exchange.raw(piece) if self._raw else self._do_body(piece))

    async def _do_pings(self, pings: Any) -> None:
        for _ in range(pings.count):
            await self._do_body(": ping\n\n")
            await asyncio.sleep(pings.every_seconds)

    async def _do_repeat(self, repeat: Any) -> None:
        for _ in range(repeat.times):
            await self.play(repeat.steps)

    async def _do_wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def _do_line_end(self, line_end: str) -> None:
        self._line_end = line_end

    async def _do_split_bytes(self, size: int) -> None:
        self._split_bytes = size

    async def _do_gzip(self, _: Any) -> None:
        self._gzip = zlib.compressobj(wbits=31)

    async def _do_end(self, _: Any) -> None:
        await self.end()

    async def _do_close(self, _: Any) -> None:
        await self._exchange.close()

    async def _do_reset(self, _: Any) -> None:
        await self._exchange.reset()

    async def _do_hang(self, _: Any) -> None:
        await self._exchange.hang()

    async def _do_die(self, _: Any) -> None:
        """The engine's process is gone: no connection any more."""
        await self._engine.kill()
        raise AnswerOver

    # ---- parts of events ----

    def _identity(self, kind: str) -> dict[str, Any]:
        model = str(self._body.get("model"))
        return {"id": "chatcmpl-case", "object": kind, "created": int(time.time()), "model": model}

    def _usage(self, tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": tokens,
            "total_tokens": PROMPT_TOKENS + tokens,
        }
