"""The benchmark of the first step: its report, and a world of one's own."""

from __future__ import annotations

import json

import pytest

from benchmarks import first_step


def test_report_is_one_line_of_json_and_evidence_comes_first(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--json", "--runs", "12", "--answers", "150", "--world", "0.5:0.05", "--world", "0.5:0.5"]
    assert first_step.main(asked) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["goal"]) == {"answers_low"}
    rows = report["rows"]["0.5:0.05"]
    assert rows["first"]["answers"] <= 60
    assert rows["first"]["shown"] > rows["beside"]["shown"] >= rows["usual"]["shown"]
    assert report["rows"]["0.5:0.5"]["first"]["shown"] <= 0.25


@pytest.mark.parametrize("wrong", [["--runs", "2"], ["--load", "1.5"], ["--world", "bad"], ["--places", "0"]])
def test_what_can_not_be_run_is_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        first_step.main(wrong)
