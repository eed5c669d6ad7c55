"""The benchmark of readiness on a file of one's own."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import readiness


def test_own_file_is_measured_and_a_small_one_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(1)
    words = [f"word{number}" for number in range(400)]
    rows = []
    for number in range(2200):
        label = number % 4
        rows.append({"text": " ".join([f"n{number}", *draw.choices(words[100 * label :], k=3)]), "label": f"c{label}"})
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    arguments = ["--json", "--file", str(path), "--parts", "0.25"]
    assert readiness.main(arguments) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert len(found["cells"]) == 2
    assert all(cell["low"] <= cell["curve"] <= cell["high"] for cell in found["cells"])
    assert found["figures"]["error"] < found["figures"]["error_last_point"]
    path.write_text("\n".join(map(json.dumps, rows[:100])))
    assert readiness.main(arguments) == 1
    assert "it takes 2000" in capsys.readouterr().err
