"""`apprentice records replay`: the monitor's verdicts on archived records. No gateway is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import typer

from gateway.cli.replay import make_baseline
from gateway.cli.tables import Printer
from gateway.configuration.settings import Settings
from gateway.errors import SettingsError
from monitoring.quality.detectors.baselines import Baseline
from monitoring.quality.phrases import format_evidence
from monitoring.quality.replay.recorded import Placed, Replaying, Turn
from monitoring.quality.signal_table import LABELLED
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.verdicts.quality import Judgement

if TYPE_CHECKING:
    from monitoring.archive.storage import ArchiveStorage

TOLD_EVERY = 50_000
TOLD_VERSIONS_MAX = 20
SET_AT = 1.0
"""The time of a baseline from the command line: before all records."""


@dataclass(frozen=True, slots=True)
class ReplayedVersion:
    """Facts about a version that the archive does not know: the baseline of its labels, and the version that led
    before it."""

    version: str | None = None
    rate: float | None = None
    gate_rows: str | None = None
    previous: str | None = None

    def baselines(self) -> dict[str, dict[str, Baseline]]:
        """The baselines of the version's signals. Raises SettingsError for an impossible one."""
        baseline = make_baseline(self.rate, self.gate_rows, SET_AT)
        if baseline is None:
            return {}
        return {str(self.version): {name: baseline for name, row in LABELLED.items() if row.measure == "share"}}


def begin_replay(settings: Settings, tasks: list[str], replayed: ReplayedVersion, look_seconds: float) -> Replaying:
    """A replay with the configuration of these tasks. Raises SettingsError."""
    unknown = [task for task in tasks if task not in settings.tasks]
    if unknown:
        raise SettingsError(f"The configuration has no task {', '.join(unknown)}.")
    task = None if replayed.version is None else replayed.version.partition("@")[0]
    if task is not None and task not in tasks:
        missing = f"The configuration has no task {task}." if task not in settings.tasks else "Name it with --task too."
        raise SettingsError(f"--version {replayed.version} is of {task}. {missing}")
    if replayed.version is None and replayed != ReplayedVersion():
        raise SettingsError("--baseline, --gate-rows and --previous are of one version: name it with --version.")
    versions = {}
    if replayed.version is not None and task is not None:
        versions = {replayed.version: WatchedVersion(task=task, state="active", previous=replayed.previous)}
    watched = {task: WatchedTask(plan=settings.plan(task)) for task in tasks}
    step = MonitorStep(tasks=watched, versions=versions, metrics=settings.judged_metrics())
    return Replaying(step, replayed.baselines(), look_seconds)


def replay_entries(replaying: Replaying, entries: Iterator[Placed]) -> tuple[list[Turn], dict[str, Judgement]]:
    """All changes of verdicts, and the verdicts after the last entry. The progress goes to stderr."""
    last = [0]

    def with_progress() -> Iterator[Placed]:
        for number, entry in enumerate(entries, 1):
            last[0] = entry.milliseconds
            yield entry
            if number % TOLD_EVERY == 0:
                typer.echo(f"Replayed {number:,} entries, up to {time_of(entry.milliseconds / 1000)}", err=True)

    turns = list(replaying.run(with_progress()))
    return turns, replaying.judged(last[0] / 1000)


def tell(
    out: Printer,
    replaying: Replaying,
    turns: list[Turn],
    judged: Mapping[str, Judgement],
    version: str | None,
    places: int,
) -> None:
    """Print the result, as JSON or as tables."""
    turns = [turn for turn in turns if version in (None, turn.version)]
    judged = {name: each for name, each in sorted(judged.items()) if version in (None, name)}
    verdicts = {
        name: replaying.qualities[name].verdict if name in replaying.qualities else "healthy" for name in judged
    }
    read = {
        "records": replaying.records,
        "feedback": replaying.feedback,
        "feedback_without_record": replaying.unmatched,
        "without_a_place": places,
    }
    whole = {
        "read": read,
        "verdict_changes": [turn_told(turn) for turn in turns],
        "versions": {name: {"verdict": verdicts[name], **msgspec.to_builtins(each)} for name, each in judged.items()},
    }
    if out.print_json(whole):
        return
    print(f"Read {replaying.records} records and {replaying.feedback} judgements.")
    if replaying.unmatched:
        print(f"{replaying.unmatched} judgements are on records that are not there, and count for nothing.")
    if places:
        print(f"{places} entries are of an older gateway: their order is that of their times.")
    cells = [
        (time_of(turn.at), turn.version, f"{turn.before} to {turn.after}", turn.requests, turn.labels, turn.because)
        for turn in turns
    ]
    if cells:
        out.table(("when", "version", "verdict", "requests", "labels", "why"), cells)
    else:
        print("No verdict changed.")
    rows = [row for name, each in judged.items() for row in list_signals(name, verdicts[name], each)]
    out.table(("version", "verdict", "signal", "labels", "wrong", "compared with", "e-value", "threshold", ""), rows)


def list_signals(name: str, verdict: str, judged: Judgement) -> Iterator[tuple[Any, ...]]:
    """The rows of a version: all labelled signals, and the other signals that alarm."""
    for report in judged.reports:
        if not report.labelled and not report.alarming:
            continue
        upper = report.baseline.get("upper")
        yield (
            name,
            verdict,
            report.signal + (f" of {report.of_class}" if report.of_class else ""),
            f"{report.observed:g}",
            "-" if report.wrong is None else f"{report.wrong:g}",
            f"{upper:.4f}" if isinstance(upper, float) else "-",
            format_evidence(report.e_value),
            format_evidence(report.threshold),
            "recovered" if report.recovered else "alarm" if report.alarming else "-",
        )


def turn_told(turn: Turn) -> dict[str, Any]:
    """A change of a verdict, for JSON."""
    return {
        "version": turn.version,
        "time": time_of(turn.at),
        "at": turn.at,
        "from": turn.before,
        "to": turn.after,
        "because": turn.because,
        "requests": turn.requests,
        "labels": turn.labels,
        "evidence": msgspec.to_builtins(turn.reports),
    }


def time_of(at: float) -> str:
    """A time for people: ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def run(
    out: Printer,
    settings: Settings,
    storage: ArchiveStorage,
    tasks: list[str],
    replayed: ReplayedVersion,
    bounds: tuple[float | None, float | None],
    look_seconds: float,
) -> None:
    """Replay the archive, and print the result. Raises SettingsError, NothingArchived, DamagedFiles, and DuckDB's
    errors."""
    from monitoring.archive import entries as archive_entries
    from monitoring.archive.tables import ArchiveQuery, find_files, name_damaged

    replaying = begin_replay(settings, tasks, replayed, look_seconds)
    with (
        name_damaged(storage, "records", find_files(storage, ArchiveQuery("records", *bounds))),
        name_damaged(storage, "feedback", find_files(storage, ArchiveQuery("feedback", *bounds))),
    ):
        if replayed.version is not None:
            _see_that_it_is_there(replayed.version, archive_entries.read_versions(storage, tasks, *bounds))
        places = archive_entries.count_without_place(storage, tasks, *bounds)
        with closing(archive_entries.read_entries(storage, tasks, *bounds)) as entries:
            turns, judged = replay_entries(replaying, entries)
    tell(out, replaying, turns, judged, replayed.version, places)


def _see_that_it_is_there(version: str, versions: list[str]) -> None:
    """Raise SettingsError for a version without archived records, which would look healthy."""
    if version in versions:
        return
    task = version.partition("@")[0]
    others = [name for name in versions if name.partition("@")[0] == task]
    there = f"{', '.join(others[:TOLD_VERSIONS_MAX])}{' and others' if len(others) > TOLD_VERSIONS_MAX else ''}"
    raise SettingsError(f"The archive has no record of {version}. Of {task} it has {there or 'none of any version'}.")
