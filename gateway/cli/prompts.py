"""Training prompts on this machine: send them to a gateway, and wait until a version's scope is fitted."""

from __future__ import annotations

import json
import re
import tempfile
import time
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.progress import TextColumn

from gateway.cli.admin_client import AdminClient, Unusable, explain_os_error, read_text
from gateway.cli.command import Api
from gateway.cli.tables import make_readable
from gateway.cli.watch import POLL_SECONDS, WatchFailed, explain_interrupt, make_columns, wait
from serving.adapters.adapter_folder import BACKGROUND_FILE, PROMPTS_FILE

Sources = list[tuple[str, Path]]
OwnColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="OURS=THEIRS",
        help="A row's column or field, as in text=body or expected=reply. May be repeated.",
    ),
]
JSON_ENDINGS = (".json", ".jsonl")
LOOKED_AT_BYTES = 1024
BETWEEN_ROWS = re.compile(r"[\s,]*")
PROMPT_COLUMNS = ("prompt", "text", "id", "label")
"""Columns of a CSV file of training prompts that the command reads."""


def read_columns(options: Sequence[str] | None) -> dict[str, str]:
    """The file's own column names, by ours. Raises Unusable."""
    columns = {}
    for option in options or ():
        ours, _, theirs = option.partition("=")
        if not ours or not theirs:
            raise Unusable(f"--column {option[:80]!r} is not OURS=THEIRS, as in text=body.")
        columns[ours] = theirs
    return columns


def sources_of(stack: ExitStack, prompts: Path | None, background: Path | None) -> Sources:
    """The files to send, by the gateway's names for them; JSON lists and CSV become lines of JSON. Raises Unusable.

    `stack` deletes the temporary files.
    """
    if prompts is None:
        if background is not None:
            raise Unusable("--background is of use beside --prompts alone: name the training prompts too.")
        return []
    named = [(PROMPTS_FILE, prompts), *([(BACKGROUND_FILE, background)] if background else [])]
    return [(name, as_lines(stack, path, PROMPT_COLUMNS)) for name, path in named]


def send_prompts(client: AdminClient, version: str, sources: Sources) -> dict[str, Any]:
    """Send a version's training prompts. Returns the gateway's answer. Raises CommandError."""
    with ExitStack() as stack:
        with explain_os_error("The prompts can't be read"):
            files = [(name, stack.enter_context(path.open("rb"))) for name, path in sources]
        return client.upload(f"/adapters/{quote(version, safe='@')}/prompts", {}, list(files), "PUT")


def until_fitted(api: Api, version: str, wait_seconds: float) -> dict[str, Any]:
    """The fitted models of a version, or their progress after `wait_seconds`. Raises CommandError."""
    deadline = time.monotonic() + wait_seconds
    with (
        explain_interrupt(api.out, f"The fitting for {version} goes on", f"adapters show {version}"),
        api.out.progress(*make_columns(), TextColumn("[dim]{task.fields[stage]}")) as progress,
    ):
        bar = progress.add_task("Fitting its scope", total=1, stage="")
        while True:
            shown: dict[str, Any] = api.get(f"/adapters/{quote(version, safe='@')}")["fitted"]
            scope = shown.get("scope") or {"state": "ready", "progress": 1.0, "stage": ""}
            progress.update(bar, completed=scope["progress"], stage=make_readable(scope["stage"]).replace("[", "("))
            left = deadline - time.monotonic()
            if scope["state"] in ("ready", "failed") or left <= 0:
                return shown
            wait(min(POLL_SECONDS, left))


def describe_fitted(version: str, shown: dict[str, Any], counts: dict[str, Any]) -> str:
    """A sentence about the fitted scope. Raises WatchFailed if the fitting failed."""
    scope = shown.get("scope") or {}
    if scope.get("state") == "failed":
        raise WatchFailed(f"The scope of {version} was not fitted: {scope['error']}")
    aside = [f"{counts[name]} {name}" for name in ("empty", "duplicates") if counts.get(name)]
    left = f" ({', '.join(aside)} aside)" if aside else ""
    if scope.get("state") != "ready":
        on = f"The scope of {version} is being fitted on {counts['used']} prompts{left}"
        return f"{on}: see `show {version}`.{_ids_told(counts)}"
    from gateway.features.fitting.prompts import is_barely_useful

    summary = (scope.get("model") or {}).get("summary") or {}
    auroc = summary.get("auroc")
    answer = "" if auroc is None else f", AUROC {auroc:.3f} against other traffic"
    weak = " Warning: it barely separates the prompts from other traffic." if is_barely_useful(auroc) else ""
    return f"The scope of {version} was fitted on {counts['used']} prompts{left}{answer}.{weak}{_ids_told(counts)}"


def _ids_told(counts: dict[str, Any]) -> str:
    same = counts.get("same_id")
    return f" Warning: {same} rows share an id: neighbours are named by it, so give each its own." if same else ""


def make_fitted_cells(shown: dict[str, Any]) -> list[tuple[str, str]]:
    """The fitted models of a version, a few words for each kind; empty without any."""
    cells = [("scope", _scope_cell(shown))]
    for kind, name, words in (("confidence", "calibration", _calibration_words), ("gain", "gain", _gain_words)):
        model = (shown.get(kind) or {}).get("model")
        unused = f"; not used: {shown[kind]['unused']}" if model and shown[kind].get("unused") else ""
        cells.append((name, words(model["summary"]) + unused if model else ""))
    return cells


def _calibration_words(summary: dict[str, Any]) -> str:
    read = f"the first {summary['tokens']} tokens" if summary.get("tokens") else "whole answers"
    least = summary.get("least_certified")
    target = "no wrong share certified" if least is None else f"certified for a wrong share of {least:g} and up"
    return f"{_rows(summary)}, {read}; {target}"


def _gain_words(summary: dict[str, Any]) -> str:
    gains = [summary.get("apgr"), summary.get("apgr_low")]
    figures = "" if None in gains else f" (APGR {gains[0]:.3f}, at least {gains[1]:.3f})"
    return f"{_rows(summary)}; {'' if summary.get('shown_to_help') else 'not '}shown to help{figures}"


def _rows(summary: dict[str, Any]) -> str:
    return f"on {summary['rows']} rows" if "rows" in summary else "on an unknown number of rows"


def _scope_cell(shown: dict[str, Any]) -> str:
    """The state of a version's scope in a few words; empty if none was fitted."""
    scope = shown.get("scope")
    if scope is None:
        return ""
    if scope["state"] == "ready":
        used = ((scope["model"] or {}).get("summary") or {}).get("used")
        return f"fitted on {used} prompts" if used else "fitted"
    return f"failed: {scope['error']}" if scope["state"] == "failed" else f"{scope['state']}, {scope['progress']:.0%}"


def as_lines(stack: ExitStack, path: Path, columns: Sequence[str], own_names: Mapping[str, str] | None = None) -> Path:
    """A file with a line of JSON each: `path` itself, or what is made of its CSV (of these columns) or JSON list.

    `own_names` are the file's names of columns or fields, by ours. What is made lasts as long as `stack`. A row is on
    the line where it began before, or on the next free one. Raises Unusable.
    """
    if not path.is_file():
        raise Unusable(f"There is no file {path}.")
    if not path.stat().st_size:
        raise Unusable(f"{path} is empty: give a row on each line.")
    if path.suffix.lower() == ".parquet":
        raise Unusable(f"{path} is Parquet, which only `datasets build` reads: write it as .csv or JSON lines.")
    is_table = path.suffix.lower() not in JSON_ENDINGS and not _begins_as_json(path)
    if path.suffix.lower() != ".json" and not is_table and not own_names:
        return path
    file = StringIO(read_text(path), newline="")
    try:
        if is_table:
            rows = list(_rows_of_csv(path, file, columns, own_names))
        else:
            objects = _rows_of_json(path, file) if path.suffix.lower() == ".json" else _rows_of_lines(file)
            rows = list(_rename_fields(path, objects, own_names) if own_names else objects)
    except (ValueError, RecursionError) as error:
        raise Unusable(f"{path} can't be read: {error}.") from error
    if not rows:
        raise Unusable(f"{path} has no rows: give one at least.")
    made = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "rows.jsonl"
    with made.open("w", encoding="utf-8") as lines:
        for before, row in rows:
            lines.write("\n" * before + json.dumps(row) + "\n")
    return made


def _begins_as_json(path: Path) -> bool:
    with explain_os_error(f"{path} can't be read"), path.open("rb") as file:
        return file.read(LOOKED_AT_BYTES).removeprefix(BOM_UTF8).lstrip()[:1] in (b"{", b"[")


def _rows_of_csv(
    path: Path, file: StringIO, columns: Sequence[str], own_names: Mapping[str, str] | None
) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows, each with the number of lines before it that are not its own."""
    from monitoring.datasets.row_files import read_table
    from monitoring.evaluation.dataset import DatasetError, describe_faults

    names = {name: (own_names or {}).get(name, name) for name in columns}
    faults, written = [], 0
    try:
        for at, row in read_table(file, path.name, partial(_see_that_columns_fit, path, names, own_names)):
            if isinstance(row, DatasetError):
                faults.append(str(row))
                continue
            yield at - 1 - written, {ours: row[theirs] for ours, theirs in names.items() if row.get(theirs)}
            written = at
    except DatasetError as error:
        raise Unusable(str(error)) from None
    if faults:
        raise Unusable(f"{path}: {describe_faults(faults)}")


def _see_that_columns_fit(
    path: Path, names: Mapping[str, str], own_names: Mapping[str, str] | None, head: list[str]
) -> None:
    """Raise Unusable if a column is missing, or a needed one is there twice."""
    if missing := [theirs for theirs in (own_names or {}).values() if theirs not in head]:
        raise Unusable(f"{path} has no column {missing[0]!r}: it has {', '.join(head)[:400]}.")
    if doubled := [theirs for theirs in names.values() if head.count(theirs) > 1]:
        raise Unusable(f"{path} has two columns {doubled[0]!r}: which one counts? Rename the other.")
    if not {names[name] for name in ("prompt", "text", "instruction") if name in names} & {*head}:
        option = "" if own_names is None else ", or say which one it is, as in --column text=NAME"
        fault = f"{path} has no column named prompt or text: it has {', '.join(head)[:400]}."
        raise Unusable(f"{fault} Name one so in its first line{option}.")


def _rows_of_json(path: Path, file: StringIO) -> Iterator[tuple[int, Any]]:
    """The rows, each with the number of lines before it that are not its own."""
    text = file.read()
    if not isinstance(json.loads(text), list):
        raise Unusable(f"{path} holds no list: give a list of objects, or a line of JSON each as {path.stem}.jsonl.")
    decoder, before, written = json.JSONDecoder(), 0, 0
    at, begin = 0, next(BETWEEN_ROWS.finditer(text, text.index("[") + 1)).end()
    while text[begin] != "]":
        before += text.count("\n", at, begin)
        row, at = decoder.raw_decode(text, begin)
        lines = max(0, before - written)
        yield lines, {"text": row} if isinstance(row, str) else row
        before, written = before + text.count("\n", begin, at), written + lines + 1
        begin = next(BETWEEN_ROWS.finditer(text, at)).end()


def _rows_of_lines(file: StringIO) -> Iterator[tuple[int, Any]]:
    """The rows, each with the number of empty lines before it. Raises ValueError with the line of what is not JSON."""
    before = 0
    for at, line in enumerate(file, 1):
        if not line.strip():
            before += 1
            continue
        try:
            yield before, json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {at}: {error}") from None
        before = 0


def _rename_fields(
    path: Path, rows: Iterator[tuple[int, Any]], own_names: Mapping[str, str]
) -> Iterator[tuple[int, Any]]:
    """Rows with our names for these fields. A named field replaces another one that has our name."""
    from monitoring.datasets.foreign_rows import open_item

    our_names = {theirs: ours for ours, theirs in own_names.items()}
    for number, (before, row) in enumerate(rows):
        fields = open_item(row) if isinstance(row, dict) else {}
        if not number and (missing := [theirs for theirs in our_names if theirs not in fields]):
            raise Unusable(f"{path} has no field {missing[0]!r} in its first row: it has {', '.join(fields)[:400]}.")
        kept = {name: value for name, value in fields.items() if name not in own_names and name not in our_names}
        yield before, kept | {ours: fields[theirs] for theirs, ours in our_names.items() if theirs in fields}
