"""`apprentice replay`: what the monitor would say of a file of labels. No gateway is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Force, see_that_it_can_be_written
from gateway.cli.pictures import draw_course, make_svg
from gateway.cli.tables import Printer
from gateway.errors import SettingsError

if TYPE_CHECKING:
    from monitoring.quality.detectors.baselines import Baseline

ROWS_SHOWN_MAX = 30
GATE_ROWS = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
LABELS_MIN, FIRST_LABELS, FIRST_OF_CLASS = 30, 200, 100


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labels as CSV or JSON lines.")],
    baseline: Annotated[
        float | None, typer.Option(metavar="RATE", help="The healthy error rate, where it is known.")
    ] = None,
    gate_rows: Annotated[
        str | None, typer.Option(metavar="WRONG/OF", help="The rows of an evaluation, as 50/1000: their upper bound.")
    ] = None,
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=20, max=1_000_000, help="First labels that are the baseline, and all of the first day. Unset: 200."
        ),
    ] = None,
    labels: Annotated[
        float, typer.Option(min=1, max=1e12, help="Labels within which false alarms are bounded.")
    ] = 10_000.0,
    false_alarms: Annotated[
        float,
        typer.Option("--false-alarms", "--alpha", metavar="P", help="Probability of any false alarm within --labels."),
    ] = 0.05,
    labels_min: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Labels before which nothing alarms.")
    ] = LABELS_MIN,
    classes: Annotated[bool, typer.Option("--classes", help="A detector for each class too.")] = False,
    class_warm_up: Annotated[
        int, typer.Option(min=20, max=1_000_000, help="First labels of a class that are its baseline.")
    ] = FIRST_OF_CLASS,
    good: Annotated[Literal["0", "1"], typer.Option(help="The outcome that is right.")] = "0",
    sort: Annotated[bool, typer.Option("--sort", help="Put the rows in the order of their times.")] = False,
    per_day: Annotated[
        float, typer.Option(min=0.01, max=1e9, help="Labels a day, where the file has no times.")
    ] = 500.0,
    svg: Annotated[Path | None, typer.Option(metavar="OUT", help="Write the picture to this file too.")] = None,
    force: Force = False,
    json_only: Annotated[bool, typer.Option("--json", help="As JSON, and nothing else, on stdout.")] = False,
) -> None:
    """Replay a file of labels through the monitor: its verdicts, with time and reason.

    CSV with a head, or JSON lines. Columns: `right` (1, 0, true, false) or `outcome` (1 is wrong); optionally `time`,
    `caller`, `class`, `rater`, `asked` (time of the request), `change_point` (1 while the stream is known to be worse).
    Without `time` the labels are spread over the days.
    """
    from monitoring.quality.replay.report import ReplayTerms, replay_labels
    from monitoring.quality.replay.rows import LabelFileError, read_rows
    from monitoring.quality.replay.version import Claim

    out = Printer(json_only)
    try:
        see_that_it_can_be_written(force, svg)
        if warm_up is not None and (baseline, gate_rows) != (None, None):
            raise SettingsError("--warm-up: the first labels are no baseline beside --baseline or --gate-rows.")
        if not 0.0 < false_alarms < 1.0:
            raise SettingsError("--false-alarms: a probability between 0 and 1.")
        terms = ReplayTerms(
            baseline=make_baseline(baseline, gate_rows),
            warm_up=warm_up or FIRST_LABELS,
            class_warm_up=class_warm_up,
            has_classes=classes,
            claim=Claim(labels, false_alarms, labels_min),
        )
        report = {"file": file.name, **replay_labels(read_rows(file, good, sort, per_day, out.note), terms, out.note)}
        if svg is not None:
            svg.write_text(make_svg(report["course"], _find_level(report), report["from"], report["to"]), "utf-8")
    except (SettingsError, LabelFileError, Unusable) as error:
        _end(out, str(error))
    except OSError as error:
        _end(out, f"{error.filename}: {error.strerror}.")
    if not out.answer(report):
        _show(out, report)


def make_baseline(rate: float | None, gate_rows: str | None, at: float = 1.0) -> Baseline | None:
    """The baseline of --baseline or --gate-rows; None without either. Raises SettingsError for one that can't be."""
    from monitoring.quality.detectors import baselines
    from monitoring.quality.detectors.rising_errors import BASELINE_MIN

    if rate is not None and gate_rows is not None:
        raise SettingsError("--baseline and --gate-rows: one of them, not both.")
    if rate is not None:
        if not BASELINE_MIN <= rate <= 1 - BASELINE_MIN:
            raise SettingsError(f"--baseline: a rate from {BASELINE_MIN:g} to {1 - BASELINE_MIN:g}.")
        return baselines.declare_rate(rate, at, "replay", "--baseline")
    if gate_rows is None:
        return None
    counts = GATE_ROWS.fullmatch(gate_rows)
    if counts is None or int(counts[1]) >= int(counts[2]):
        raise SettingsError(f"--gate-rows: {gate_rows!r} is not as in 50/1000, fewer wrong rows than rows.")
    return baselines.measure("gate", int(counts[1]), int(counts[2]), at, "replay", "--gate-rows")


def _end(out: Printer, text: str) -> None:
    """End the command with one line of text. Raises Exit."""
    out.answer({"error": {"message": text, "type": None, "param": None, "code": None}})
    typer.echo(f"apprentice: {' '.join(text.split())}", err=True)
    raise typer.Exit(2)


# ---- the report -----------------------------------------------------------------------------------------


def _show(out: Printer, report: Mapping[str, Any]) -> None:
    """Print the report for people."""
    claim, figures = report["claim"], report["figures"]
    out.say(
        f"{report['file']}: {report['labels']} labels from {report['from']} to {report['to']}, "
        f"{report['wrong_share']:.2%} wrong (1 means {report['one_means']})"
    )
    out.say(f"Longest time between two labels: {_format_span(report['longest_gap_seconds'])}")
    for name, stream in report["streams"].items():
        out.say(f"{name}: {stream['labels']} labels, {_describe_baseline(stream['baseline'])}{_describe_time(stream)}")
    out.say(
        f"P(any false alarm in {claim['labels']:g} labels) is at most {claim['alpha']:g}, "
        f"over {claim['streams']} {'stream' if claim['streams'] == 1 else 'streams'}"
    )
    out.say("")
    for line in draw_course(report["course"], _find_level(report)):
        out.stdout.print(line, soft_wrap=True)
    out.say(f"        {report['from']} to {report['to']}; ─ healthy  ? suspect  ! degraded  ╌ baseline")
    out.say("")
    if report["verdict_changes"]:
        head = ("verdict, by", "label", "line", "time", "labels before", "since label", "wrong since", "log_e")
        out.table(head, _list_changes(report["verdict_changes"][:ROWS_SHOWN_MAX]))
        for change in report["verdict_changes"][:ROWS_SHOWN_MAX]:
            out.say(f"Label {change['label']}, {change['to']}: {change['because']}")
    else:
        out.say("No alarm.")
    _say_more(out, len(report["verdict_changes"]))
    if report["changes"]:
        out.say("")
        known = ("known change", "after label", "time", "verdict before", "found after labels", "hours")
        out.table(known, _list_known(report["changes"][:ROWS_SHOWN_MAX]))
        _say_more(out, len(report["changes"]))
        out.say(f"False alarms: {figures['false_alarms']}; false recoveries: {figures['false_recoveries']}")
    out.say(f"At the end: {report['verdict']}")
    for note in report["notes"]:
        out.say(f"Note: {note}")


def _list_changes(changes: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    for change in changes:
        for number, evidence in enumerate(change["evidence"] or [{}]):
            yield (
                f"{change['to'] if not number else '  and'}, {evidence.get('stream', 'time')}",
                *(change[name] for name in ("label", "line", "time", "labels_before")),
                *(evidence.get(name) for name in ("since_label", "wrong_share_since", "log_e")),
            )


def _list_known(changes: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    for change in changes:
        seconds = change["delay_seconds"]
        yield (
            f"for the {change['direction']}",
            *(change[name] for name in ("after_labels", "time", "verdict_before", "delay_labels")),
            None if seconds is None else seconds / 3600,
        )


def _say_more(out: Printer, count: int) -> None:
    if count > ROWS_SHOWN_MAX:
        out.say(f"... and {count - ROWS_SHOWN_MAX} more: --json has them all")


def _find_level(report: Mapping[str, Any]) -> float | None:
    """The baseline of all labels; None where there is none."""
    held = report["streams"]["all"]["baseline"]
    return None if held is None else float(held["upper"])


def _describe_time(stream: Mapping[str, Any]) -> str:
    """What its labels show of clusters and of the hour."""
    clusters = f"; about {stream['dispersion']:.1f} labels count as one" if stream["dispersion"] > 1.2 else ""
    return clusters + ("; errors follow the day" if stream["has_rhythm"] else "")


def _describe_baseline(baseline: Mapping[str, Any] | None) -> str:
    if baseline is None:
        return "too few for a baseline"
    if not baseline["of"]:
        return f"held against {baseline['upper']:.2%} wrong, as stated"
    source = "its first labels" if baseline["kind"] == "own" else "the evaluation"
    return (
        f"held against {baseline['upper']:.2%} wrong, bound of {source} ({baseline['wrong']:g} of {baseline['of']:g})"
    )


def _format_span(seconds: float) -> str:
    """A time in its greatest unit."""
    for unit, length in (("d", 86_400.0), ("h", 3_600.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
