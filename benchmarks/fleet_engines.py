"""Many fake engines in one process: `python -m benchmarks.fleet_engines --engines 500 --port 9000`.

Each has a port of its own. Its control port tells and does, to all of them:

GET  /engines        their ports and the start times of their processes
GET  /counts         calls that were not completions, completions, and open connections, of all
POST /load           adapters that are there from before: a list of [engine's number, name, path]
POST /kill/N         as kill -9 of engine N; /restart/N brings it back without adapters
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
from collections.abc import Sequence
from typing import Any

from tests.fakes.engine import FakeEngine
from tests.fakes.wire import Exchange, HttpListener

CALLS_KEPT = 1


class Engines:
    """The engines and their control port."""

    def __init__(self, engines: Sequence[FakeEngine]) -> None:
        self._engines = engines

    async def handle(self, exchange: Exchange) -> None:
        """One request to the control port."""
        request = exchange.request
        _, what, *rest = request.path.split("/")
        status, answer = 200, await self.answer(request.method, what, rest, request.body)
        if answer is None:
            status, answer = 404, {}
        await exchange.whole(status, answer)

    async def answer(self, method: str, what: str, rest: Sequence[str], body: bytes) -> dict[str, Any] | None:
        """What is told, or done; None where there is nothing at that path."""
        match method, what:
            case "GET", "engines":
                ports = [engine.port for engine in self._engines]
                return {"ports": ports, "lives": [str(engine.started_at) for engine in self._engines]}
            case "GET", "counts":
                return {
                    "calls": sum(engine.calls_total for engine in self._engines),
                    "completions": sum(engine.requests_total for engine in self._engines),
                    "connections": sum(engine.connections for engine in self._engines),
                }
            case "POST", "load":
                for number, name, path in json.loads(body):
                    self._engines[number].load(name, path)
                return {}
            case "POST", "kill":
                await self._engines[int(rest[0])].kill()
                return {}
            case "POST", "restart":
                await self._engines[int(rest[0])].restart()
                return {}
        return None


async def serve(count: int, port: int, **options: Any) -> None:
    """Run so many engines, until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        engines = [
            await stack.enter_async_context(FakeEngine(requests_kept=CALLS_KEPT, **options)) for _ in range(count)
        ]
        control = HttpListener(Engines(engines).handle, "127.0.0.1", port)
        await control.start()
        await stop.wait()
        await control.stop()
        control.release()


def main() -> None:
    """Read the options, and serve."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet_engines")
    parser.add_argument("--engines", type=int, required=True)
    parser.add_argument("--port", type=int, required=True, help="the control port")
    parser.add_argument("--model", required=True)
    parser.add_argument("--max-cpu-loras", type=int, default=16)
    asked = parser.parse_args()
    options = {"model": asked.model, "max_cpu_loras": asked.max_cpu_loras, "n_tokens": 4}
    asyncio.run(serve(asked.engines, asked.port, **options))


if __name__ == "__main__":
    main()
