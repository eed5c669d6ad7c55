"""Streams of labels put through the monitor's detector: what is found, and that nothing odd goes through unsaid."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks import replay, replay_rows

HOUR = 3600


def written(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def stream(path: Path, change: int = 500, back: int = 10_000, count: int = 800, seed: int = 5, more: str = "") -> str:
    draw = random.Random(seed)
    lines = ["time,outcome,change_point" + (",class,rater" if more else "")]
    for n in range(count):
        wrong = draw.random() < (0.35 if change <= n < back else 0.04)
        lines.append(f"{1_760_000_000 + n * HOUR},{int(wrong)},{int(n >= change)}{more.format(n=n)}")
    return written(path, lines)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert replay.main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert replay.main([*arguments, "--json"]) == 1
    said = capsys.readouterr()
    (reason,) = json.loads(said.out.splitlines()[-1])["reasons"]
    assert reason in said.err
    return str(reason)


@pytest.mark.parametrize("against", [["--baseline", "0.05"], ["--gate-rows", "40/1000"], ["--warm-up", "200"], []])
def test_a_change_is_found_after_it_and_nothing_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], against: list[str]
) -> None:
    found = told(capsys, stream(tmp_path / "labels.csv"), *against)
    assert found["figures"]["false_alarms"] == 0
    assert 0 < found["figures"]["delay_labels"] < 80
    assert found["figures"]["delay_seconds"] == (found["figures"]["delay_labels"] - 1) * HOUR
    assert found["alarms"][0]["since_label"] == pytest.approx(500, abs=15)
    assert found["alarms"][0]["line"] == found["alarms"][0]["label"] + 1
    assert found["verdicts"] == {"all": "degraded"}


def test_what_it_is_held_against_stands_there_with_its_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stream(tmp_path / "labels.csv")
    gate = told(capsys, path, "--gate-rows", "50/1000")["baselines"]["all"]
    assert gate == {"kind": "gate", "wrong": 50, "of": 1000, "upper": pytest.approx(0.0628, abs=1e-4)}
    own = told(capsys, path, "--warm-up", "100")["baselines"]["all"]
    assert (own["kind"], own["of"]) == ("own", 100)
    assert told(capsys, path, "--baseline", "0.07")["baselines"]["all"]["upper"] == 0.07


def test_a_recovery_is_found_and_what_comes_after_it_is_judged_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stream(tmp_path / "labels.csv", change=300, back=450, count=900)
    found = told(capsys, path, "--baseline", "0.05")
    assert found["verdicts"] == {"all": "healthy"}
    assert len(found["alarms"]) >= 1
    assert found["recoveries"][-1]["label"] > found["alarms"][-1]["label"] > 300


def test_without_a_change_a_healthy_stream_makes_no_alarm_and_has_no_delay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, stream(tmp_path / "labels.csv", change=10_000), "--baseline", "0.06")
    assert found["alarms"] == found["changes"] == []
    assert found["figures"]["delay_labels"] is None
    assert found["figures"]["false_alarms"] is None


def test_times_may_be_iso_8601_and_a_change_may_be_named_by_its_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["time,outcome,change_point"]
    for n in range(150):
        day, hour = divmod(n, 24)
        change = "2026-01-03T12:00:00Z" if n == 0 else ""
        lines.append(f"2026-01-{day + 1:02d}T{hour:02d}:00:00+00:00,{int(n >= 60)},{change}")
    found = told(capsys, written(tmp_path / "iso.csv", lines), "--baseline", "0.05")
    assert found["from"] == "2026-01-01T00:00:00Z"
    assert found["changes"][0]["after_labels"] == 60
    assert 0 < found["changes"][0]["delay_labels"] < 20


def test_each_class_has_a_detector_of_its_own_within_the_same_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, lines = random.Random(2), ["time,outcome,class"]
    for n in range(3_000):
        kind = "rare" if n % 20 == 0 else "usual"
        lines.append(
            f"{1_760_000_000 + n},{int(draw.random() < (0.8 if kind == 'rare' and n > 1_000 else 0.05))},{kind}"
        )
    path = written(tmp_path / "classes.csv", lines)
    found = told(capsys, path, "--baseline", "0.06", "--classes")
    assert found["claim"]["streams"] == 3
    assert found["verdicts"]["class rare"] == "degraded"
    assert found["verdicts"]["class usual"] == "healthy"
    assert told(capsys, path, "--baseline", "0.06")["claim"]["streams"] == 1


def test_one_rater_alone_makes_no_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, lines = random.Random(3), ["time,outcome,rater"]
    for n in range(600):
        loud = draw.random() < 0.3
        lines.append(f"{n},{int(loud or draw.random() < 0.04)},{'loud' if loud else f'rater-{n % 5}'}")
    path = written(tmp_path / "raters.csv", lines)
    assert told(capsys, path, "--baseline", "0.05")["alarms"] == []
    unnamed = written(tmp_path / "unnamed.csv", [line.rpartition(",")[0] for line in lines])
    assert told(capsys, unnamed, "--baseline", "0.05")["alarms"] != []


def test_what_1_means_is_said_and_can_be_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "good.csv", ["time,outcome", *(f"{n},1" for n in range(100))])
    assert told(capsys, path, "--baseline", "0.05")["alarms"] != []
    found = told(capsys, path, "--baseline", "0.05", "--good", "1")
    assert (found["alarms"], found["wrong"], found["one_means"]) == ([], 0, "right")


def test_too_few_labels_for_a_baseline_are_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "few.csv", ["time,outcome", *(f"{n},1" for n in range(50))])
    found = told(capsys, path)
    assert found["verdicts"] == {"all": "too few labels for a baseline"}
    assert found["alarms"] == []


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
        (["time,outcome", "nan,0"], "line 2: its time 'nan' is no time"),
        (["time,outcome", "1e300,0"], "line 2: its time '1e300' is no time"),
        (["time,outcome", "-5,0"], "line 2: its time '-5' is no time"),
        (["time,outcome", "1,0,7"], "line 2: 3 fields, and the head has 2"),
        (["time,outcome", "1"], "line 2: 1 fields, and the head has 2"),
        (["time,outcome,change_point", "1,0,maybe"], "line 2: its change_point is 'maybe'"),
        (["time,label", "1,0"], "line 1: no column outcome"),
        (["time,outcome,outcome", "1,0,0"], "may be there once"),
        (["time,outcome,notes", "1,0,x"], "line 1: the columns are"),
        (["time,outcome"], "no row under its head"),
        ([""], "line 1: no column time and no column outcome"),
        (["time,outcome,class", *(f"{n},0,c{n}" for n in range(150))], "more than 100 classes"),
    ],
)
def test_what_is_no_stream_of_labels_is_refused_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], said: str
) -> None:
    assert said in refused(capsys, written(tmp_path / "odd.csv", lines), "--baseline", "0.05")


def test_files_that_are_none_or_no_text_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "can't be read" in refused(capsys, str(tmp_path / "nowhere.csv"))
    (tmp_path / "bytes.csv").write_bytes(b"time,outcome\n1,\xff\xfe\n")
    assert "not UTF-8" in refused(capsys, str(tmp_path / "bytes.csv"))
    (tmp_path / "quote.csv").write_text('time,outcome\n"1,0\n')
    assert "no CSV" in refused(capsys, str(tmp_path / "quote.csv"))


def test_options_that_can_not_be_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stream(tmp_path / "labels.csv", count=10)
    for wrong in (
        ["--baseline", "0"],
        ["--gate-rows", "5"],
        ["--gate-rows", "7/7"],
        ["--warm-up", "3"],
        ["--alpha", "1"],
        ["--labels", "0"],
        ["--baseline", "0.1", "--warm-up", "100"],
        ["--good", "2"],
    ):
        with pytest.raises(SystemExit):
            replay.main([path, *wrong])
    assert capsys.readouterr().out == ""


def test_the_table_for_people_says_when_and_after_how_many_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay.main([stream(tmp_path / "labels.csv"), "--gate-rows", "40/1000"]) == 0
    shown = capsys.readouterr().out
    assert "alarm, all" in shown
    assert "The change after label 500" in shown
    assert "False alarms before the first change: 0" in shown
    assert "1 means wrong" in shown


def test_changes_are_where_ones_begin_and_at_the_times_that_are_named() -> None:
    rows = [replay_rows.Row(n, float(n), False, change=n in (3, 4, 8)) for n in range(12)]
    assert replay_rows.changes(rows) == [3, 8]
    assert replay_rows.changes([replay_rows.Row(0, 5.0, False, change=5.0)]) == [0]
