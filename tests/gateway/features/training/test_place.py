"""The name of a folder of trainings, which several gateways share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from gateway.features.training.trainings import ensure_place


def test_gateways_that_start_together_read_one_name(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as gateways:
        for number in range(60):
            folder = tmp_path / str(number)
            names = set(gateways.map(ensure_place, [folder] * 8))
            assert len(names) == 1
            assert len(names.pop()) == 16
            assert [path.name for path in folder.iterdir()] == ["place"]
