"""Put a stream of labels through the monitor's detectors: `python -m benchmarks.replay FILE.csv [--json]`.

FILE has a head and a row for each label, in the order in which the labels came:

time           when the label came: Unix seconds, or ISO 8601 (UTC where it names no offset)
outcome        0 or 1, and 1 means that the answer was WRONG, unless `--good 1` says that it means right
change_point   optional, what is known of the stream: 1 from the first label of a change on, 0 before it and from its
               end on; or times of changes, the first for the worse, the next one for the better. `change` is the same
class, rater   optional. With `--classes` each class has a detector of its own too; of two raters and more none makes a
               verdict alone
asked          optional: when the request came. After a recovery, labels of requests from before it are no evidence

What all labels are held against: `--baseline` (a rate that is known), `--gate-rows WRONG/OF` (the upper 95% bound of a
gate's rows), or `--warm-up` (the upper 99% bound of the stream's own first labels, as the monitor does it; 200 if
nothing is said). A class is held against its own first 100. P(any false alarm within `--labels` labels) is at most
`--alpha` while the error keeps to that, over all classes together.

It goes on as the monitor does: after an alarm the version is degraded, until the reverse test finds that its error came
down; then its detectors begin anew. It is the monitor's code: `monitoring/quality/signals/label_signal.py` and
`responses.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import replay_rows
from benchmarks.harness import Unmeasurable, Verdict, last_line, rounded, say, table
from benchmarks.replay_rows import Point, Rows, told
from benchmarks.replay_version import Claim, Stream, Turn, Version
from monitoring.quality.detectors import baselines
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.detectors.rising_errors import BASELINE_MIN
from monitoring.quality.signals.watch import FIRST_FEEDBACK, FIRST_OF_CLASS
from monitoring.quality.verdicts.plan import Plan

LABELS_MIN = Plan().labels_min
TOLD_EVERY = 50_000
SHOWN_MAX = 30
PASSED_OVER = "the column class is passed over: --classes gives each class a detector of its own too"


# ---- the replay -----------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Read the file and put it through. Raises Unmeasurable with the line that can't be."""
    rows = replay_rows.read(asked.file, asked.good, asked.sort)
    claim = Claim(asked.labels, asked.alpha, asked.labels_min)
    named = rows.classes()
    classes = named if asked.classes else []
    warm_up = asked.warm_up or FIRST_FEEDBACK
    version = Version(classes, warm_up, asked.class_warm_up, baseline_of(asked, rows.times[0]), claim)
    turns = replayed(rows, version)
    points = rows.points()
    ends = [*(point.after for point in points[1:]), len(rows)]
    changes = [change_told(rows, point, end, turns) for point, end in zip(points, ends, strict=False)]
    wrong = sum(rows.wrong)
    streams = {name: stream_told(one, version.rests_on_one(one)) for name, one in version.streams.items()}
    return {
        "file": asked.file.name,
        "labels": len(rows),
        "wrong": wrong,
        "wrong_share": wrong / len(rows),
        "from": told(rows.times[0]),
        "to": told(rows.times[-1]),
        "longest_gap_seconds": max((b - a for a, b in pairwise(rows.times)), default=0.0),
        "one_means": "right" if asked.good == "1" else "wrong",
        "claim": {"labels": asked.labels, "alpha": asked.alpha, "streams": len(version.streams)},
        "verdict": version.verdict,
        "verdict_changes": [one.told() for one in turns],
        "streams": streams,
        "notes": [
            *(note for name, one in streams.items() for note in notes_on(name, one)),
            *([PASSED_OVER] if named and not classes else []),
        ],
        "changes": changes,
        "figures": figures_of(turns, points, changes),
    }


def replayed(rows: Rows, version: Version) -> list[Turn]:
    """Every verdict that moved, in order."""
    turns = []
    for label, row in enumerate(rows, 1):
        turn = version.observe(label, row)
        if turn is not None:
            turns.append(turn)
        if label % TOLD_EVERY == 0:
            say(f"Replayed {label:,} of {len(rows):,} labels: {version.verdict}, {len(turns)} verdict changes")
    return turns


def baseline_of(asked: argparse.Namespace, at: float) -> Baseline | None:
    """What was given; None where the stream's own first labels are the baseline."""
    if asked.baseline is not None:
        return baselines.state_rate(asked.baseline, at, "replay", "--baseline")
    if asked.gate_rows is not None:
        wrong, of = asked.gate_rows
        return baselines.measure("gate", wrong, of, at, "replay", "--gate-rows")
    return None


def change_told(rows: Rows, point: Point, end: int, turns: Sequence[Turn]) -> dict[str, Any]:
    """What became of a change: the first verdict after it, and before the next change, that says so."""
    before = next((one.after for one in reversed(turns) if one.label <= point.after), "healthy")
    wanted = "degraded" if point.direction == "worse" else "healthy"
    found = next((one for one in turns if one.after == wanted and point.after < one.label <= end), None)
    began = rows.times[min(point.after, len(rows) - 1)]
    return {
        "after_labels": point.after,
        "time": told(began),
        "direction": point.direction,
        "verdict_before": before,
        "verdict_label": found.label if found else None,
        "delay_labels": found.label - point.after if found else None,
        "delay_seconds": found.at - began if found else None,
    }


def figures_of(turns: Sequence[Turn], points: Sequence[Point], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The numbers that stand for the whole. A false alarm comes while the stream is known to be as it was, a false
    recovery while it is known to be worse; the delays are those of the first change in either direction."""
    figures: dict[str, Any] = {"verdict_changes": len(turns), "alarms": sum(one.after == "degraded" for one in turns)}
    wrongly = [one for one in turns if worse_at(points, one.label) != (one.after == "degraded")]
    for name, verdict in (("false_alarms", "degraded"), ("false_recoveries", "healthy")):
        figures[name] = sum(one.after == verdict for one in wrongly) if points else None
    for name, direction in (("delay", "worse"), ("recovery_delay", "better")):
        first = next((one for one in changes if one["direction"] == direction), None)
        figures[f"{name}_labels"] = first["delay_labels"] if first else None
        figures[f"{name}_seconds"] = first["delay_seconds"] if first else None
    return figures


def worse_at(points: Sequence[Point], label: int) -> bool:
    """Whether the stream is known to be worse at this label."""
    last = next((point for point in reversed(points) if point.after < label), None)
    return last is not None and last.direction == "worse"


def stream_told(stream: Stream, rests_on_one: bool) -> dict[str, Any]:
    """A stream with what it is held against, which is None where there were too few labels for a baseline."""
    track = stream.track
    held = track.baseline
    told = None if held is None else {"kind": held.kind, "wrong": held.wrong, "of": held.of, "upper": held.upper}
    return {
        "labels": track.labels,
        "wrong_share": track.wrong / track.labels if track.labels else None,
        "baseline": told,
        "can_alarm": None if held is None else held.upper < baselines.RATE_MAX,
        "rests_on_one": rests_on_one,
    }


def notes_on(name: str, stream: Mapping[str, Any]) -> list[str]:
    """What is to be known of a stream's verdict, and is easily missed."""
    if stream["rests_on_one"]:
        return [
            f"{name} would alarm, but rests on one rater's word, which moves no verdict alone: see whose labels they "
            "are, and whether they are right."
        ]
    if stream["can_alarm"] is not False:
        return []
    held, share = stream["baseline"]["upper"], stream["wrong_share"]
    return [
        f"{name} can never alarm: it is held against {held:.4f}, and no more than that can be wrong. {share:.0%} of "
        "its labels are wrong: is 1 the outcome that is right (--good 1)? Else say what is healthy: --baseline, "
        "--gate-rows."
    ]


# ---- the report -----------------------------------------------------------------------------------------


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    claim, figures, turns = report["claim"], report["figures"], report["verdict_changes"]
    lines = [
        f"{report['file']}: {report['labels']} labels from {report['from']} to {report['to']}, "
        f"{report['wrong_share']:.2%} wrong (1 means {report['one_means']})",
        f"Longest time between two labels: {span(report['longest_gap_seconds'])}",
        *(
            f"{name}: {one['labels']} labels, {baseline_line(one['baseline'])}"
            for name, one in report["streams"].items()
        ),
        f"P(any false alarm in {claim['labels']:g} labels) is at most {claim['alpha']:g}, "
        f"over {claim['streams']} {'stream' if claim['streams'] == 1 else 'streams'}",
        "",
    ]
    head = ("verdict, by", "label", "line", "time", "labels before", "since label", "wrong since", "log_e")
    cells = [
        [
            f"{one['to'] if not number else '  and'}, {because['stream']}",
            *(one[name] for name in ("label", "line", "time", "labels_before")),
            *(because[name] for name in ("since_label", "wrong_share_since", "log_e")),
        ]
        for one in turns[:SHOWN_MAX]
        for number, because in enumerate(one["evidence"])
    ]
    lines.append(table(head, cells) if cells else "No alarm.")
    if len(turns) > SHOWN_MAX:
        lines.append(f"... and {len(turns) - SHOWN_MAX} more: --json has them all")
    if report["changes"]:
        lines.extend(["", *changes_shown(report["changes"])])
        lines.append(f"False alarms: {figures['false_alarms']}; false recoveries: {figures['false_recoveries']}")
    lines.append(f"At the end: {report['verdict']}")
    lines.extend(f"Note: {note}" for note in report["notes"])
    return "\n".join(lines)


def changes_shown(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of the changes that are known."""
    head = ("known change", "after label", "time", "verdict before", "found after labels", "hours")
    rows = [
        [
            f"for the {one['direction']}",
            *(one[name] for name in ("after_labels", "time", "verdict_before", "delay_labels")),
            None if one["delay_seconds"] is None else one["delay_seconds"] / 3600,
        ]
        for one in changes[:SHOWN_MAX]
    ]
    more = len(changes) - SHOWN_MAX
    return [table(head, rows), *([f"... and {more} more: --json has them all"] if more > 0 else [])]


def span(seconds: float) -> str:
    """A time in its greatest unit."""
    for unit, length in (("d", 86_400.0), ("h", 3_600.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def baseline_line(baseline: Mapping[str, Any] | None) -> str:
    """A baseline in words."""
    if baseline is None:
        return "too few for a baseline"
    evidence = f" ({baseline['wrong']:g} wrong of {baseline['of']:g})" if baseline["of"] else ""
    return f"held against {baseline['upper']:.4f}, {baseline['kind']}{evidence}"


# ---- the options ----------------------------------------------------------------------------------------


def gate_rows(text: str) -> tuple[int, int]:
    """WRONG/OF. Raises ArgumentTypeError on anything else."""
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    wrong, of = (int(found[1]), int(found[2])) if found else (1, 0)
    if wrong >= of:
        raise argparse.ArgumentTypeError(f"{text!r} is not as in 50/1000: fewer wrong rows than rows")
    return wrong, of


def parser_of() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="the labels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--baseline", type=float, metavar="RATE", help="the healthy error rate, where it is known")
    against.add_argument("--gate-rows", type=gate_rows, metavar="WRONG/OF", help="a gate's rows, as in 50/1000")
    against.add_argument("--warm-up", type=int, metavar="N", help="first labels that are the baseline (default 200)")
    parser.add_argument("--labels", type=float, default=10_000, metavar="N", help="of the claim (default 10000)")
    parser.add_argument("--alpha", type=float, default=0.05, help="of the claim (default 0.05)")
    parser.add_argument(
        "--labels-min",
        type=int,
        default=LABELS_MIN,
        metavar="N",
        help=f"labels without which nothing alarms (default {LABELS_MIN})",
    )
    parser.add_argument("--classes", action="store_true", help="a detector for each class too")
    parser.add_argument(
        "--class-warm-up",
        type=int,
        default=FIRST_OF_CLASS,
        metavar="N",
        help=f"first labels of a class that are its baseline (default {FIRST_OF_CLASS})",
    )
    parser.add_argument("--good", choices=("0", "1"), default="0", help="the outcome that is right (default 0)")
    parser.add_argument("--sort", action="store_true", help="put rows in the order of their times")
    return parser


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program with what to do where they can't be."""
    parser = parser_of()
    asked = parser.parse_args(arguments)
    if asked.baseline is not None and not BASELINE_MIN <= asked.baseline <= 1 - BASELINE_MIN:
        parser.error(f"--baseline: a rate from {BASELINE_MIN:g} to {1 - BASELINE_MIN:g}")
    if not all(one is None or 20 <= one <= 1_000_000 for one in (asked.warm_up, asked.class_warm_up)):
        parser.error("--warm-up, --class-warm-up: from 20 labels to 1000000")
    if not (1 <= asked.labels <= 1e12 and 0 < asked.alpha < 1):
        parser.error("--labels, --alpha: at least 1 label, and an alpha between 0 and 1")
    if not 0 <= asked.labels_min <= 1_000_000:
        parser.error("--labels-min: from 0 labels to 1000000")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the replay. Returns 1 if the file can't be replayed."""
    asked = read(arguments)
    try:
        report = measure(asked)
    except Unmeasurable as error:
        say(f"benchmarks.replay: {error}")
        if asked.json:
            print(last_line("replay", {}, [], Verdict(False, (str(error),))))
        return 1
    print(last_line("replay", rounded(report), [], Verdict(True, ())) if asked.json else show(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
