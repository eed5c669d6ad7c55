"""Put a stream of labels through the monitor's detector: `python -m benchmarks.replay FILE.csv [--json]`.

FILE has a head and a row for each label, in the order in which the labels came:

time           Unix seconds, or ISO 8601 (UTC where it names no offset)
outcome        0 or 1, and 1 means that the answer was WRONG, unless `--good 1` says that it means right
change_point   optional, what is known of the stream: 1 from the first label of a change on (0 before), or its time
class, rater   optional. With `--classes` each class has a detector of its own too; of two raters and more none makes a
               verdict alone

What the labels are held against: `--baseline` (a rate that is known), `--gate-rows WRONG/OF` (the upper 95% bound of a
gate's rows), or `--warm-up` (the same of the stream's own first labels; 300 if nothing is said). P(any false alarm
within `--labels` labels) is at most `--alpha` while the error keeps to that, over all classes together.

After an alarm the version is degraded, until the reverse test finds that its error came down; then it begins anew. It
is the code of the monitor: `monitoring/degradation/streams/tracks.py` with `raters.py`, `slip.py` and `baselines.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks import replay_rows
from benchmarks.harness import Unmeasurable, Verdict, last_line, rounded, say, table
from benchmarks.replay_rows import Row, told
from monitoring.degradation.detectors import baselines, raters
from monitoring.degradation.detectors.baselines import Baseline
from monitoring.degradation.detectors.slip import BASELINE_MIN
from monitoring.degradation.streams import tracks
from monitoring.degradation.streams.tracks import Track, Vote

WARM_UP = 300
CALLER = "file"
ALL = "all"
SHOWN_MAX = 30


@dataclass(frozen=True, slots=True)
class Moment:
    """An alarm or a recovery: at which label of the file, when, since which label, and how it stood."""

    what: str
    stream: str
    label: int
    line: int
    at: float
    since_label: int
    log_e: float
    wrong_share: float

    def told(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {
            "stream": self.stream,
            "label": self.label,
            "line": self.line,
            "time": told(self.at),
            "since_label": self.since_label,
            "log_e": self.log_e,
            "wrong_share_since": self.wrong_share,
        }


class Stream:
    """One detector: over all labels, or over those of a class. `labels` are where its labels stand in the file."""

    def __init__(self, name: str, track: Track) -> None:
        self.name = name
        self.track = track
        self.degraded = False
        self._roll = raters.served(raters.start(0.5, track.salt), CALLER)
        self._labels: list[int] = []
        self._wrong: list[int] = [0]
        self._degraded_after = 0

    def observe(self, label: int, row: Row, labels: float, alpha: float) -> Moment | None:
        """Take a label; an alarm or a recovery if it makes one."""
        self._labels.append(label)
        self._wrong.append(self._wrong[-1] + row.wrong)
        vote = Vote(badness=float(row.wrong), caller=CALLER, rater=row.rater)
        self.track = tracks.labelled(self.track, vote, row.at, self._roll, self.degraded)
        guard = self.track.guard
        if self.degraded and tracks.recovered(self.track):
            assert self.track.reverse is not None
            since = self._degraded_after + raters.since(self.track.reverse)
            moment = self._moment("recovery", label, row, raters.log_e(self.track.reverse), since)
            self.degraded, self.track = False, tracks.restored(self.track)
            return moment
        if not self.degraded and guard is not None and raters.alarms(guard, labels, alpha):
            since = self.track.begun + raters.since(guard)
            moment = self._moment("alarm", label, row, raters.log_e(guard), since)
            self.degraded, self.track = True, tracks.degraded(self.track)
            self._degraded_after = len(self._labels)
            return moment
        return None

    def _moment(self, what: str, label: int, row: Row, log_e: float, since: int) -> Moment:
        count = len(self._labels)
        since = min(since, count - 1)
        share = (self._wrong[count] - self._wrong[since]) / (count - since)
        return Moment(what, self.name, label, row.line, row.at, self._labels[since], log_e, share)


# ---- the replay -----------------------------------------------------------------------------------------


def measure(asked: argparse.Namespace) -> dict[str, Any]:
    """Read the file and put it through. Raises Unmeasurable with the line that can't be."""
    rows = replay_rows.read(asked.file, asked.good, asked.sort)
    streams = streams_of(rows, asked)
    moments = list(replayed(rows, streams, asked.labels * len(streams), asked.alpha))
    alarms = [one for one in moments if one.what == "alarm"]
    of_all = [one for one in moments if one.stream == ALL]
    points = replay_rows.changes(rows)
    first = points[0] if points else len(rows)
    false = [one for one in alarms if one.label <= first]
    found = [change_told(rows, point, end, of_all) for point, end in pairwise([*points, len(rows)])]
    wrong = sum(row.wrong for row in rows)
    return {
        "file": asked.file.name,
        "labels": len(rows),
        "wrong": wrong,
        "wrong_share": wrong / len(rows),
        "from": told(rows[0].at),
        "to": told(rows[-1].at),
        "longest_gap_seconds": max((b.at - a.at for a, b in pairwise(rows)), default=0.0),
        "one_means": "right" if asked.good == "1" else "wrong",
        "claim": {"labels": asked.labels, "alpha": asked.alpha, "streams": len(streams)},
        "baselines": {one.name: baseline_told(one.track.baseline) for one in streams.values()},
        "verdicts": {one.name: verdict(one) for one in streams.values()},
        "alarms": [one.told() for one in alarms],
        "recoveries": [one.told() for one in moments if one.what == "recovery"],
        "changes": found,
        "figures": {
            "alarms": len(alarms),
            "false_alarms": len(false) if points else None,
            "delay_labels": found[0]["delay_labels"] if found else None,
            "delay_seconds": found[0]["delay_seconds"] if found else None,
        },
    }


def streams_of(rows: Sequence[Row], asked: argparse.Namespace) -> dict[str | None, Stream]:
    """The detector of all labels (under None), and with --classes one for each class."""
    kinds = sorted({row.kind for row in rows if row.kind}) if asked.classes else []
    given = baseline_of(asked, rows[0].at)
    found = {}
    for kind in (None, *kinds):
        track = tracks.start(asked.warm_up or WARM_UP, "replay")
        name = ALL if kind is None else f"class {kind}"
        found[kind] = Stream(name, track if given is None else tracks.held_against(track, given))
    return found


def baseline_of(asked: argparse.Namespace, at: float) -> Baseline | None:
    """What was given; None where the stream's own first labels are the baseline."""
    if asked.baseline is not None:
        return baselines.stated(asked.baseline, at, "replay", "--baseline")
    if asked.gate_rows is not None:
        wrong, of = asked.gate_rows
        return baselines.measured("gate", wrong, of, at, "replay", "--gate-rows")
    return None


def replayed(
    rows: Sequence[Row], streams: Mapping[str | None, Stream], labels: float, alpha: float
) -> Iterator[Moment]:
    """Every alarm and every recovery, in the order in which they come."""
    for label, row in enumerate(rows, 1):
        for stream in (streams[None], streams.get(row.kind) if row.kind else None):
            moment = stream.observe(label, row, labels, alpha) if stream else None
            if moment is not None:
                yield moment


def change_told(rows: Sequence[Row], point: int, end: int, moments: Sequence[Moment]) -> dict[str, Any]:
    """What became of a change: the first alarm after it and before the next one, and whether one stood already."""
    before = [one for one in moments if one.label <= point]
    after = next((one for one in moments if one.what == "alarm" and point < one.label <= end), None)
    began = rows[min(point, len(rows) - 1)]
    return {
        "after_labels": point,
        "time": told(began.at),
        "degraded_before": bool(before) and before[-1].what == "alarm",
        "alarm_label": after.label if after else None,
        "delay_labels": after.label - point if after else None,
        "delay_seconds": after.at - began.at if after else None,
    }


def baseline_told(baseline: Baseline | None) -> dict[str, Any] | None:
    """A baseline with its evidence; None where there were too few labels for one."""
    if baseline is None:
        return None
    return {"kind": baseline.kind, "wrong": baseline.wrong, "of": baseline.of, "upper": baseline.upper}


def verdict(stream: Stream) -> str:
    """How it stands at the end of the file."""
    if stream.track.guard is None:
        return "too few labels for a baseline"
    return "degraded" if stream.degraded else "healthy"


# ---- the report -----------------------------------------------------------------------------------------


def show(report: Mapping[str, Any]) -> str:
    """The tables for people."""
    claim, figures = report["claim"], report["figures"]
    lines = [
        f"{report['file']}: {report['labels']} labels from {report['from']} to {report['to']}, "
        f"{report['wrong_share']:.2%} wrong (1 means {report['one_means']})",
        *(f"{name}: {baseline_line(one)}, {report['verdicts'][name]}" for name, one in report["baselines"].items()),
        f"P(any false alarm in {claim['labels']:g} labels) is at most {claim['alpha']:g}, "
        f"over {claim['streams']} {'stream' if claim['streams'] == 1 else 'streams'}",
        "",
    ]
    moments = sorted(
        [
            *(("alarm", one) for one in report["alarms"]),
            *(("recovery", one) for one in report["recoveries"]),
        ],
        key=lambda pair: pair[1]["label"],
    )
    names = ("label", "line", "time", "since_label", "wrong_share_since", "log_e")
    rows = [[f"{what}, {one['stream']}", *(one[name] for name in names)] for what, one in moments[:SHOWN_MAX]]
    lines.append(table(["", *names], rows) if rows else "No alarm.")
    if len(moments) > SHOWN_MAX:
        lines.append(f"... and {len(moments) - SHOWN_MAX} more: --json has them all")
    lines.extend(change_line(one) for one in report["changes"])
    if figures["false_alarms"] is not None:
        lines.append(f"False alarms before the first change: {figures['false_alarms']}")
    return "\n".join(lines)


def baseline_line(baseline: Mapping[str, Any] | None) -> str:
    """A baseline in words."""
    if baseline is None:
        return "no baseline"
    evidence = f" ({baseline['wrong']:g} wrong of {baseline['of']:g})" if baseline["of"] else ""
    return f"held against {baseline['upper']:.4f}, {baseline['kind']}{evidence}"


def change_line(change: Mapping[str, Any]) -> str:
    """What became of a change, in words."""
    at = f"The change after label {change['after_labels']} ({change['time']})"
    if change["alarm_label"] is None:
        return f"{at}: {'degraded already' if change['degraded_before'] else 'no alarm'}"
    return f"{at}: alarm after {change['delay_labels']} labels, {change['delay_seconds'] / 3600:.1f} hours"


def gate_rows(text: str) -> tuple[int, int]:
    """WRONG/OF. Raises ArgumentTypeError on anything else."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    wrong, of = (int(found[1]), int(found[2])) if found else (1, 0)
    if wrong >= of:
        raise argparse.ArgumentTypeError(f"{text!r} is not as in 50/1000: fewer wrong rows than rows")
    return wrong, of


def read(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options. Ends the program with what to do where they can't be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, metavar="FILE.csv", help="the labels")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line, and no table")
    against = parser.add_mutually_exclusive_group()
    against.add_argument("--baseline", type=float, metavar="RATE", help="the healthy error rate, where it is known")
    against.add_argument("--gate-rows", type=gate_rows, metavar="WRONG/OF", help="a gate's rows, as in 50/1000")
    against.add_argument("--warm-up", type=int, metavar="N", help="first labels that are the baseline (default 300)")
    parser.add_argument("--labels", type=float, default=10_000, metavar="N", help="of the claim (default 10000)")
    parser.add_argument("--alpha", type=float, default=0.05, help="of the claim (default 0.05)")
    parser.add_argument("--classes", action="store_true", help="a detector for each class too")
    parser.add_argument("--good", choices=("0", "1"), default="0", help="the outcome that is right (default 0)")
    parser.add_argument("--sort", action="store_true", help="put rows in the order of their times")
    asked = parser.parse_args(arguments)
    if asked.baseline is not None and not BASELINE_MIN <= asked.baseline <= 1 - BASELINE_MIN:
        parser.error(f"--baseline: a rate from {BASELINE_MIN:g} to {1 - BASELINE_MIN:g}")
    if asked.warm_up is not None and not 20 <= asked.warm_up <= 1_000_000:
        parser.error("--warm-up: from 20 labels to 1000000")
    if not (1 <= asked.labels <= 1e12 and 0 < asked.alpha < 1):
        parser.error("--labels, --alpha: at least 1 label, and an alpha between 0 and 1")
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
