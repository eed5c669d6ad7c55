"""Parts of the benchmark of looking at all times: the monitor's own bounds, and its report."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benchmarks import looking
from monitoring.quality.detectors import estimates, sequential
from monitoring.quality.signals import arms
from monitoring.quality.signals.arms import Arm


def test_bounds_of_many_runs_are_those_of_the_monitor_after_each_pair() -> None:
    draw = np.random.default_rng(3)
    pairs = 1_300
    differences = looking.drawn(1, pairs, 0.2, 0.1, draw)
    bounds = looking.bounds_of(differences, looking.first_pairs(pairs))
    arm = Arm(other="general")
    for number, apart in enumerate(differences[0]):
        right = (float(apart < 0), float(apart > 0))
        arm = arms.add_label(arms.add_pair(arm, number, None), number, right, None)
        if number in (18, 19, 100, 700, 1_250, 1_299):
            found = arms.compare(arm, None)
            low = -1.0 if found is None else found.advantage_low
            assert bounds["always"][0, number] == pytest.approx(low)
            one = estimates.estimate_difference(
                arms.add_up(block.sure.difference.low for block in arms.get_newest_blocks(arm, None)), 0.9
            )
            assert one is not None
            assert bounds["fixed"][0, number] == pytest.approx(one.low) or number < 19


def test_bets_of_many_runs_are_those_of_the_monitor_after_each_pair() -> None:
    [differences] = looking.drawn(1, 300, 0.2, 0.1, np.random.default_rng(3))
    bets, found = sequential.start("above", 0.0), []
    for apart in differences:
        bets = sequential.observe(bets, float(apart))
        found.append(sequential.log_e(bets))
    assert looking.log_e_of(differences[np.newaxis])[0] == pytest.approx(found)


def test_equal_arms_are_rarely_better_within_2000_pairs_and_10_points_are_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert looking.main(["--json", "--runs", "400"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["figures"]["wrongly_most_low"] <= 0.035
    assert told["figures"]["wrongly_by_one_look"] > 0.2
    better = told["rows"]["10 points better"]["always"]
    assert better["rate"] > 0.95
    assert better["pairs"] < 300


def test_too_few_runs_are_told() -> None:
    with pytest.raises(SystemExit):
        looking.main(["--runs", "5"])
