"""Streams of labels put through the monitor's detector: what is found, and that nothing odd goes through unsaid."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest

from benchmarks import replay as benchmark
from benchmarks.replay import run
from monitoring.quality.phases import Phase
from monitoring.quality.replay import rows as replay_rows
from monitoring.quality.replay.version import Claim, VersionReplay
from monitoring.quality.signals.all_watches import Watches
from monitoring.quality.signals.child_messages import WatchedVersion
from monitoring.quality.signals.label_signal import LabelSignal
from monitoring.quality.signals.version_watch import FIRST_FEEDBACK, FIRST_OF_CLASS
from monitoring.quality.verdicts.monitor_responses import respond
from monitoring.quality.verdicts.quality import Judgement, SignalReport, TaskQuality, VersionQuality
from monitoring.quality.verdicts.shares import Roles
from tests.monitoring.quality.traffic import MORNING, PLAN, V3, said, served, step

HOUR = 3600


def written(path: Path, lines: list[str]) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def stream(path: Path, change: int = 500, back: int = 10_000, count: int = 800, seed: int = 5, more: str = "") -> str:
    draw = random.Random(seed)
    lines = ["time,outcome,change_point" + (",class,rater" if more else "")]
    for n in range(count):
        worse = change <= n < back
        wrong = draw.random() < (0.35 if worse else 0.04)
        lines.append(f"{1_760_000_000 + n * HOUR},{int(wrong)},{int(worse)}{more.format(n=n)}")
    return written(path, lines)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["replay", *arguments, "--json"]) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["replay", *arguments, "--json"]) == 2
    printed = capsys.readouterr()
    reason = json.loads(printed.out)["error"]["message"]
    assert reason in printed.err
    return str(reason)


@pytest.mark.parametrize("against", [["--baseline", "0.05"], ["--gate-rows", "40/1000"], ["--warm-up", "200"], []])
def test_a_change_is_found_after_it_and_nothing_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], against: list[str]
) -> None:
    found = told(capsys, stream(tmp_path / "labels.csv"), *against)
    assert found["figures"]["false_alarms"] == 0
    assert 0 < found["figures"]["delay_labels"] < 80
    assert found["figures"]["delay_seconds"] == (found["figures"]["delay_labels"] - 1) * HOUR
    (turn,) = found["verdict_changes"]
    assert turn["evidence"][0]["since_label"] == pytest.approx(500, abs=15)
    assert turn["line"] == turn["label"] + 1
    assert (turn["from"], turn["to"], found["verdict"]) == ("healthy", "degraded", "degraded")


def test_what_it_is_held_against_stands_there_with_its_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = stream(tmp_path / "labels.csv")
    gate = held(told(capsys, path, "--gate-rows", "50/1000"))
    assert gate == {"kind": "gate", "wrong": 50, "of": 1000, "upper": pytest.approx(0.0628, abs=1e-4)}
    own = held(told(capsys, path, "--warm-up", "100"))
    assert (own["kind"], own["of"]) == ("own", 100)
    assert held(told(capsys, path, "--baseline", "0.07"))["upper"] == 0.07
    assert held(told(capsys, path))["of"] == 200


def held(found: dict[str, Any], stream: str = "all") -> Any:
    return found["signals"][stream]["baseline"]


def test_it_goes_on_after_an_alarm_degraded_recovered_and_degraded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, lines = random.Random(8), ["time,outcome,change"]
    for n in range(2_000):
        worse = 500 <= n < 900 or n >= 1_400
        lines.append(f"{1_760_000_000 + n * HOUR},{int(draw.random() < (0.35 if worse else 0.04))},{int(worse)}")
    found = told(capsys, written(tmp_path / "twice.csv", lines), "--gate-rows", "50/1000")
    turns = found["verdict_changes"]
    assert [(one["from"], one["to"]) for one in turns] == [
        ("healthy", "degraded"),
        ("degraded", "healthy"),
        ("healthy", "degraded"),
    ]
    assert [one["labels_before"] for one in turns] == [
        turns[0]["label"],
        turns[1]["label"] - turns[0]["label"],
        turns[2]["label"] - turns[1]["label"],
    ]
    assert "has recovered" in turns[1]["because"]
    assert [one["direction"] for one in found["changes"]] == ["worse", "better", "worse"]
    assert [one["verdict_label"] for one in found["changes"]] == [one["label"] for one in turns]
    assert all(0 < one["delay_labels"] < 150 for one in found["changes"])
    for one in found["changes"]:
        assert one["delay_seconds"] == pytest.approx((one["delay_labels"] - 1) * HOUR, rel=1e-3)
    figures = found["figures"]
    assert (figures["verdict_changes"], figures["alarms"]) == (3, 2)
    assert (figures["false_alarms"], figures["false_recoveries"]) == (0, 0)
    assert figures["recovery_delay_labels"] == found["changes"][1]["delay_labels"]


@pytest.mark.parametrize("classes", [(), ("toys", "food", "books")])
def test_it_is_the_monitors_own_state_that_moves(tmp_path: Path, classes: tuple[str, ...]) -> None:
    """The same labels, one caller's, come to the same tracks and verdicts through the monitor's own watches."""
    draw, outcomes = random.Random(4), list[tuple[bool, str]]()
    for n in range(1_600):
        worse = 400 <= n < 800 or n >= 1_200
        outcomes.append((draw.random() < (0.4 if worse else 0.05), draw.choice(classes) if classes else ""))
    lines = [f"{MORNING + n},{int(wrong)},{kind}" for n, (wrong, kind) in enumerate(outcomes)]
    rows = replay_rows.read_rows(Path(written(tmp_path / "labels.csv", ["time,outcome,class", *lines])))
    watches, health = Watches("e"), TaskQuality()
    streams = 1 + len(classes)
    claim = Claim(10_000, 0.05, PLAN.labels_min)
    version = VersionReplay(rows.classes(), FIRST_FEEDBACK, FIRST_OF_CLASS, None, claim)
    turns, wanted = [], []
    watches.begin(step(), {})
    for label, row in enumerate(rows, 1):
        seen = served(f"r{label}", "file", placed_at=row.at)
        watches.take_record(seen, row.at)
        watches.take_feedback(said(seen.id, not row.wrong, "file", tags={"kind": row.kind or ""}), seen, row.at)
        known = watches.by_version[V3]
        tracked = {"all": known.feedback} | {
            f"class {name.partition(':')[2]}": one for name, one in known.classes.items()
        }
        turn = version.observe(label, row)
        judged = Judgement(
            task="returns",
            version=V3,
            at=row.at,
            labels=label,
            reports=[reported(name, one, streams) for name, one in tracked.items()],
        )
        before, health = health, respond(health, {V3: judged}, Roles(), PLAN, row.at)[0]
        found, was = health.versions[V3], before.versions.get(V3, VersionQuality())
        if turn is not None:
            turns.append((turn.label, turn.before, turn.after))
        if found.verdict != was.verdict:
            wanted.append((label, was.verdict, found.verdict))
            versions = {
                V3: WatchedVersion(task="returns", state="active", phase=Phase(own=found.verdict), since=row.at)
            }
            watches.begin(msgspec.structs.replace(step(), versions=versions), {})
    assert turns == wanted
    assert len([after for _, _, after in wanted if after != "suspect"]) == 3
    tracked = {"all": watches.by_version[V3].feedback} | {
        f"class {name.partition(':')[2]}": one for name, one in watches.by_version[V3].classes.items()
    }
    for name, stream in version.signals.items():
        one = tracked[name]
        assert (stream.track.labels, stream.track.wrong, stream.track.begun) == (one.labels, one.wrong, one.begun)
        assert stream.track.find_evidence(False) == one.find_evidence(False)


def reported(name: str, track: LabelSignal, streams: int) -> SignalReport:
    doubt = track.find_doubt(PLAN.labels_min, 10_000.0 * streams, 0.05)
    return SignalReport(
        signal="feedback",
        of_class=name.partition(" ")[2] or None,
        labelled=True,
        observed=float(track.labels),
        baseline={} if track.baseline is None else msgspec.to_builtins(track.baseline),
        alarming=doubt is None and track.alarms(PLAN.labels_min, 10_000.0 * streams, 0.05),
        doubt=doubt,
        recovered=track.has_recovered,
    )


def test_without_a_change_a_healthy_stream_makes_no_alarm_and_has_no_delay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, stream(tmp_path / "labels.csv", change=10_000), "--baseline", "0.06")
    assert found["verdict_changes"] == found["changes"] == []
    assert found["figures"]["delay_labels"] is None


def test_a_change_that_is_not_found_has_no_delay_and_alarms_before_it_are_false(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{n},{int(n < 40)},{int(n >= 300)}" for n in range(330)]
    found = told(capsys, written(tmp_path / "false.csv", ["time,outcome,change_point", *lines]), "--baseline", "0.05")
    assert [one["to"] for one in found["verdict_changes"]] == ["degraded", "healthy"]
    assert (found["figures"]["false_alarms"], found["figures"]["false_recoveries"]) == (1, 0)
    (change,) = found["changes"]
    assert (change["verdict_before"], change["verdict_label"], change["delay_labels"]) == ("healthy", None, None)


def test_labels_of_requests_from_before_the_recovery_are_no_evidence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degraded = [f"{n},{int(100 <= n < 160)},{n}" for n in range(400)]
    late = [f"{1_000 + n},1,{100 + n % 60}" for n in range(60)]
    path = written(tmp_path / "late.csv", ["time,outcome,asked", *degraded, *late])
    assert told(capsys, path, "--baseline", "0.05")["verdict"] == "healthy"
    unknown = written(tmp_path / "unknown.csv", ["time,outcome", *(one.rpartition(",")[0] for one in degraded + late)])
    assert told(capsys, unknown, "--baseline", "0.05")["verdict"] == "degraded"


def test_labels_of_requests_from_before_the_verdict_show_no_recovery(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    degraded = [f"{n},{int(n >= 100)},{n}" for n in range(140)]
    praise = [f"{200 + n},0,{n % 100}" for n in range(150)]
    path = written(tmp_path / "early.csv", ["time,outcome,asked", *degraded, *praise])
    assert told(capsys, path, "--baseline", "0.05")["verdict"] == "degraded"
    back = [f"{400 + n},0,{399 + n}" for n in range(150)]
    path = written(tmp_path / "back.csv", ["time,outcome,asked", *degraded, *praise, *back])
    (_, recovered) = told(capsys, path, "--baseline", "0.05")["verdict_changes"]
    assert recovered["label"] > 291
    assert [one["since_label"] for one in recovered["evidence"]] == [291]


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


def test_times_that_are_named_are_for_the_worse_and_for_the_better_in_turn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{n},{int(100 <= n < 200)},{({0: 100, 1: 200, 2: 900}).get(n, '')}" for n in range(400)]
    found = told(capsys, written(tmp_path / "named.csv", ["time,outcome,change", *lines]), "--baseline", "0.05")
    changes = [(one["after_labels"], one["direction"]) for one in found["changes"]]
    assert changes == [(100, "worse"), (200, "better"), (400, "worse")]
    assert [one["verdict_label"] is None for one in found["changes"]] == [False, False, True]


def test_each_class_has_a_detector_of_its_own_within_the_same_claim(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, lines = random.Random(2), ["time,outcome,class"]
    for n in range(4_500):
        kind = "rare" if n % 20 == 0 else "usual"
        lines.append(
            f"{1_760_000_000 + n},{int(draw.random() < (0.8 if kind == 'rare' and n > 2_500 else 0.05))},{kind}"
        )
    path = written(tmp_path / "classes.csv", lines)
    found = told(capsys, path, "--baseline", "0.06", "--classes")
    assert found["claim"]["signals"] == 3
    (turn,) = found["verdict_changes"]
    assert [one["signal"] for one in turn["evidence"]] == ["class rare"]
    assert "of the class rare" in turn["because"]
    assert (held(found, "class rare")["kind"], held(found, "class rare")["of"]) == ("own", 100)
    assert told(capsys, path, "--baseline", "0.06")["claim"]["signals"] == 1


def test_classes_beyond_the_first_twenty_share_a_stream_as_in_the_monitor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [f"{n},0,c{n % 30}" for n in range(600)]
    found = told(capsys, written(tmp_path / "many.csv", ["time,outcome,class", *lines]), "--classes")
    assert found["claim"]["signals"] == 22
    assert found["signals"]["class *"]["labels"] == 200


def test_one_rater_alone_makes_no_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, lines = random.Random(3), ["time,outcome,rater"]
    for n in range(600):
        loud = draw.random() < 0.3
        lines.append(f"{n},{int(loud or draw.random() < 0.04)},{'loud' if loud else f'rater-{n % 5}'}")
    path = written(tmp_path / "raters.csv", lines)
    assert told(capsys, path, "--baseline", "0.05")["verdict_changes"] == []
    unnamed = written(tmp_path / "unnamed.csv", [line.rpartition(",")[0] for line in lines])
    assert told(capsys, unnamed, "--baseline", "0.05")["verdict_changes"] != []


def test_evidence_that_rests_on_one_of_two_raters_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, raters = random.Random(3), (("calm", 0.04), ("loud", 0.4))
    labels = [(n, int(draw.random() < raters[n % 2][1]), raters[n % 2][0]) for n in range(600)]
    lines = ["time,outcome,rater", *(f"{n},{wrong},{rater}" for n, wrong, rater in labels)]
    path = written(tmp_path / "raters.csv", lines)
    found = told(capsys, path, "--baseline", "0.05")
    assert (found["verdict_changes"], found["signals"]["all"]["rests_on_one"]) == ([], True)
    (note,) = found["notes"]
    assert note.startswith("all would alarm, but rests on one caller or rater, who moves no verdict alone")
    assert run(["replay", path, "--baseline", "0.05"]) == 0
    assert f"Note: {note}" in capsys.readouterr().out
    unnamed = written(tmp_path / "unnamed.csv", [line.rpartition(",")[0] for line in lines])
    assert told(capsys, unnamed, "--baseline", "0.05")["notes"] == []


def test_classes_that_are_passed_over_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "classes.csv", ["time,outcome,class", *(f"{n},0,c{n % 2}" for n in range(300))])
    (note,) = told(capsys, path)["notes"]
    assert note == "the column class is not used: --classes gives each class a detector of its own too"
    assert told(capsys, path, "--classes")["notes"] == []


@pytest.mark.parametrize(("gap", "said"), [(40, "40 s"), (600, "10 min"), (5 * 3600, "5.0 h"), (4 * 86_400, "4.0 d")])
def test_the_longest_gap_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], gap: int, said: str) -> None:
    path = written(tmp_path / "gap.csv", ["time,outcome", "0,0", "10,0", f"{10 + gap},0"])
    assert run(["replay", path]) == 0
    assert f"Longest time between two labels: {said}" in capsys.readouterr().out.splitlines()


def test_what_1_means_is_said_and_can_be_turned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "good.csv", ["time,outcome", *(f"{n},1" for n in range(100))])
    assert told(capsys, path, "--baseline", "0.05")["verdict_changes"] != []
    found = told(capsys, path, "--baseline", "0.05", "--good", "1")
    assert (found["verdict_changes"], found["wrong"], found["one_means"]) == ([], 0, "right")


def test_too_few_labels_for_a_baseline_are_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "few.csv", ["time,outcome", *(f"{n},1" for n in range(50))])
    found = told(capsys, path)
    assert found["verdict"] == "too few labels for a baseline"
    assert found["verdict_changes"] == []
    assert found["notes"] == ["nothing was judged: the first 200 labels are the baseline (--warm-up, --baseline)"]


def test_times_that_a_file_does_not_have_are_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path / "untimed.csv", ["right", *("1" for _ in range(300))])
    (note,) = told(capsys, path)["notes"]
    assert note.startswith("the file has no times")


@pytest.mark.parametrize(
    ("against", "said"),
    [
        (["--baseline", "0.07"], "compared with 7.00% wrong, as stated"),
        (["--gate-rows", "50/1000"], "compared with 6.29% wrong, bound of the evaluation (50 of 1000)"),
        (["--warm-up", "100"], "wrong, bound of its first labels ("),
    ],
)
def test_people_are_told_where_the_baseline_comes_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], against: list[str], said: str
) -> None:
    assert run(["replay", stream(tmp_path / "labels.csv"), *against]) == 0
    assert said in capsys.readouterr().out


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
        assert run(["replay", path, *wrong]) == 2
    assert capsys.readouterr().out == ""


def test_a_claim_of_few_labels_and_many_false_alarms_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(
        capsys, stream(tmp_path / "labels.csv"), "--baseline", "0.05", "--labels", "5", "--false-alarms", "0.9"
    )
    assert found["verdict_changes"]


def test_the_table_for_people_says_when_and_after_how_many_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["replay", stream(tmp_path / "labels.csv"), "--gate-rows", "40/1000"]) == 0
    shown = capsys.readouterr().out
    assert "degraded, all" in shown
    assert "for the worse" in shown
    assert "False alarms: 0" in shown
    assert "At the end: degraded" in shown
    assert "1 means wrong" in shown


def test_what_can_never_alarm_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["time,outcome", *(f"{1_760_000_000 + n},1" for n in range(300))]
    path = written(tmp_path / "labels.csv", lines)
    found = told(capsys, path)
    (note,) = found["notes"]
    assert "(--good 1)" in note
    assert note.startswith("all can never alarm: it is compared with 1.0000")
    assert (found["signals"]["all"]["can_alarm"], found["verdict"]) == (False, "healthy")
    assert run(["replay", path]) == 0
    assert f"Note: {note}" in capsys.readouterr().out
    usual = told(capsys, stream(tmp_path / "usual.csv"))
    assert (usual["notes"], usual["signals"]["all"]["can_alarm"]) == ([], True)


def test_changes_are_where_ones_begin_and_where_they_end() -> None:
    rows = replay_rows.LabelRows()
    marks = {3: True, 4: True, 6: False, 7: False, 8: True}
    for n in range(12):
        rows.add(replay_rows.LabelRow(n, float(n), float(n), False), marks.get(n))
    assert rows.points() == [(3, "worse"), (6, "better"), (8, "worse")]


def objects(path: Path, entries: list[dict[str, Any]]) -> str:
    return written(path, [json.dumps(entry) for entry in entries])


def test_errors_of_one_caller_alone_make_it_suspect_at_most(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw, entries = random.Random(6), list[dict[str, Any]]()
    for n in range(900):
        caller = "robot" if n % 4 else f"person-{n % 7}"
        entries.append({"right": draw.random() > (0.5 if caller == "robot" and n > 300 else 0.04), "caller": caller})
    path = objects(tmp_path / "callers.jsonl", entries)
    report = told(capsys, path, "--baseline", "0.05")
    assert [change["to"] for change in report["verdict_changes"]] == ["suspect"]
    assert "one caller or rater alone" in report["verdict_changes"][0]["because"]
    assert run(["replay", path, "--baseline", "0.05"]) == 0
    assert "one caller or rater alone" in capsys.readouterr().out


def test_rows_without_a_caller_beside_others_count_as_one_caller(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, entries = random.Random(6), list[dict[str, Any]]()
    for n in range(900):
        caller = None if n % 4 == 0 else f"person-{n % 7}"
        entries.append({"right": draw.random() > (0.9 if caller is None and n > 300 else 0.04), "caller": caller})
    report = told(capsys, objects(tmp_path / "callers.jsonl", entries), "--baseline", "0.05")
    assert "degraded" not in [change["to"] for change in report["verdict_changes"]]
    assert "rows without a caller, which count as one caller's: 225" in report["notes"]


def test_more_errors_within_the_first_day_make_it_suspect(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draw = random.Random(1)
    path = objects(tmp_path / "hour.jsonl", [{"right": draw.random() > 0.09} for _ in range(1_500)])
    report = told(capsys, path, "--baseline", "0.05", "--per-day", "2000")
    assert [change["to"] for change in report["verdict_changes"]] == ["suspect"]
    assert "first day" in report["verdict_changes"][0]["because"]


def test_picture_marks_the_verdict_and_is_written_as_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    svg = tmp_path / "course.svg"
    assert run(["replay", stream(tmp_path / "labels.csv"), "--gate-rows", "40/1000", "--svg", str(svg)]) == 0
    (verdicts,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("verdict ─")]
    assert verdicts.removeprefix("verdict ").strip("─") == "!" * verdicts.count("!")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")
    assert "degraded</title>" in svg.read_text("utf-8")
    assert "is there already" in refused(capsys, str(tmp_path / "labels.csv"), "--svg", str(svg))


def test_picture_that_can_not_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stream(tmp_path / "labels.csv", count=30)
    assert "nowhere" in refused(capsys, path, "--svg", str(tmp_path / "nowhere" / "course.svg"))


def test_benchmark_ends_with_the_report_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stream(tmp_path / "labels.csv")
    assert benchmark.main([path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["benchmark"], report["verdict"], report["holds"]) == ("replay", "degraded", True)
    assert benchmark.main([str(tmp_path / "nowhere.csv"), "--json"]) == 1
    (reason,) = json.loads(capsys.readouterr().out.splitlines()[-1])["reasons"]
    assert "can't be read" in reason
