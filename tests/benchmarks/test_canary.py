"""Parts of the canary benchmark: pairs in runs, the pair at which a test rejects, exact intervals."""

from __future__ import annotations

import json
import math
import random

import pytest

from benchmarks import canary
from benchmarks.canary_worlds import Pairs
from monitoring.quality.detectors import sequential

pytestmark = pytest.mark.invariant("No good canary is rolled back more often than stated.")


def test_runs_hold_as_many_pairs_as_were_asked_for_at_the_rates_of_the_world() -> None:
    pairs = Pairs.correlated(0.10, 0.1, 0.05)
    counted = {-1: 0, 0: 0, 1: 0}
    for difference, times in pairs.differences(random.Random(3), 200_000):
        counted[difference] += times
    assert sum(counted.values()) == 200_000
    assert counted[1] / 200_000 == pytest.approx(0.06, abs=0.003)
    assert counted[-1] / 200_000 == pytest.approx(0.01, abs=0.0015)


def test_the_first_rejection_is_that_of_pairs_one_by_one() -> None:
    pairs, bar = Pairs(0.0, 0.05), -math.log(0.05)
    for seed in range(20):
        singly, test = 0, sequential.start("below", 0.02)
        for difference, times in pairs.differences(random.Random(seed), 5_000):
            for _ in range(times):
                if test.log_e_max < bar:
                    test, singly = sequential.observe(test, difference), singly + 1
        found = canary.pairs_until(sequential.start("below", 0.02), 0.05, pairs, random.Random(seed), 5_000)
        assert found == singly


def test_intervals_are_the_exact_ones() -> None:
    found = canary.rate_of(5, 100)
    assert found["rate"] == 0.05
    assert 1 - canary.cumulative(4, 100, found["low"]) == pytest.approx(0.005)
    assert canary.cumulative(5, 100, found["high"]) == pytest.approx(0.005)
    assert canary.rate_of(0, 1000)["high"] == pytest.approx(1 - 0.005 ** (1 / 1000))
    median = canary.median_of([float(n) for n in range(1, 101)])
    assert (median["low"], median["median"], median["high"]) == (37.0, 50.0, 64.0)


def test_what_nobody_reached_has_no_median() -> None:
    assert canary.median_of([1.0, *[math.inf] * 200])["median"] is None


def test_rates_that_can_not_be_are_refused_before_anything_is_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--baselines", "0.97"], ["--harm", "0"], ["--canaries", "10"], ["--alpha", "2"]):
        with pytest.raises(SystemExit):
            canary.main(wrong)
    assert capsys.readouterr().out == ""


def test_the_report_is_one_line_of_json_with_a_goal_for_each_baseline(capsys: pytest.CaptureFixture[str]) -> None:
    canary.main(["--json", "--canaries", "100", "--requests", "20", "--pairs", "50", "--baselines", "0.05"])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {row["baseline"] for row in told["shadow"]} == {0.05}
    assert "harm_pairs_5_low" in told["goal"]
    assert "harm_pairs_10_low" not in told["goal"]
