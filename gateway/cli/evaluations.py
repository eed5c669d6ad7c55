"""`apprentice evaluate` and `apprentice evaluations`: evaluation of a version on a data set, and its report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from gateway.cli.admin_client import Refused, Unusable, explain_os_error, read_text, write_whole
from gateway.cli.command import Api, ClassField, Force, add_command, see_that_it_can_be_written, with_api
from gateway.cli.evaluation_pages import make_html, make_markdown
from gateway.cli.evaluation_report import tell_report, tell_suites
from gateway.cli.prompts import OwnColumns, as_lines, read_columns
from gateway.cli.reviews import list_pair_lines
from gateway.cli.tables import Row, format_time, make_readable
from gateway.cli.watch import WatchFailed, explain_leaving, make_sending_columns, until_ended

PIECE_BYTES = 1 << 16
WRONG_ROWS_MAX = 200
WORDS: Mapping[str, str] = {"a": "a", "b": "b", "s": "same", "k": "skip"}
"""Words that a person may type to compare two answers."""
"""Most wrong rows that a page shows."""
PATH = "/evaluations"
EMPTY = "No evaluation is listed. Begin one: apprentice evaluate VERSION --data FILE"
COLUMNS = (
    *("prompt", "text", "expected", "id", "label", "class", "group", "parent", "paraphrase", "source", "language"),
)
"""Columns of a CSV file that the command reads."""

evaluations = typer.Typer(help="List, show and stop evaluations.", no_args_is_help=True)
EvaluationId = Annotated[
    str, typer.Argument(metavar="ID", help="An evaluation's id, as `evaluate` and `list` show it.")
]
Out = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write the report to this file: .html, .md, else JSON.")
]
RowsOut = Annotated[
    Path | None,
    typer.Option(
        "--rows-out",
        metavar="FILE",
        help="Write what is known of the adapter's rows to this file, as JSON lines: no texts, but logprobs and "
        "whether each was right. `python -m benchmarks.confidence --rows` reads it.",
    ),
]


@dataclass(frozen=True)
class EvaluationOptions:
    """The settings of an evaluation, and its arms beside the version."""

    arms: Annotated[
        str | None,
        typer.Option(
            help="Of adapter, general, leading (the version that leads the task) and best (the best that has led it), "
            "with commas between. Unset: all there are."
        ),
    ] = None
    against: Annotated[
        str | None, typer.Option(metavar="VERSION", help="Another version of the task, as an arm beside them.")
    ] = None
    metric: Annotated[
        str | None,
        typer.Option(
            help="When an answer is right: exact, normal (JSON by its value, white space apart), fields:a,b, "
            "overlap:0.5 (ROUGE-L with the expected text) or judge (the task's judging model says so). Unset: the "
            "fields that the contract requires, where JSON is expected, else normal."
        ),
    ] = None
    class_field: ClassField = None
    prompt: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Instructions for the arms base (the model without an adapter) and general, as text."
        ),
    ] = None
    repeats: Annotated[
        int | None, typer.Option(min=1, help="How often each row is asked, to see answers that flip. Unset: once.")
    ] = None
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit the version's confidence model from the rows, and keep it.")
    ] = False
    fit_gain: Annotated[
        bool, typer.Option("--fit-gain", help="Fit the version's learned routing from both arms, and keep it.")
    ] = False


@with_api
def evaluate(
    api: Api,
    version: Annotated[str, typer.Argument(metavar="VERSION", help="A version, or with --prompt a task.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="JSON lines: messages, text or prompt, and what is expected; or .csv, .json."
        ),
    ] = None,
    suites: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            "--suites",
            metavar="SUITE",
            help="In place of data: a suite of the task, by its kind or the beginning of its digest, or `all`. May be "
            "given several times.",
        ),
    ] = None,
    options: EvaluationOptions = EvaluationOptions(),
    column: OwnColumns = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Ask all rows again, where answers of this or an earlier evaluation are there."),
    ] = False,
    report_to: Out = None,
    rows_out: RowsOut = None,
    force: Force = False,
) -> None:
    """Evaluate a version on a data set, beside those that it may replace.

    It runs on the gateway, where callers leave room. Ctrl-C only ends the watching; the same command again goes on, or
    shows the report that there is.
    """
    see_that_it_can_be_written(force, report_to, rows_out)
    query = _query(options) | {"version": version, "again": "true" if again else None}
    if (data is None) == (not suites):
        raise Unusable("Give either --data or --suite: what is the version to be evaluated on?")
    if data is not None:
        with ExitStack() as stack:
            begun = [send_data(api, PATH, as_lines(stack, data, COLUMNS, read_columns(column)), query)]
    else:
        if rows_out is not None and (len(suites or ()) > 1 or "all" in (suites or ())):
            raise Unusable("--rows-out is for one suite: name that one.")
        begun = [api.post(PATH, {}, **query, suite=name) for name in _suites_named(api, version, suites or ())]
    ended = [_until_ended(api, answer) for answer in begun]
    if len(ended) == 1:
        _tell(api, ended[0], report_to, rows_out)
    else:
        _tell_all(api, ended, report_to)


def _query(options: EvaluationOptions) -> dict[str, str | None]:
    """The options as query parameters; None for those that are not given. Raises Unusable."""
    fields = {name: "true" if value is True else value for name, value in vars(options).items()}
    if options.prompt is not None:
        fields["prompt"] = read_text(options.prompt, "The prompt ")
    return {name: None if value in (None, False) else str(value) for name, value in fields.items()}


def _suites_named(api: Api, version: str, names: Sequence[str]) -> list[str]:
    """The named suites, each once; `all` stands for those of the version's task. Raises CommandError."""
    if "all" not in names:
        return list(dict.fromkeys(names))
    task = version.partition("@")[0]
    every = [suite["digest"] for suite in api.get("/suites", task=task)["suites"]]
    if not every:
        raise Unusable(f"{task} has no suite yet: `apprentice suites add {task} --data FILE` adds one.")
    return every


def _tell_all(api: Api, answers: Sequence[dict[str, Any]], report_to: Path | None) -> None:
    """Print the reports on several suites. Raises WatchFailed if one evaluation has no report."""
    answer = {"evaluations": list(answers)}
    if report_to is not None:
        _write(api, report_to, answer, answers)
    if not api.out.print_json(answer):
        for evaluation in answers:
            if evaluation["status"] == "done":
                tell_report(api.out, evaluation)
                api.out.say("")
        tell_suites(api.out, answers)
    failed = [evaluation["id"] for evaluation in answers if evaluation["status"] != "done"]
    if failed:
        raise WatchFailed(f"These ended without a report: {', '.join(failed)}. See `apprentice evaluations show ID`.")


@add_command(evaluations, "list")
def list_them(api: Api) -> None:
    """List the evaluations, the newest first."""
    columns = ("id", "version", "status", "answers", "arms", "metric", "begun")
    api.out.tell_list(api.get(PATH), "evaluations", columns, _row, EMPTY)


def _row(evaluation: dict[str, Any]) -> Row:
    arms = evaluation["arms"]
    done = f"{_done(evaluation)} of {evaluation['rows'] * len(arms)}"
    first, begun = (evaluation[name] for name in ("id", "version", "status")), format_time(evaluation["created_at"])
    return *first, done, ", ".join(arms), evaluation["metric"], begun


@add_command(evaluations)
def show(
    api: Api, evaluation: EvaluationId, report_to: Out = None, rows_out: RowsOut = None, force: Force = False
) -> None:
    """Show an evaluation: its report, or its progress."""
    see_that_it_can_be_written(force, report_to, rows_out)
    answer = api.get(f"{PATH}/{quote(evaluation, safe='')}")
    if answer["status"] == "running":
        api.out.tell(answer, f"{answer['id']} of {answer['version']} runs: {_so_far(answer)}")
        return
    _tell(api, answer, report_to, rows_out)


@add_command(evaluations)
def compare(
    api: Api,
    evaluation: EvaluationId,
    first: Annotated[str | None, typer.Option(metavar="ARM", help="An arm. Unset: the first.")] = None,
    second: Annotated[str | None, typer.Option(metavar="ARM", help="The other one. Unset: the second.")] = None,
) -> None:
    """Judge pairs of answers side by side, blind. Texts of the task have to be kept."""
    path = f"{api.url}/v1/evaluations/{quote(evaluation, safe='')}/pair"
    judged = 0
    while True:
        try:
            pair = api.get(path, first=first, second=second)
        except Refused as error:
            if error.code != "no_review" or not judged:
                raise
            api.out.note("Nothing is left to compare: thank you.")
            return
        if api.out.print_json(pair):
            return
        api.out.say(*list_pair_lines(pair))
        word = ""
        while word not in (*WORDS, "q"):
            try:
                word = typer.prompt("Better: a, b, s (same), k (skip) or q (quit)", err=True).strip().lower()
            except typer.Abort:  # Ctrl-C, or the end of the input
                word = "q"
        if word == "q":
            return
        better = {"number": pair["number"], "better": WORDS[word]}
        api.post(path, better, first=first, second=second)
        judged += 1


@add_command(evaluations)
def stop(api: Api, evaluation: EvaluationId) -> None:
    """Stop an evaluation; `evaluate` continues it. One that does not run is forgotten, with its report."""
    answer = api.delete(f"{PATH}/{quote(evaluation, safe='')}")
    api.out.tell(answer, f"{answer['id']} is {answer['status']}.")


def send_data(
    api: Api, path: str, data: Path, query: Mapping[str, str | None], kind: str = "application/x-ndjson"
) -> dict[str, Any]:
    """Send a file of this media type with a progress bar. Returns the gateway's answer. Raises CommandError."""
    with (
        explain_os_error(f"The data {data} can't be read"),
        data.open("rb") as file,
        api.out.progress(*make_sending_columns()) as progress,
    ):
        size_bytes = os.fstat(file.fileno()).st_size
        bar = progress.add_task("Sending", total=size_bytes)

        def pieces() -> Iterator[bytes]:
            while piece := file.read(PIECE_BYTES):
                yield piece
                progress.update(bar, advance=len(piece))

        return api.send(path, pieces(), kind, size_bytes, **query)


def _until_ended(api: Api, answer: dict[str, Any]) -> dict[str, Any]:
    """Wait for the evaluation's end and return it; show each arm's progress meanwhile. Raises CommandError."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[right]}"),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(), TextColumn("[dim]{task.fields[hint]}"),
    )  # fmt: skip
    began = time.monotonic()
    first = {arm: counts["done"] for arm, counts in answer["progress"].items()}
    with explain_leaving(api.out, "evaluation", answer["id"]), api.out.progress(*columns) as progress:
        bars = {
            arm: progress.add_task(arm, total=answer["rows"], completed=first[arm], right="", rate="", hint="")
            for arm in answer["arms"]
        }

        def show(now: dict[str, Any]) -> None:
            seconds = max(0.001, time.monotonic() - began)
            hint = f"waits: {now['waits_for']}" if now["waits_for"] else ""
            hint = "the report is being made" if _done(now) == now["rows"] * len(now["arms"]) else hint
            for arm, counts in now["progress"].items():
                rate = f"{(counts['done'] - first.get(arm, 0)) / seconds:.1f}/s"
                text = make_readable(hint).replace("[", "(")
                progress.update(bars[arm], completed=counts["done"], right=_right(counts), rate=rate, hint=text)

        return until_ended(api, answer, PATH, show, _so_far)


def _tell(api: Api, answer: dict[str, Any], report_to: Path | None, rows_out: Path | None) -> None:
    """Print the report, and write the wanted files. Raises WatchFailed if there is no report."""
    if answer["status"] != "done":
        text = f"The evaluation {answer['id']} of {answer['version']} is {answer['status']}. {answer['note']}"
        raise WatchFailed(text.strip())
    if report_to is not None:
        _write(api, report_to, answer, [answer])
    if rows_out is not None:
        with (
            explain_os_error(f"{rows_out} can't be written"),
            write_whole(rows_out) as partial,
            partial.open("w", encoding="utf-8") as file,
        ):
            file.writelines(json.dumps(row) + "\n" for row in _rows(api, answer))
    if not api.out.print_json(answer):
        tell_report(api.out, answer)


def _write(api: Api, path: Path, answer: dict[str, Any], answers: Sequence[dict[str, Any]]) -> None:
    """Write the report in the form that the file's name ends with. Raises CommandError."""
    texts = {each["id"]: _wrong_rows(api, each["id"]) for each in answers}
    if path.suffix in (".html", ".md"):
        text = (make_html if path.suffix == ".html" else make_markdown)(answers, texts)
    else:
        whole = [each | ({"wrong_rows": texts[each["id"]]} if texts[each["id"]] else {}) for each in answers]
        text = json.dumps({"evaluations": whole} if "evaluations" in answer else whole[0], indent=2, ensure_ascii=False)
        text += "\n"
    with explain_os_error(f"{path} can't be written"), write_whole(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="replace")


def _wrong_rows(api: Api, evaluation: str) -> list[dict[str, Any]]:
    """The first rows that an arm answered wrong and whose texts are kept. Raises CommandError."""
    return list(islice(_read_pages(api, f"{PATH}/{evaluation}/texts", wrong="true"), WRONG_ROWS_MAX))


def _read_pages(api: Api, path: str, **query: str) -> Iterator[dict[str, Any]]:
    """All rows at a path, page by page. Raises CommandError."""
    first: int | None = 0
    while first is not None:
        page = api.get(path, first=str(first), **query)
        yield from page["rows"]
        first = page["next_first"]


def _rows(api: Api, answer: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The adapter's rows in the form that the confidence benchmark reads, without failed ones."""
    for row in _read_pages(api, f"{PATH}/{answer['id']}/rows"):
        adapter, general = row["arms"].get("adapter"), row["arms"].get("general")
        if adapter is None or adapter["outcome"] == "failed":
            continue
        exported = {
            "id": row["id"],
            "logprobs": adapter.get("logprobs", []),
            "group": str(adapter["group"]),
            "scope": row["scope"],
            "right": adapter["right"],
            **{name: adapter.get(name) for name in ("sureness", "contract_kept")},
        }
        yield exported | ({"general_right": general["right"]} if general is not None else {})


def _done(answer: dict[str, Any]) -> int:
    return sum(counts["done"] for counts in answer["progress"].values())


def _right(counts: dict[str, Any]) -> str:
    if not counts["done"]:
        return ""
    cost = f", ${counts['cost_usd']:.4g}" if counts["cost_usd"] else ""
    return f"{100 * counts['right'] / counts['done']:.1f} % right{cost}"


def _so_far(answer: dict[str, Any]) -> str:
    """The progress, in words."""
    parts = [
        f"{arm} {counts['done']} of {answer['rows']}" + (f" ({_right(counts)})" if counts["done"] else "")
        for arm, counts in answer["progress"].items()
    ]
    return ", ".join(parts) + (f"; it waits: {answer['waits_for']}." if answer["waits_for"] else ".")
