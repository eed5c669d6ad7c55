"""The tutorial of a task of one's own: its commands and settings work as they stand there."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fakes.trainer import write_trainer
from tests.walks.conftest import Configure
from tests.walks.guide_world import walk_guide, write_examples


async def test_guide_from_a_csv_to_a_monitored_adapter_is_right(configure: Configure, tmp_path: Path) -> None:
    answers = ("approve", "deny")
    rows = (
        {"text": f"A kettle number {n}, {n % 2} days late.", "expected": json.dumps({"decision": answers[n % 2]})}
        for n in range(160)
    )
    write_examples(tmp_path / "examples.csv", rows)
    configuration = configure()
    del configuration["tasks"]
    told = await walk_guide(tmp_path, configuration, write_trainer(tmp_path)[0])
    assert (told["version"], told["steps"]["release"]) == ("returns@v1", {"released": "it leads"})
