"""`apprentice replay`: the monitor's verdicts on a file of labels. Only `--like` calls a gateway."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.admin_client import Unusable, write_whole
from gateway.cli.command import Api, Force, UnaskedApi, see_that_it_can_be_written, with_api
from gateway.cli.pictures import draw_course, make_svg
from gateway.cli.tables import Printer
from gateway.errors import SettingsError
from monitoring.quality.phrases import format_evidence

if TYPE_CHECKING:
    from monitoring.quality.detectors.baselines import Baseline
    from monitoring.quality.replay.label_columns import ColumnChoice
    from monitoring.quality.replay.report import ReplayTerms

ROWS_SHOWN_MAX = 30
GATE_ROWS = re.compile(r"([0-9]{1,9})/([0-9]{1,9})")
FIRST_LABELS, FIRST_OF_CLASS = 200, 100
Unasked = partial(with_api, is_unasked=True)


@dataclass(frozen=True)
class TermOptions:
    """The options that `--like` takes from a task."""

    baseline: Annotated[
        float | None, typer.Option(metavar="RATE", help="The healthy error rate, where it is known.")
    ] = None
    gate_rows: Annotated[
        str | None, typer.Option(metavar="WRONG/OF", help="The rows of an evaluation, as 50/1000: their upper bound.")
    ] = None
    warm_up: Annotated[
        int | None,
        typer.Option(
            min=20, max=1_000_000, help="First labels that are the baseline, and all of the first day. Unset: 200."
        ),
    ] = None
    labels: Annotated[
        float | None, typer.Option(min=1, max=1e12, help="Labels within which false alarms are bounded. Unset: 10000.")
    ] = None
    false_alarms: Annotated[
        float | None,
        typer.Option(
            "--false-alarms", "--alpha", metavar="P", help="Probability of a false alarm in --labels. Unset: 0.05."
        ),
    ] = None
    labels_min: Annotated[
        int | None, typer.Option(min=0, max=1_000_000, help="Labels before which nothing alarms. Unset: 30.")
    ] = None


@dataclass(frozen=True)
class ColumnOptions:
    """The options that say what a file's columns are."""

    right: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column that says what is right: 1, true, yes, pass.")
    ] = None
    wrong: Annotated[str | None, typer.Option(metavar="COLUMN", help="The same, where 1, true, yes mean wrong.")] = None
    right_from: Annotated[
        float | None, typer.Option(metavar="SCORE", help="Scores from here on are right, others wrong.")
    ] = None
    time: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the label's time.")] = None
    caller: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of the caller.")] = None
    rater: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of who judged.")] = None
    kind: Annotated[
        str | None, typer.Option("--class", metavar="COLUMN", help="The column of the class; it implies --classes.")
    ] = None
    good: Annotated[
        Literal["0", "1"] | None, typer.Option(help="The outcome that is right. Unset: by the column's name.")
    ] = None
    day_first: Annotated[
        bool | None, typer.Option("--day-first/--month-first", help="03/01/2026 is in January, or in March.")
    ] = None


@Unasked
def replay(
    unasked: UnaskedApi,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Labels as CSV, JSON or Parquet.")],
    options: TermOptions,
    columns: ColumnOptions,
    like: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="As a running gateway judges the version that leads this task now."),
    ] = None,
    signal: Annotated[
        Literal["feedback", "reviewed"], typer.Option(help="With --like: the signal whose threshold and baseline hold.")
    ] = "feedback",
    classes: Annotated[bool, typer.Option("--classes", help="A detector for each class too.")] = False,
    class_warm_up: Annotated[
        int, typer.Option(min=20, max=1_000_000, help="First labels of a class that are its baseline.")
    ] = FIRST_OF_CLASS,
    sort: Annotated[bool, typer.Option("--sort", help="Put the rows in the order of their times.")] = False,
    per_day: Annotated[
        float, typer.Option(min=0.01, max=1e9, help="Labels a day, where the file has no times.")
    ] = 500.0,
    svg: Annotated[Path | None, typer.Option(metavar="OUT", help="Write the picture to this file too.")] = None,
    force: Force = False,
) -> None:
    """Replay a file of labels through the monitor: its verdicts, with time and reason.

    CSV with a head, JSON lines, a JSON list, or Parquet. Columns are found by their names: `right` (or `correct`, ...;
    `wrong`, `error`, `outcome`: 1 is wrong), `time` (or `timestamp`, `created_at`, ...), `caller`, `class`, `rater`,
    `asked` (time of the request), `change_point` (1 while it is known to be worse). The output says what was read.
    Without `time` the labels are spread over the days.
    """
    from monitoring.evaluation.dataset import DatasetError
    from monitoring.quality.replay.report import replay_labels
    from monitoring.quality.replay.rows import read_rows

    out = unasked.out
    try:
        see_that_it_can_be_written(force, svg)
        terms = _make_terms(options) if like is None else read_terms(unasked.open(), like, signal, options)
        terms = replace(terms, has_classes=classes or columns.kind is not None, class_warm_up=class_warm_up)
        rows = read_rows(file, _make_choice(columns), sort, per_day, out.note)
        report = {"file": file.name, **replay_labels(rows, terms, out.note)}
    except (SettingsError, DatasetError) as error:
        raise Unusable(str(error)) from error
    if svg is not None:
        with write_whole(svg) as partial:
            partial.write_text(make_svg(report["course"], _find_level(report), report["from"], report["to"]), "utf-8")
    if not out.print_json(report):
        _show(out, report)


def _make_choice(options: ColumnOptions) -> ColumnChoice:
    """The columns named by options. Raises SettingsError."""
    from monitoring.quality.replay.label_columns import ColumnChoice

    if options.right is not None and options.wrong is not None:
        raise SettingsError("--right and --wrong: one of them, not both.")
    return ColumnChoice(
        right=options.right,
        wrong=options.wrong,
        time=options.time,
        caller=options.caller,
        kind=options.kind,
        rater=options.rater,
        right_from=options.right_from,
        one_means=None if options.good is None else ("right" if options.good == "1" else "wrong"),
        is_day_first=options.day_first,
    )


def _make_terms(options: TermOptions) -> ReplayTerms:
    """The terms from the options. Raises SettingsError."""
    from monitoring.quality.replay.report import USUAL, ReplayTerms
    from monitoring.quality.replay.version import Claim

    baseline = make_baseline(options.baseline, options.gate_rows)
    if options.warm_up is not None and baseline is not None:
        raise SettingsError("--warm-up: the first labels are not a baseline beside --baseline or --gate-rows.")
    claim = Claim(
        options.labels or USUAL.labels,
        USUAL.alpha if options.false_alarms is None else options.false_alarms,
        USUAL.labels_min if options.labels_min is None else options.labels_min,
    )
    if not 0.0 < claim.alpha < 1.0:
        raise SettingsError("--false-alarms: a probability between 0 and 1.")
    return ReplayTerms(baseline=baseline, warm_up=options.warm_up or FIRST_LABELS, claim=claim)


def read_terms(api: Api, task: str, signal: str, options: TermOptions) -> ReplayTerms:
    """The terms of a task's signal at a running gateway; another baseline may be given beside it. Raises SettingsError
    and CommandError."""
    from monitoring.quality.detectors.baselines import Baseline
    from monitoring.quality.replay.report import ReplayTerms
    from monitoring.quality.replay.version import Claim
    from monitoring.quality.signals.labelled import ALPHA

    if (options.warm_up, options.labels, options.false_alarms, options.labels_min) != (None,) * 4:
        raise SettingsError("--like: it sets --warm-up, --labels, --false-alarms and --labels-min. Leave them out.")
    answer = api.get(f"/tasks/{quote(task, safe='')}/quality")
    version = answer["roles"]["active"]
    reports = (answer["judgements"].get(version or "") or {"reports": []})["reports"]
    live = next((each for each in reports if each["signal"] == signal and each["of_class"] is None), None)
    if live is None:
        raise SettingsError(f"--like: {version or task} has no {signal} yet, neither labels nor a baseline.")
    baseline = make_baseline(options.baseline, options.gate_rows)
    if baseline is None and live["baseline"].get("upper") is not None:
        fields = {name: live["baseline"][name] for name in Baseline.__struct_fields__}
        kind = "admin" if fields["kind"] == "own" else fields["kind"]  # its own would be learned again
        baseline = Baseline(**fields | {"kind": kind})
    return ReplayTerms(
        baseline=baseline,
        warm_up=int(live["baseline"].get("wanted") or FIRST_LABELS),
        claim=Claim(live["threshold"] * ALPHA, ALPHA, answer["plan"]["labels_min"]),
        like=f"{signal} of {version}",
    )


def make_baseline(rate: float | None, gate_rows: str | None, at: float = 1.0) -> Baseline | None:
    """The baseline of --baseline or --gate-rows; None without either. Raises SettingsError for an impossible one."""
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


# ---- the report -----------------------------------------------------------------------------------------


def _show(out: Printer, report: Mapping[str, Any]) -> None:
    """Print the report for people."""
    claim, figures = report["claim"], report["figures"]
    out.say(
        f"{report['file']}: {report['labels']} labels from {report['from']} to {report['to']}, "
        f"{report['wrong_share']:.2%} wrong (1 means {report['one_means']})"
    )
    out.say("Columns: " + ", ".join(f"{name} = {column}" for name, column in report["columns"].items()))
    out.say(f"Longest time between two labels: {_format_span(report['longest_gap_seconds'])}")
    for name, each in report["signals"].items():
        out.say(f"{name}: {each['labels']} labels, {_describe_baseline(each['baseline'])}{_describe_time(each)}")
    out.say(*_describe_claim(claim), "")
    for line in draw_course(report["course"], _find_level(report)):
        out.stdout.print(line, soft_wrap=True)
    out.say(f"        {report['from']} to {report['to']}; ─ healthy  ? suspect  ! degraded  ╌ baseline", "")
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
        change_head = ("known change", "after label", "time", "verdict before", "found after labels", "hours")
        out.table(change_head, _list_known(report["changes"][:ROWS_SHOWN_MAX]))
        _say_more(out, len(report["changes"]))
        out.say(f"False alarms: {figures['false_alarms']}; false recoveries: {figures['false_recoveries']}")
    out.say(f"At the end: {report['verdict']}", *(f"Note: {note}" for note in report["notes"]))


def _list_changes(changes: Sequence[Mapping[str, Any]]) -> Iterator[Sequence[Any]]:
    for change in changes:
        for number, evidence in enumerate(change["evidence"] or [{}]):
            yield (
                f"{change['to'] if not number else '  and'}, {evidence.get('signal', 'time')}",
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
    """The baseline of all labels; None without one."""
    baseline = report["signals"]["all"]["baseline"]
    return None if baseline is None else float(baseline["upper"])


def _describe_claim(claim: Mapping[str, Any]) -> Iterator[str]:
    """The settings, and the claim that follows from them."""
    like = "this command: --like TASK takes a task's" if claim["like"] is None else f"{claim['like']}, as it is now"
    threshold = format_evidence(claim["labels"] / claim["alpha"])
    yield f"Settings of {like}. Alarm at an e-value of {threshold}, from {claim['labels_min']} labels on"
    if claim["like"] is None:
        signals = f"{claim['signals']} {'signal' if claim['signals'] == 1 else 'signals'}"
        yield f"P(any false alarm in {claim['labels']:g} labels) is at most {claim['alpha']:g}, over {signals}"


def _describe_time(signal: Mapping[str, Any]) -> str:
    """Clusters and daily rhythm of the labels, in words."""
    clusters = f"; about {signal['dispersion']:.1f} labels count as one" if signal["dispersion"] > 1.2 else ""
    return clusters + ("; errors follow the day" if signal["has_rhythm"] else "")


def _describe_baseline(baseline: Mapping[str, Any] | None) -> str:
    if baseline is None:
        return "too few for a baseline"
    if not baseline["of"] or baseline["kind"] not in ("own", "gate"):
        return f"compared with {baseline['upper']:.2%} wrong, as stated"
    source = "its first labels" if baseline["kind"] == "own" else "the evaluation"
    return (
        f"compared with {baseline['upper']:.2%} wrong, bound of {source} ({baseline['wrong']:g} of {baseline['of']:g})"
    )


def _format_span(seconds: float) -> str:
    """A time in its greatest unit."""
    for unit, length in (("d", 86_400.0), ("h", 3_600.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
