"""`apprentice readiness`: whether a task or a file of examples is ready for fine-tuning, and why; also as an HTML file
with the rules and the learning curve."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.admin_client import Unusable, write_whole
from gateway.cli.command import Api, ClassField, Force, as_body, see_that_it_can_be_written, with_api
from gateway.cli.prompts import OwnColumns, as_lines, read_columns
from gateway.cli.watch import make_waiting_columns
from monitoring.web_page import make_web_page, wrap_wide

COLUMNS = (
    "prompt", "text", "expected", "id", "label", "class", "group", "parent", "at",
    "instruction", "input", "context", "output", "response", "system",
)  # fmt: skip
"""Columns of a CSV file that the command reads."""
KINDS: Mapping[str, str] = {"for": "good", "against": "bad", "never": "bad", "unknown": "dim"}
ANSWERS: Mapping[str, str] = {"fine_tune": "Fine-tune", "not_yet": "Not yet", "never": "Never", "retire": "Retire"}
STATES: Mapping[str, str] = {"for": "yes", "against": "no", "never": "never", "unknown": "unknown"}


@dataclass(frozen=True)
class CostOptions:
    """The costs as options; a missing one is unknown."""

    requests_per_month: Annotated[float | None, typer.Option(min=0, help="Requests a month.")] = None
    general_usd: Annotated[float | None, typer.Option(min=0, help="Cost of one request at general, in US dollars.")] = (
        None
    )
    small_usd: Annotated[
        float | None, typer.Option(min=0, help="Cost of one request at the adapter, in US dollars.")
    ] = None
    deferred: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of requests that goes to general anyway.")
    ] = None
    tuning_usd: Annotated[float | None, typer.Option(min=0, help="Cost of one training, in US dollars.")] = None
    host_usd_per_month: Annotated[
        float | None, typer.Option(min=0, help="Cost of the adapter's replicas in a month, in US dollars.")
    ] = None
    labels_usd_per_month: Annotated[
        float | None, typer.Option(min=0, help="Cost of people who label in a month, in US dollars.")
    ] = None
    lifetime_months: Annotated[
        float | None, typer.Option(min=0.01, help="Months until the next training; unset: unknown.")
    ] = None


@with_api
def answer_readiness(
    api: Api,
    task_or_file: Annotated[
        str,
        typer.Argument(
            metavar="TASK_OR_FILE",
            help="A task, or a file of JSON lines with messages, text or prompt, and the expected answer; or .csv, "
            ".json.",
        ),
    ],
    costs: CostOptions,
    goal: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Share of right answers that the task needs, such as 0.9.")
    ] = None,
    class_field: ClassField = None,
    column: OwnColumns = None,
    task: Annotated[str | None, typer.Option(help="The task that the examples in the file are for.")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report to this file, as HTML.")] = None,
    force: Force = False,
) -> None:
    """Tell whether fine-tuning is worth it, and why.

    The answer is fine-tune, not yet or never, with the evidence of each rule.
    """
    see_that_it_can_be_written(force, html)
    query = as_body(costs, goal=goal, class_field=class_field)
    own_names = read_columns(column)
    is_file = Path(task_or_file).is_file() or Path(task_or_file).suffix in (".jsonl", ".json", ".csv")
    if not is_file and task is not None:
        raise Unusable(f"There is no file {task_or_file}.")
    query |= {"task": task} if is_file and task else {} if is_file else {"task": task_or_file}
    with ExitStack() as stack, api.out.progress(*make_waiting_columns()) as progress:
        lines = as_lines(stack, Path(task_or_file), COLUMNS, own_names) if is_file else Path(os.devnull)
        progress.add_task("Training a cheap model on parts of the rows" if is_file else "Reading the archive")
        file = stack.enter_context(lines.open("rb"))
        size_bytes = os.fstat(file.fileno()).st_size
        pieces = iter(lambda: file.read(1 << 16), b"")
        answer = api.send("/readiness", pieces, "application/x-ndjson", size_bytes, **query)
    if html is not None:
        with write_whole(html) as partial:
            partial.write_text(make_page(Path(task_or_file).name, answer), encoding="utf-8")
    if not api.out.print_json(answer):
        tell_readiness(api, answer)


def tell_readiness(api: Api, answer: dict[str, Any]) -> None:
    """Print the answer, and a table of the rules."""
    api.out.say(f"{ANSWERS[answer['answer']]}. {answer['because']}", "")
    api.out.table(
        ("rule", "answer", "evidence"),
        [(rule["question"], STATES[rule["state"]], rule["evidence"]) for rule in answer["rules"]],
    )
    steps = [rule["next"] for rule in answer["rules"] if rule["next"]]
    if steps:
        api.out.say("", "What to do next:", *(f"- {step}" for step in steps))


WIDTH, HEIGHT, MARGIN = 760, 320, 55


def make_page(name: str, report: Mapping[str, Any]) -> str:
    """The page of a report on the data of this name. All texts are escaped."""
    rows = "".join(
        f"<tr><td>{escape(rule['question'])}</td><td class='{KINDS[rule['state']]}'><b>"
        f"{STATES[rule['state']]}</b></td><td>{escape(rule['evidence'])} <i>{escape(rule['next'])}</i></td></tr>"
        for rule in report["rules"]
    )
    curve = (report.get("facts") or {}).get("curve")
    picture = "" if curve is None else f"<h2>Learning curve</h2>{wrap_wide(draw_curve(curve))}"
    table = wrap_wide(f"<table><tr><th>Rule</th><th>Answer</th><th>Evidence</th></tr>{rows}</table>")
    head = f"<h1>{ANSWERS[report['answer']]}</h1><p>{escape(name)}: {escape(report['because'])}</p>"
    return make_web_page(f"Readiness of {name}", f"{head}{table}{picture}")


def draw_curve(curve: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The learning curve as SVG: measured points, and the extrapolation with its 95% interval."""
    measured, beyond = curve["measured"], curve["extrapolated"]
    first, last = math.log(measured[0]["rows"]), math.log(beyond[-1]["rows"])
    least = min(measured[0]["right"], *(point["low"] for point in beyond))

    def place(rows: float, right: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (math.log(rows) - first) / (last - first)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (right - least) / max(1e-9, 1 - least)
        return f"{x:.1f},{y:.1f}"

    band = [place(point["rows"], point["high"]) for point in beyond]
    band += [place(point["rows"], point["low"]) for point in reversed(beyond)]
    line = " ".join(place(point["rows"], point["right"]) for point in (*measured, *beyond))
    dots = "".join(
        f'<circle cx="{x}" cy="{y}" r="4" fill="#1e88e5"><title>{point["rows"]:,} rows: {point["right"]:.1%}</title>'
        "</circle>"
        for point in measured
        for x, y in [place(point["rows"], point["right"]).split(",")]
    )
    ticks = "".join(
        f'<text x="{x}" y="{HEIGHT - MARGIN + 20}" text-anchor="middle">{point["rows"]:,}</text>'
        for point in (*measured[::2], *beyond[::2])
        for x, _ in [place(point["rows"], least).split(",")]
    )
    ends = "".join(
        f'<text x="5" y="{place(measured[0]["rows"], right).split(",")[1]}">{right:.0%}</text>' for right in (least, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><polygon points="{" ".join(band)}" fill="#1e88e5" opacity="0.25"/>'
        f'<polyline points="{line}" fill="none" stroke="#1e88e5"/>{dots}{ticks}{ends}'
        f'<text x="{MARGIN}" y="20">Right answers of a cheap model by training rows; band: 95% interval</text></svg>'
    )
