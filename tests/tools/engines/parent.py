"""Starts a small engine as `make up` does, says its process id, and waits to be killed.

python parent.py PORT LOG
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tools.engines.process import Child, wait_until_healthy


async def main(port: str, log_path: Path) -> None:
    child = await Child.start([sys.executable, str(Path(__file__).with_name("small_engine.py")), port], log_path)
    await wait_until_healthy(child, "The child", f"http://127.0.0.1:{port}/health", 20, lambda _: None)
    print(child.pid, flush=True)
    await child.wait_until_ended()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
