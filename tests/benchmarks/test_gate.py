"""The benchmark of the gate: what counts as bad, and that its draws are the seed's alone."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest

from benchmarks import gate
from benchmarks.gate import Candidate, Population
from monitoring.evaluation import statistics


def population(leading: float, best: float) -> Population:
    """A thousand texts of ten classes, of which each reference gets so many right."""
    places = np.arange(1000) // 10 / 100
    return Population(np.arange(1000) % 10, {"leading": places < leading, "best": places < best})


def test_a_version_is_bad_where_it_is_worse_than_either_reference_by_the_margin() -> None:
    places = np.arange(1000) // 10 / 100
    known = population(0.90, 0.95)
    for share, bad, good in ((0.96, False, True), (0.94, False, False), (0.93, True, False), (0.80, True, False)):
        candidate = Candidate("grown", places < share)
        assert (gate.is_bad(known, candidate, 0.02), gate.is_good(known, candidate)) == (bad, good)


def test_planted_faults_are_as_large_as_they_say() -> None:
    known, draw = population(0.90, 0.90), np.random.default_rng(1)
    made = gate.lose_margin(known, known.right["leading"], 0.02, draw)
    assert known.worse(made.right, "leading") == pytest.approx(0.02)
    assert list(gate.groups_of(known, made, 0.02)) == ["margin"]


def test_a_first_version_that_is_never_right_fails_and_one_always_right_passes() -> None:
    asked = argparse.Namespace(seed=1, classes=20, margin=0.02)
    assert gate.judge_first(gate.FEW_ROWS, 0.0, asked, 20) == {"failed": 20}
    assert gate.judge_first(gate.FEW_ROWS, 1.0, asked, 20) == {"passed": 20}


def test_the_same_seed_gives_the_same_figures(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "BOOTSTRAP_DRAWS", 500)  # two thirds of the time are 10,000 for each bound
    found = []
    for _ in range(2):
        assert gate.main(["--json", "--splits", "1", "--draws", "40", "--classes", "3", "--rows", "40"]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    for report in found:
        del report["cpu_seconds"]
    assert found[0] == found[1]
    assert found[0]["goals_dropped"] == ["good_passed_high"]
    assert found[0]["rows"]["flipped 50%"].get("passed", 0.0) == 0.0
