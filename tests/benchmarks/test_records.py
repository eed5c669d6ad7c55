"""The benchmark of records measures every step, and says so in one line of JSON."""

from __future__ import annotations

import json

import pytest

from benchmarks import records


def test_every_step_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert records.main(["--json", "--records", "2000"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["records"] == 2000
    assert told["goal"] == {"loop_held_ms_max": "<= 2"}
    figures = told["figures"]
    steps = ("flush_us_per_record", "spool_us_per_record", "replay_mb_per_second", "parquet_bytes_per_record")
    assert all(figures[name] > 0 for name in (*steps, "loop_held_ms_max", "archive_records_per_second"))
    assert figures["parquet_bytes_per_record"] < figures["spool_bytes_per_record"] / 2


def test_too_few_records_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        records.main(["--records", "10"])
    assert capsys.readouterr().out == ""
