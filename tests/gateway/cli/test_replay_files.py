"""The files that apprentice replay reads: times, values and forms, and what is refused with its line."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pytest

from benchmarks.replay import run
from monitoring.quality.replay import rows as replay_rows
from tests.gateway.cli.test_replay import objects, refused, stream, told, written


def test_times_out_of_order_are_refused_with_their_line_or_sorted_if_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path / "late.csv", ["time,outcome", "10,0", "20,1", "15,0"])
    reason = refused(capsys, path, "--baseline", "0.05")
    assert "Line 4" in reason
    assert "--sort" in reason
    assert told(capsys, path, "--baseline", "0.05", "--sort")["labels"] == 3


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["time,outcome", "1,0", "2,0.5"], "Line 3: its outcome is '0.5'"),
        (["time,outcome", "1,0", "2,maybe"], "Line 3: its outcome is 'maybe'"),
        (["time,outcome", "1,", "2,null"], "no row has a label under 'outcome'"),
        (["time,outcome", "1,0", ",1"], "Line 3: its time is ''"),
        (["time,outcome", "1,0", "yesterday,1"], "Line 3: its time is 'yesterday'"),
        (["time,outcome", "nan,0"], "Line 2: its time is 'nan'"),
        (["time,outcome", "1e300,0"], "Line 2: its time '1e300' is not a time from 1970 to 9999"),
        (["time,outcome", "1e400,0"], "Line 2: its time '1e400' is not a time"),
        (["time,outcome", "1,0", "1760000000000,0"], "Line 3: its time '1760000000000' is not a time"),
        (["time,outcome", "3/1/2026 9:00,0"], "Say whether the day or the month comes first: --day-first"),
        (["time,outcome", "3/32/2026,0"], "Line 2: its time is '3/32/2026'"),
        (["time,outcome", "2026-03-01 12:61,0"], "Line 2: its time is '2026-03-01 12:61'"),
        (["time,outcome", "1_000,0"], "Line 2: its time is '1_000'"),
        (["time,outcome,asked", "5,0,6"], "Line 2: it was asked at"),
        (["time,outcome,change,change_point", "5,0,0,0"], "which column counts, 'change' and 'change_point'. Say"),
        (["time,outcome,change", "5,0,0", "6,0,2026-01-01"], "both 0 or 1 and times"),
        (["time;outcome", "5;0,5"], "Line 2: its outcome is '0,5'"),
        (["time\toutcome", "5\t0", "6"], "Line 3: it has fewer cells than the 2 columns"),
        (["time,outcome", "-5,0"], "Line 2: its time '-5' is not a time"),
        (["time,outcome", "1,0,7"], "Line 2: it has more cells than the 2 columns"),
        (["time,outcome", "1"], "Line 2: it has fewer cells than the 2 columns"),
        (["time,label", "1,refund"], "Line 2: its label is 'refund'. It must be 0 or 1, or a word"),
        (["time,score", "1,0.87"], "of scores say which are right, as in --right-from 0.5"),
        (["time,outcome,outcome", "1,0,0"], "Line 1: two columns are named 'outcome': rename one"),
        (["id,time,thumbs", "9,1,x"], "It has 'id', 'time', 'thumbs'. Say which one does: --right COLUMN, or --wrong"),
        (["correct,error", "1,0"], "'correct' and 'error'. Say which: --right correct or --wrong error"),
        (["right,created_at,ts", "1,5,5"], "'created_at' and 'ts'. Say which: --time created_at"),
        (['[{"outcome": 0}', "]]"], "odd.csv is not JSON"),
        (["[1, 2]"], "Row 1: it is not a JSON object"),
        (["time,outcome"], "no row under its head"),
        ([""], "no row under its head"),
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
    assert "is not text in UTF-8: save it as such. The fault is on line 3." in refused(
        capsys, str(tmp_path / "bytes.csv")
    )
    (tmp_path / "wide.csv").write_bytes("time,outcome\n1,0\n".encode("utf-16"))
    assert "are UTF-16: save them as UTF-8." in refused(capsys, str(tmp_path / "wide.csv"))
    (tmp_path / "empty.csv").touch()
    assert "has no row under its head" in refused(capsys, str(tmp_path / "empty.csv"))
    (tmp_path / "zeros.csv").write_bytes(bytes(100))
    assert "have bytes of zero" in refused(capsys, str(tmp_path / "zeros.csv"))
    (tmp_path / "quote.csv").write_text('time,outcome\n1,0\n"2,0\n3,0\n')
    assert "line 3: the row that begins there is no CSV" in refused(capsys, str(tmp_path / "quote.csv"))


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


def moment(n: int, form: str) -> str:
    return datetime.fromtimestamp(1_767_225_600 + 3_600 * n, UTC).strftime(form)


FORMS: dict[str, tuple[str, Callable[[int, bool], str], list[str]]] = {
    "yes and no": ("timestamp,correct", lambda n, ok: f"{moment(n, '%Y-%m-%d %H:%M')},{'yes' if ok else 'No'}", []),
    "milliseconds": (
        "\ufeffid;created_at;is_correct;note",
        lambda n, ok: f'{n};{1_767_225_600_000 + 3_600_000 * n};{ok};"a; ""b"""',
        [],
    ),
    "errors": ("ts\terror", lambda n, ok: f"{1_767_225_600 + 3_600 * n}.000\t{int(not ok)}", []),
    "pass and fail": (
        '"Date","Result"',
        lambda n, ok: f'"{moment(n, "%m/%d/%Y %I:%M:%S %p")}","{"Pass" if ok else "FAIL"}"',
        ["--month-first"],
    ),
    "a date and a time": (
        "date,time,OK?",
        lambda n, ok: f"{moment(n, '%d.%m.%Y')},{moment(n, '%H:%M')},{float(ok)}",
        [],
    ),
    "slashes": (
        "label,When",
        lambda n, ok: f"{int(ok)},{moment(n, '%d/%m/%Y %H:%M')}",
        ["--time", "When", "--day-first"],
    ),
    "zones": (
        "event_time,wrong",
        lambda n, ok: f"{moment(n, '%Y-%m-%d %H:%M:%S.000')} +0000,{'t' if not ok else 'f'}",
        [],
    ),
    "scores": (
        "at,score",
        lambda n, ok: f"{moment(n, '%Y/%m/%d %H:%M')} UTC,{0.8 if ok else 0.25}",
        ["--right-from", "0.5"],
    ),
    "texts beside": ("created,label,passed", lambda n, ok: f"{moment(n, '%Y-%m-%dT%H%M%SZ')},refund,{int(ok)}", []),
    "objects in objects": (
        '{"v": 1, "feedback": {"isCorrect": true}, "timestamp": "2026-01-01T00:00:00Z"}',
        lambda n, ok: json.dumps(
            {"timestamp": moment(n, "%a, %d %b %Y %H:%M:%S GMT"), "feedback": {"isCorrect": ok, "tags": [1]}}
        ),
        [],
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_files_as_people_have_them_are_read_as_the_plain_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    head, row, options = FORMS[form]
    outcomes = [True, *(n % 25 != 7 and (n < 300 or n % 2 > 0) for n in range(1, 400))]
    lines = [row(n, ok) for n, ok in enumerate(outcomes)]
    first = [head, *lines[1:]] if head.startswith("{") else [head, *lines]
    told_plainly = [f"{1_767_225_600 + 3_600 * n},{int(ok)}" for n, ok in enumerate(outcomes)]
    plain = told(capsys, written(tmp_path / "plain.csv", ["time,right", *told_plainly]))
    found = told(capsys, written(tmp_path / "odd.txt", first), *options)
    same = ("labels", "wrong", "from", "to", "course")
    assert [found[name] for name in same] == [plain[name] for name in same]
    changes = [(change["label"], change["to"], change["time"]) for change in found["verdict_changes"]]
    assert changes == [(change["label"], change["to"], change["time"]) for change in plain["verdict_changes"]] != []


def test_parquet_and_lists_are_read_as_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "labels.parquet"
    duckdb.sql(
        "COPY (SELECT to_timestamp(1767225600 + 60 * range) AS created_at, range % 10 <> 0 AS correct, 'k' AS kind "
        f"FROM range(300)) TO '{path}' (FORMAT parquet)"
    )
    report = told(capsys, str(path), "--class", "kind")
    assert (report["labels"], report["wrong"], report["to"]) == (300, 30, "2026-01-01T04:59:00Z")
    assert report["columns"] == {"outcome": "correct", "time": "created_at", "class": "kind"}
    assert "class k" in report["signals"]
    (tmp_path / "list.json").write_text(json.dumps([{"ok": n % 10 != 0} for n in range(300)], indent=1))
    assert told(capsys, str(tmp_path / "list.json"))["wrong"] == 30
    path.write_bytes(b"PAR1")
    assert "is not Parquet" in refused(capsys, str(path))


def test_what_was_read_and_what_was_not_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["id,score,client,time", *(f"{n},{(n % 2) if n % 3 else 'null'},c{n},{900 - n}" for n in range(300)), ",,,"]
    path = written(tmp_path / "odd.csv", lines)
    report = told(capsys, path)
    assert (report["labels"], report["wrong"], report["one_means"]) == (200, 100, "right")
    assert report["columns"] == {"outcome": "score", "time": "time", "caller": "client"}
    assert report["notes"][-4:] == [
        "of score 1 was taken for right: say --wrong score where it means wrong",
        "rows without a label, which were left out: 100",
        "columns that were not read: id",
        "the newest label comes first: the file was replayed from its end",
    ]
    assert run(["replay", path, "--wrong", "score"]) == 0
    shown = capsys.readouterr().out
    assert "Columns: outcome = score, time = time, caller = client" in shown
    assert "1 means wrong" in shown
    assert "was taken for right" not in shown


def test_first_label_of_a_request_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"{n},{n // 2 if n < 100 else ''},{n % 2}" for n in range(120)]
    report = told(capsys, written(tmp_path / "twice.csv", ["time,request_id,right", *lines]))
    assert (report["labels"], report["wrong"], report["columns"]["request"]) == (70, 60, "request_id")
    assert report["notes"][-1] == "further labels of a request, which were left out: 50"
    late = written(tmp_path / "late.csv", ["time,request_id,right", *reversed(lines)])
    assert told(capsys, late)["wrong"] == 60


def test_columns_that_are_named_are_read_or_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["correct,thumbs,user,by,when", *(f"1,{'down' if n % 5 else 'up'},u{n},r,{n}" for n in range(60))]
    path = written(tmp_path / "named.csv", lines)
    report = told(capsys, path, "--right", "thumbs", "--caller", "user", "--rater", "by", "--time", "when")
    assert report["columns"] == {"outcome": "thumbs", "time": "when", "caller": "user", "rater": "by"}
    assert report["wrong"] == 48
    assert "--class kind: no such column. It has 'correct', 'thumbs'" in refused(capsys, path, "--class", "kind")
    assert "--right and --wrong: one of them" in refused(capsys, path, "--right", "thumbs", "--wrong", "correct")


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
        (['{"right": true}', "{right}"], "Line 2: it is not JSON"),
        (['{"right": true}', "[1]"], "Line 2: it is not a JSON object"),
        (['{"right": [1]}'], "no column is known to say what is right"),
        (['{"right": true, "outcome": 0}'], "'right' and 'outcome'. Say which: --right right or --wrong outcome"),
        (['{"a": {"ok": 1}, "b": {"ok": 0}}'], "'a.ok' and 'b.ok'. Say which: --right a.ok or --right b.ok"),
        (['{"right": true, "time": 5}', '{"right": true}'], "Line 2: its time is ''"),
        (['{"right": true, "asked": 5}'], "Line 1: asked without time"),
        (['{"right": true}', '{"right": "maybe"}'], "Line 2: its right is 'maybe'"),
    ],
)
def test_objects_that_are_no_labels_are_refused_with_their_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], entries: list[str], text: str
) -> None:
    assert text in refused(capsys, written(tmp_path / "odd.jsonl", entries))
