"""The labellers benchmark: files from outside, and what it says of bad ones."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks import labellers


def write_crowd(path: Path, raters: int, items: int) -> None:
    chance = random.Random(3)
    rows = []
    for item in range(items):
        truth = chance.choice("xy")
        rows += [
            f"r{chance.randrange(raters)},i{item},{truth if chance.random() < 0.8 else 'x'},{truth}" for _ in range(4)
        ]
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def test_files_from_outside_are_measured_and_the_seed_sets_every_draw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_crowd(tmp_path / "many.csv", 200, 150)
    write_crowd(tmp_path / "few.csv", 9, 150)
    reports = []
    for seed in ("1", "1", "2"):
        assert labellers.main(["--json", "--data", str(tmp_path), "--labels", "2", "--seed", seed]) == 0
        reports.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    recommended = {row["data"]: row["recommended"] for row in reports[0]["whole"]}
    assert recommended == {"few": "dawid_skene", "many": "majority"}
    assert reports[0] == reports[1]
    assert reports[0]["drawn"] != reports[2]["drawn"]
    assert reports[0]["goal"] == {"shortfall_points_low_max": "<= 1"}


def test_a_file_without_known_values_can_not_be_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.csv").write_text("item,rater,label\n1,a,x\n", encoding="utf-8")
    assert labellers.main(["--json", "--data", str(tmp_path / "bad.csv")]) == 1
    assert "no column gold" in capsys.readouterr().out
