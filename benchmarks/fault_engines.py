"""Many fake engines in one process: `python -m benchmarks.fault_engines MODEL COUNT MODEL COUNT …`.

The first line that it prints is a JSON list: for each pair the list of the ports. It serves until SIGTERM.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from contextlib import AsyncExitStack

from tests.fakes.engine import FakeEngine

TOKENS = 60


async def serve(wanted: list[tuple[str, int]]) -> None:
    """Start so many engines for each model, say where they are, and wait for the end."""
    async with AsyncExitStack() as stack:
        ports = [
            [(await stack.enter_async_context(FakeEngine(model, n_tokens=TOKENS))).port for _ in range(count)]
            for model, count in wanted
        ]
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        sys.stdout.write(json.dumps(ports) + "\n")
        sys.stdout.flush()
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(serve(list(zip(sys.argv[1::2], map(int, sys.argv[2::2]), strict=True))))
