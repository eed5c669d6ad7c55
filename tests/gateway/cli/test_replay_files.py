"""The files that apprentice replay reads: times, values and forms, and what is refused with its line."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from monitoring.quality.replay import rows as replay_rows
from tests.gateway.cli.test_replay import objects, refused, stream, told, written


def test_times_out_of_order_are_refused_with_their_line_or_sorted_if_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "late.csv", ["time,outcome", "10,0", "20,1", "15,0"])
    reason = refused(capsys, path, "--baseline", "0.05")
    assert "line 4" in reason
    assert "--sort" in reason
    assert told(capsys, path, "--baseline", "0.05", "--sort")["labels"] == 3


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["time,outcome", "1,0", "2,"], "line 3: its outcome is ''"),
        (["time,outcome", "1,0", "2,0.5"], "line 3: its outcome is '0.5'"),
        (["time,outcome", "1,0", "2,true"], "line 3"),
        (["time,outcome", "1,0", "", "3,1"], "line 3: it is empty"),
        (["time,outcome", "1,0", ",1"], "line 3: its time is ''"),
        (["time,outcome", "1,0", "yesterday,1"], "line 3: its time is 'yesterday'"),
        (["time,outcome", "nan,0"], "line 2: its time is 'nan'"),
        (["time,outcome", "1e300,0"], "line 2: its time '1e300' is no time"),
        (["time,outcome", "1e400,0"], "line 2: its time '1e400' is no time"),
        (["time,outcome", "1_000,0"], "line 2: its time is '1_000'"),
        (["time,outcome", "1760000000000,0"], "Are these milliseconds? Divide by 1000."),
        (["time,outcome,asked", "5,0,6"], "line 2: it was asked at"),
        (["time,outcome,change,change_point", "5,0,0,0"], "two names of one column"),
        (["time,outcome,change", "5,0,0", "6,0,2026-01-01"], "both 0 or 1 and times"),
        (["time;outcome", "5;0,5"], "line 2: its outcome is '0,5'"),
        (["time\toutcome", "5\t0", "6"], "line 3: 1 fields, and the head has 2"),
        (["time,outcome", "-5,0"], "line 2: its time '-5' is no time"),
        (["time,outcome", "1,0,7"], "line 2: 3 fields, and the head has 2"),
        (["time,outcome", "1"], "line 2: 1 fields, and the head has 2"),
        (["time,outcome,change_point", "1,0,maybe"], "line 2: its change_point is 'maybe'"),
        (["time,label", "1,0"], "line 1: no column outcome"),
        (["time,outcome,outcome", "1,0,0"], "line 1: a column is there twice"),
        (["id,time,outcome,notes", "9,1,0,x"], "line 1: leave out 'id', 'notes'. Each of time, outcome"),
        (['[{"outcome": 0}]'], "line 1: it is a list in JSON. Write an object in each line"),
        (["time,outcome"], "no row under its head"),
        ([""], "line 1: no column outcome, and no column right"),
    ],
)
def test_what_is_no_stream_of_labels_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], said: str
) -> None:
    assert said in refused(capsys, written(tmp_path / "odd.csv", lines), "--baseline", "0.05")


def test_files_that_are_none_or_no_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "can't be read" in refused(capsys, str(tmp_path / "nowhere.csv"))
    assert "can't be read" in refused(capsys, str(tmp_path))
    (tmp_path / "bytes.csv").write_bytes(b"time,outcome\n1,0\n2,\xff\xfe\n")
    assert "line 3: it is not UTF-8" in refused(capsys, str(tmp_path / "bytes.csv"))
    (tmp_path / "wide.csv").write_bytes("time,outcome\n1,0\n".encode("utf-16"))
    assert "are UTF-16: save them as UTF-8." in refused(capsys, str(tmp_path / "wide.csv"))
    (tmp_path / "empty.csv").touch()
    assert "the file is empty" in refused(capsys, str(tmp_path / "empty.csv"))
    (tmp_path / "zeros.csv").write_bytes(bytes(100))
    assert "have bytes of zero" in refused(capsys, str(tmp_path / "zeros.csv"))
    (tmp_path / "quote.csv").write_text('time,outcome\n1,0\n"2,0\n3,0\n')
    assert "line 3: what begins there is no CSV" in refused(capsys, str(tmp_path / "quote.csv"))


@pytest.mark.parametrize(
    "raw",
    [
        b"\xef\xbb\xbftime,outcome\r\n1,0\r\n2,1\r\n",
        b'"time","outcome"\n"1","0"\n"2","1"\n',
        b"Time , OUTCOME\n 1 , 0\n2,1\n\n\n",
        b"time,outcome\r1,0\r2,1",
        b"outcome,time\n0,1970-01-01T00:00:01Z\n1,1970-01-01 00:00:02",
        b"time,outcome\n1,0\n1970-01-01T01:00:02+01:00,1\n",
    ],
    ids=["a mark and CRLF", "quoted", "spaces and empty lines at the end", "CR", "ISO 8601", "both kinds of times"],
)
def test_what_programs_write_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: bytes) -> None:
    (tmp_path / "one.csv").write_bytes(raw)
    found = told(capsys, str(tmp_path / "one.csv"), "--baseline", "0.05")
    assert (found["labels"], found["wrong"]) == (2, 1)
    assert (found["from"], found["to"]) == ("1970-01-01T00:00:01Z", "1970-01-01T00:00:02Z")


def test_a_long_file_is_told_of_while_it_is_read_and_takes_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay_rows, "PROGRESS_EVERY", 50_000)
    progress: list[str] = []
    path = Path(written(tmp_path / "long.csv", ["time,outcome,rater", *(f"{n},0,r{n % 9}" for n in range(60_000))]))
    tracemalloc.start()
    rows = replay_rows.read_rows(path, is_sorted=True, on_progress=progress.append)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(rows) == 60_000
    assert peak < 60_000 * 150
    assert progress == ["Read 50,000 rows"]


def test_outcomes_may_be_written_as_fractions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = stream(tmp_path / "plain.csv")
    lines = Path(plain).read_text(encoding="utf-8").splitlines()
    fractions = [lines[0], *(line.replace(",0", ",0.0").replace(",1", ",1.0") for line in lines[1:])]
    found = told(capsys, written(tmp_path / "fractions.csv", fractions))
    expected = told(capsys, plain)
    assert (found["verdict_changes"], found["changes"]) == (expected["verdict_changes"], expected["changes"])


def test_json_lines_without_times_are_spread_over_the_days(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = objects(tmp_path / "labels.jsonl", [{"right": n % 20 != 0, "caller": None} for n in range(600)])
    report = told(capsys, path, "--per-day", "100")
    assert (report["labels"], report["wrong"], report["one_means"]) == (600, 30, "right")
    assert (report["from"], report["to"][:10]) == ("2026-01-01T00:00:00Z", "2026-01-06")
    assert report["verdict_changes"] == []


def test_right_may_be_true_or_false_in_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "right.csv", ["right", "True", "false", "1", "0.0"])
    assert told(capsys, path)["wrong"] == 2


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        (['{"right": true}', "{right}"], "line 2: it is no JSON"),
        (['{"right": true}', "[1]"], "line 2: it is no object"),
        (['{"right": true}', '{"right": null}'], "line 2: its right is ''"),
        (['{"right": true}', '{"right": [1]}'], "line 2: its right is neither a text nor a number"),
        (['{"right": true}', '{"note": "x"}'], "line 2: no column outcome, and no column right"),
        (['{"right": true, "outcome": 0}'], "line 1: both outcome and right"),
        (['{"right": true, "weight": 1}'], "line 1: leave out 'weight'"),
        (['{"right": true, "time": 5}', '{"right": true}'], "line 2: its time is ''"),
        (['{"right": true, "asked": 5}'], "line 1: asked without time"),
        (['{"right": true}', '{"right": "maybe"}'], "line 2: its right is 'maybe'"),
    ],
)
def test_objects_that_are_no_labels_are_refused_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: list[str], text: str
) -> None:
    assert text in refused(capsys, written(tmp_path / "odd.jsonl", entries))
