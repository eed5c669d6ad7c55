"""The benchmark of trainers: what it reads of a process, and what it says where TRL is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import trainers
from benchmarks.harness import Unmeasurable


def test_a_training_gives_its_cpu_time_and_the_last_loss_among_other_lines() -> None:
    said = """print("{'loss': '4.1'}"); print('{"kind": "step", "loss": 2.5}'); print('{"loss": 1.25}'); print("bye")"""
    seconds, memory, loss = trainers.run([sys.executable, "-c", f"sum(range(3_000_000)); {said}"], {})
    assert loss == 1.25
    assert 0.01 < seconds < 60
    assert memory > 1


def test_a_training_that_fails_gives_no_figure() -> None:
    with pytest.raises(Unmeasurable):
        trainers.run([sys.executable, "-c", """print('{"loss": 1}'); raise SystemExit(2)"""], {})


def test_without_trl_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert trainers.main(["--json", "--trl", str(tmp_path)]) == 1
    (reason,) = json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"]
    assert "install TRL" in reason
