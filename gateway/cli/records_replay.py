"""`apprentice records replay`: what the monitor would have made of what is archived. No gateway is asked."""

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
from monitoring.quality.replay.recorded import Placed, Replaying, Turn
from monitoring.quality.signal_table import LABELLED
from monitoring.quality.signals.child_messages import MonitorStep, WatchedTask, WatchedVersion
from monitoring.quality.verdicts.quality import Judgement

if TYPE_CHECKING:
    from monitoring.archive.storage import ArchiveStorage

TOLD_EVERY = 50_000
TOLD_VERSIONS_MAX = 20
SET_AT = 1.0
"""When a baseline of the command line was set: before anything else."""


@dataclass(frozen=True, slots=True)
class ReplayedVersion:
    """Facts about a version that the archive does not know: what its labels are held against, and the version
    that led before it."""

    version: str | None = None
    rate: float | None = None
    gate_rows: str | None = None
    previous: str | None = None

    def baselines(self) -> dict[str, dict[str, Baseline]]:
        """The baselines of the version's signals. Raises SettingsError for one that can't be."""
        held = make_baseline(self.rate, self.gate_rows, SET_AT)
        if held is None:
            return {}
        return {str(self.version): {name: held for name, row in LABELLED.items() if row.measure == "share"}}


def begin_replay(settings: Settings, tasks: list[str], held: ReplayedVersion, look_seconds: float) -> Replaying:
    """A replay by the configuration of these tasks. Raises SettingsError."""
    unknown = [task for task in tasks if task not in settings.tasks]
    if unknown:
        raise SettingsError(f"The configuration has no task {', '.join(unknown)}.")
    task = None if held.version is None else held.version.partition("@")[0]
    if task is not None and task not in tasks:
        missing = f"The configuration has no task {task}." if task not in settings.tasks else "Name it with --task too."
        raise SettingsError(f"--version {held.version} is of {task}. {missing}")
    if held.version is None and held != ReplayedVersion():
        raise SettingsError("--baseline, --gate-rows and --previous are of one version: name it with --version.")
    versions = {}
    if held.version is not None and task is not None:
        versions = {held.version: WatchedVersion(task=task, state="active", previous=held.previous)}
    watched = {task: WatchedTask(plan=settings.plan(task)) for task in tasks}
    step = MonitorStep(tasks=watched, versions=versions, metrics=settings.judged_metrics())
    return Replaying(step, held.baselines(), look_seconds)


def replay_entries(replaying: Replaying, entries: Iterator[Placed]) -> tuple[list[Turn], dict[str, Judgement]]:
    """Every verdict that moved, and how the versions stand after the last entry. How far it is goes to stderr."""
    last = [0]

    def told() -> Iterator[Placed]:
        for number, one in enumerate(entries, 1):
            last[0] = one.milliseconds
            yield one
            if number % TOLD_EVERY == 0:
                typer.echo(f"Replayed {number:,} entries, up to {time_of(one.milliseconds / 1000)}", err=True)

    turns = list(replaying.run(told()))
    return turns, replaying.judged(last[0] / 1000)


def tell(
    out: Printer,
    replaying: Replaying,
    turns: list[Turn],
    judged: Mapping[str, Judgement],
    version: str | None,
    places: int,
) -> None:
    """Print what came of it: all of it as JSON, or tables."""
    turns = [one for one in turns if version in (None, one.version)]
    judged = {name: one for name, one in sorted(judged.items()) if version in (None, name)}
    verdicts = {name: replaying.health[name].verdict if name in replaying.health else "healthy" for name in judged}
    read = {
        "records": replaying.records,
        "feedback": replaying.feedback,
        "feedback_without_record": replaying.unmatched,
        "without_a_place": places,
    }
    whole = {
        "read": read,
        "verdict_changes": [turn_told(one) for one in turns],
        "versions": {name: {"verdict": verdicts[name], **msgspec.to_builtins(one)} for name, one in judged.items()},
    }
    if out.answer(whole):
        return
    print(f"Read {replaying.records} records and {replaying.feedback} judgements.")
    if replaying.unmatched:
        print(f"{replaying.unmatched} judgements are on records that are not there, and count for nothing.")
    if places:
        print(f"{places} entries are of an older gateway: their order is that of their times.")
    cells = [
        (time_of(one.at), one.version, f"{one.before} to {one.after}", one.requests, one.labels, one.because)
        for one in turns
    ]
    if cells:
        out.table(("when", "version", "verdict", "requests", "labels", "why"), cells)
    else:
        print("No verdict changed.")
    rows = [row for name, one in judged.items() for row in list_signals(name, verdicts[name], one)]
    out.table(("version", "verdict", "signal", "labels", "wrong", "held against", "e-value", "threshold", ""), rows)


def list_signals(name: str, verdict: str, judged: Judgement) -> Iterator[tuple[Any, ...]]:
    """The rows of a version: each labelled signal, and of the others those that alarm."""
    for one in judged.reports:
        if not one.labelled and not one.alarming:
            continue
        upper = one.baseline.get("upper")
        yield (
            name,
            verdict,
            one.signal + (f" of {one.of_class}" if one.of_class else ""),
            f"{one.observed:g}",
            "-" if one.wrong is None else f"{one.wrong:g}",
            f"{upper:.4f}" if isinstance(upper, float) else "-",
            f"{one.e_value:.4g}",
            f"{one.threshold:.4g}",
            "recovered" if one.recovered else "alarm" if one.alarming else "-",
        )


def turn_told(one: Turn) -> dict[str, Any]:
    """A verdict that moved, as it stands in the JSON."""
    return {
        "version": one.version,
        "time": time_of(one.at),
        "at": one.at,
        "from": one.before,
        "to": one.after,
        "because": one.because,
        "requests": one.requests,
        "labels": one.labels,
        "evidence": msgspec.to_builtins(one.reports),
    }


def time_of(at: float) -> str:
    """A time for people: ISO 8601 in UTC, to the second."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def run(
    out: Printer,
    settings: Settings,
    storage: ArchiveStorage,
    tasks: list[str],
    held: ReplayedVersion,
    bounds: tuple[float | None, float | None],
    look_seconds: float,
) -> None:
    """Replay the archive, and tell. Raises SettingsError, Nothing, and what DuckDB raises."""
    from monitoring.archive import entries as archive_entries

    replaying = begin_replay(settings, tasks, held, look_seconds)
    if held.version is not None:
        _see_that_it_is_there(held.version, archive_entries.read_versions(storage, tasks, *bounds))
    places = archive_entries.count_without_place(storage, tasks, *bounds)
    with closing(archive_entries.read_entries(storage, tasks, *bounds)) as entries:
        turns, judged = replay_entries(replaying, entries)
    tell(out, replaying, turns, judged, held.version, places)


def _see_that_it_is_there(version: str, versions: list[str]) -> None:
    """Raises SettingsError for a version of which nothing is archived: it would be told of as healthy."""
    if version in versions:
        return
    task = version.partition("@")[0]
    others = [one for one in versions if one.partition("@")[0] == task]
    there = f"{', '.join(others[:TOLD_VERSIONS_MAX])}{' and others' if len(others) > TOLD_VERSIONS_MAX else ''}"
    raise SettingsError(f"The archive has no record of {version}. Of {task} it has {there or 'none of any version'}.")
