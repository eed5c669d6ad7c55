"""`apprentice readiness`: whether a task or a file of examples is ready for fine-tuning, and why."""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.admin_client import Unusable, write_whole
from gateway.cli.command import Api, ClassField, Force, as_body, see_that_it_can_be_written, with_api
from gateway.cli.prompts import OwnColumns, as_lines, read_columns
from gateway.cli.readiness_page import ANSWERS, STATES, make_page
from gateway.cli.watch import make_waiting_columns

COLUMNS = (
    "prompt", "text", "expected", "id", "label", "class", "group", "parent", "at",
    "instruction", "input", "context", "output", "response", "system",
)  # fmt: skip
"""Columns of a CSV file that are read."""


@dataclass(frozen=True)
class CostOptions:
    """The costs, as options; what is not given is unknown."""

    requests_per_month: Annotated[float | None, typer.Option(min=0, help="Requests a month.")] = None
    general_usd: Annotated[float | None, typer.Option(min=0, help="Cost of one request at general, in US dollars.")] = (
        None
    )
    small_usd: Annotated[
        float | None, typer.Option(min=0, help="Cost of one request at the adapter, in US dollars.")
    ] = None
    deferred: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of requests that goes to general all the same.")
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
    """The answer, and a table of the rules."""
    api.out.say(f"{ANSWERS[answer['answer']]}. {answer['because']}", "")
    api.out.table(
        ("rule", "answer", "evidence"),
        [(rule["question"], STATES[rule["state"]], rule["evidence"]) for rule in answer["rules"]],
    )
    steps = [rule["next"] for rule in answer["rules"] if rule["next"]]
    if steps:
        api.out.say("", "What to do next:", *(f"- {step}" for step in steps))
