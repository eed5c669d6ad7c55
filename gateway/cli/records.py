"""`apprentice records`: records of the archive, read from its files without a gateway. Nothing is changed.

Only `forget` calls a gateway: it erases texts of requests, and lists what was made of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Force, OfTask, see_that_it_can_be_written
from gateway.cli.tables import Printer, format_size
from gateway.errors import SettingsError

if TYPE_CHECKING:
    from monitoring.archive.storage import ArchiveStorage
    from monitoring.archive.tables import ArchiveQuery


from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from gateway.cli.admin_client import CommandError, Refused
from gateway.cli.command import Api, Yes, add_command, as_body, make_sure
from gateway.cli.watch import make_waiting_columns, wait

records = typer.Typer(
    help="Export, count and replay the archived records and feedback; forget texts.", no_args_is_help=True
)
AGO = re.compile(r"(\d{1,6})(m|h|d)")
UNIT_SECONDS = MappingProxyType({"m": 60, "h": 3600, "d": 86_400})


Dataset = Literal["records", "feedback"]
"""The datasets of an archive."""
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="From when on: 2026-03-01, 2026-03-01T12:00 (UTC), or an age: 30m, 36h, 7d."),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Before when; as --since.")]
Which = Annotated[Dataset, typer.Option(help="Records, or the feedback on them.")]
Config = Annotated[Path, typer.Option(help="The configuration, which names the archive's folder.")]
Folder = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The archive's folder, if not that of the configuration.")
]
JsonOnly = Annotated[bool, typer.Option("--json", help="As JSON, and nothing else, on stdout.")]
LOOK_SECONDS = 0.3
STILL_IN_FILE: Mapping[str, str] = {
    "forbidden": "Redis forbids this gateway to rewrite its append-only file: have it rewritten (BGREWRITEAOF).",
    "unfinished": "Redis has not yet rewritten its append-only file: the erased texts may be in it until then.",
}
COUNTED: Mapping[str, str] = {
    "texts": "kept texts",
    "reviews": "reviews",
    "feedback": "comments and demonstrations",
    "examples": "examples",
    "evaluated": "rows of evaluations",
    "trained": "rows of trainings",
}


@records.command()
def export(
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where to: FILE.parquet, FILE.csv or FILE.jsonl.")],
    since: Since = None,
    until: Until = None,
    task: OfTask = None,
    dataset: Which = "records",
    config: Config = Path("apprentice.yaml"),
    folder: Folder = None,
    force: Force = False,
    json_only: JsonOnly = False,
) -> None:
    """Write archived records, or feedback, to one file.

    Records that were made in the last minutes are not yet in the archive (records.archive_interval_seconds).
    """
    # duckdb is half as large as all the rest: only who reads the archive loads it.
    from monitoring.archive import tables as archive

    with _archive(config, folder, json_only) as storage:
        see_that_it_can_be_written(force, out)
        row_count = archive.export(storage, _make_query(since, until, task, dataset), out)
    size, word = out.stat().st_size, "rows" if row_count != 1 else "row"
    answer = {"file": str(out), "dataset": dataset, "rows": row_count, "size_bytes": size}
    if not Printer(json_only).print_json(answer):
        print(f"Wrote {out}: {row_count} {word}, {format_size(size)}.")


@records.command()
def count(
    since: Since = None,
    until: Until = None,
    task: OfTask = None,
    dataset: Which = "records",
    config: Config = Path("apprentice.yaml"),
    folder: Folder = None,
    json_only: JsonOnly = False,
) -> None:
    """Count archived records, or feedback, by day."""
    from monitoring.archive import tables as archive

    with _archive(config, folder, json_only) as storage:
        try:
            days = archive.count(storage, _make_query(since, until, task, dataset))
        except archive.NothingArchived:
            days = []
    out = Printer(json_only)
    rows = [asdict(day) for day in days]
    if not out.print_json({"dataset": dataset, "rows": sum(day.rows for day in days), "days": rows}):
        cells = [(day.day, day.rows, day.files, format_size(day.size_bytes)) for day in days]
        total = ("all", *(sum(getattr(day, name) for day in days) for name in ("rows", "files")))
        cells.append((*total, format_size(sum(day.size_bytes for day in days))))
        out.table(("day", dataset, "files", "size of files"), cells)


@records.command()
def replay(
    task: Annotated[list[str] | None, typer.Option(help="Of this task alone; may be given again. Else of all.")] = None,
    version: Annotated[str | None, typer.Option(help="Show this version alone, as returns@v3.")] = None,
    baseline: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="What the version's labels are compared with, where it is known."),
    ] = None,
    gate_rows: Annotated[
        str | None, typer.Option(metavar="WRONG/OF", help="The same from a gate's rows, as 50/1000: their upper bound.")
    ] = None,
    previous: Annotated[str | None, typer.Option(help="The version that led before it, for its baseline.")] = None,
    look_seconds: Annotated[
        float, typer.Option(min=0.001, help="How often a verdict may move, by the time of the records.")
    ] = 60.0,
    since: Since = None,
    until: Until = None,
    config: Config = Path("apprentice.yaml"),
    folder: Folder = None,
    json_only: JsonOnly = False,
) -> None:
    """Replay archived records and feedback through the monitor."""
    from gateway.cli import records_replay
    from gateway.configuration.settings import load_settings

    with _archive(config, folder, json_only) as storage:
        settings, (first, last) = load_settings(config), moments_of(since, until)
        replayed = records_replay.ReplayedVersion(version, baseline, gate_rows, previous)
        out, tasks = Printer(json_only), task or list(settings.tasks)
        records_replay.run(out, settings, storage, tasks, replayed, (first, last), look_seconds)


def moment_of(text: str, now: float) -> float:
    """A time in Unix seconds from a text: a day, a time (UTC without a zone), or an age.

    Raises SettingsError for anything else.
    """
    ago = AGO.fullmatch(text)
    try:
        if ago is not None:
            return datetime.fromtimestamp(now - int(ago[1]) * UNIT_SECONDS[ago[2]], UTC).timestamp()
        moment = datetime.fromisoformat(text)
        return (moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise SettingsError(f"{text!r} is not a time: write 2026-03-01, 2026-03-01T12:00, 30m, 36h or 7d.") from error


def moments_of(*texts: str | None) -> list[float | None]:
    """Times in Unix seconds, as `moment_of` reads them; None for None. Raises Unusable."""
    try:
        return [None if text is None else moment_of(text, time.time()) for text in texts]
    except SettingsError as error:
        raise Unusable(str(error)) from error


def _make_query(since: str | None, until: str | None, task: str | None, dataset: Dataset) -> ArchiveQuery:
    from monitoring.archive.tables import ArchiveQuery

    first, last = moments_of(since, until)
    return ArchiveQuery(dataset, first, last, task)


def _storage(config: Path, folder: Path | None) -> ArchiveStorage:
    """Raises SettingsError if a named folder does not exist. A configured one is made with the first file."""
    from gateway.configuration.settings import load_settings
    from monitoring.archive.storage import open_storage

    if folder is not None and not folder.is_dir():
        raise SettingsError(f"{folder}: there is no such folder.")
    if folder is not None:
        return open_storage(str(folder))
    settings = load_settings(config)
    return open_storage(str(settings.archive), settings.archive_bucket)


@contextmanager
def _archive(config: Path, folder: Path | None, json_only: bool = False) -> Iterator[ArchiveStorage]:
    """The archive. An error in the block becomes one line on stderr, with --json also on stdout, and exit code 2."""
    import duckdb

    from monitoring.archive.tables import DamagedFiles, NothingArchived
    from monitoring.helper_process import JobError

    try:
        storage = _storage(config, folder)
        with storage.explain_errors():
            yield storage
    except (NothingArchived, DamagedFiles, SettingsError, Unusable, JobError, ValueError) as error:
        _end(str(error), json_only)
    except OSError as error:
        _end(f"{error.filename}: {error.strerror}.", json_only)
    except duckdb.Error as error:
        again = " Files may have been merged meanwhile: run it again." * isinstance(error, duckdb.IOException)
        _end(f"The archive can't be read, or the file can't be written: {error}{again}", json_only)


def _end(text: str, json_only: bool) -> NoReturn:
    if json_only:
        Printer(json_only).print_json({"error": Unusable(text).content()})
    typer.echo(f"apprentice: {' '.join(text.split())}", err=True)
    raise typer.Exit(2)


class NotErased(CommandError):
    """An erasure that is not finished, or found nothing."""

    exit_code = 1


@add_command(records)
def forget(
    api: Api,
    request: Annotated[str | None, typer.Option(metavar="ID", help="The texts of this request.")] = None,
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of all requests about this subject (x-apprentice-subject).")
    ] = None,
    caller: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="Of all requests of this key (its public part), or of its subject."),
    ] = None,
    yes: Yes = False,
) -> None:
    """Erase texts of requests wherever they are kept.

    Records and labels stay. The data sets and versions that the texts went into are listed.
    """
    if (request is None) == (subject is None and caller is None):
        raise Unusable("Give --request, or --subject, or --caller; --caller may go with --subject.")
    make_sure("Erase these texts permanently?", yes)
    erasure = api.post("/erasures", as_body(request=request, subject=subject, caller=caller))
    look = f"see GET /admin/v1/erasures/{erasure['id']}."
    try:
        with api.out.progress(*make_waiting_columns()) as progress:
            progress.add_task("Erasing", total=None)
            while erasure["state"] == "waiting" and erasure["error"] is None:
                wait(LOOK_SECONDS)
                erasure = api.get(f"/erasures/{erasure['id']}")
    except KeyboardInterrupt:
        api.out.warn(f"The erasure goes on: {look}")
        raise
    is_known = erasure["state"] != "done" or _is_known(api, erasure, request)
    if not api.out.print_json(erasure) and erasure["state"] == "done" and is_known:
        _tell(api, erasure)
    if not is_known:
        raise NotErased("Nothing was erased: no request of that name is known, or it has expired. Is the name right?")
    if erasure["state"] != "done":
        raise NotErased(f"{erasure['error']} The gateway tries again: {look}")


def _is_known(api: Api, erasure: dict[str, Any], request: str | None) -> bool:
    """True if something was erased, or the request is known but has nothing to erase."""
    if any(erasure[name] for name in (*COUNTED, "datasets", "suites", "trainings")):
        return True
    if request is None:
        return bool(erasure["found"])
    try:
        api.get(f"{api.url}/v1/requests/{quote(request, safe='')}")
    except Refused as refused:
        if refused.code != "request_not_found":
            raise
        return False
    return True


def _tell(api: Api, erasure: dict[str, Any]) -> None:
    parts = [f"{erasure[name]} {words}" for name, words in COUNTED.items()]
    api.out.say(f"Erased of {erasure['found']} requests: {', '.join(parts)}.")
    for each in erasure["datasets"]:
        api.out.say(f"Data set {each['digest']}: {each['requests']} of the requests, {each['rows']} rows erased.")
    for each in erasure["suites"]:
        api.out.say(f"Suite {each['digest'][:12]} of {each['task']}: {each['rows']} rows erased.")
    for training in erasure["trainings"]:
        api.out.say(f"Training {training} had read such rows: it was stopped, or begins again. Run its command again.")
    for version in erasure["versions"]:
        api.out.say(f"Version {version} was trained on such a data set: its weights may hold what it learned.")
    for gateway in erasure.get("elsewhere", ()):
        api.out.note(f"Warning: {gateway} keeps its data sets in a folder of its own: look there for these texts.")
    if erasure["append_only_file"] in STILL_IN_FILE:
        api.out.note(f"Warning: {STILL_IN_FILE[erasure['append_only_file']]}")
