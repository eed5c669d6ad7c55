"""The tutorial of a task of one's own on real engines, with a few steps of training."""

from __future__ import annotations

import contextlib
import json
from itertools import islice
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from tests.engine.conftest import ADAPTER, EngineFiles, RealEngines
from tests.walks.guide_world import walk_guide, write_examples

pytestmark = pytest.mark.engine
ROWS = 130
"""About 26 are held out."""
TASK = "own-returns"
"""Not the guide's own: other tests leave their `returns@v1` on these engines."""


async def test_guide_leads_to_a_version_that_serves(
    engines: RealEngines, engine_files: EngineFiles, tmp_path: Path
) -> None:
    with (ADAPTER / "data" / "train.jsonl").open() as lines:
        rows = [json.loads(line) for line in islice(lines, ROWS)]
    write_examples(
        tmp_path / "examples.csv",
        ({"text": row["text"], "expected": row["label"]} for row in rows),
    )
    configuration = engines.configuration(tmp_path / "data")
    del configuration["tasks"]
    try:
        told = await walk_guide(tmp_path, configuration, engine_files.venv.python, task=TASK)
    finally:
        redis = Redis(unix_socket_path=f"{tmp_path}/data/valkey/valkey.sock")
        with contextlib.suppress(RedisError):
            await redis.shutdown(nosave=True)
        await redis.aclose()
    assert told["version"] == f"{TASK}@v1"
    assert set(told["steps"]["evaluate"]["right"]) == {"adapter", "general"}
