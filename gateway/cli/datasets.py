"""`apprentice datasets`: data sets of kept texts, labels and files, to train and to evaluate with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer

from gateway.cli.command import (
    Api,
    ClassField,
    Force,
    OfTask,
    TaskName,
    Yes,
    add_command,
    as_body,
    make_sure,
    see_that_it_can_be_written,
)
from gateway.cli.evaluations import send_data
from gateway.cli.option_names import name_options
from gateway.cli.prompts import OwnColumns, read_columns
from gateway.cli.records import moments_of
from gateway.cli.tables import Printer, Row, format_age, format_time
from gateway.cli.watch import WatchFailed, explain_interrupt, follow_work

PATH = "/datasets"
EMPTY = "No data set is listed. Build one: apprentice datasets build TASK --file FILE"
ANY_KIND = "application/octet-stream"
datasets = typer.Typer(help="Build, list, show and export data sets.", no_args_is_help=True)
Digest = Annotated[
    str, typer.Argument(metavar="DIGEST", help="A data set's digest, or its first 8 digits, as `list` shows it.")
]


@add_command(datasets)
def build(
    api: Api,
    task: TaskName,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--file",
            "-f",
            metavar="FILE",
            help="Rows: .jsonl of OpenAI (SFT, DPO), of TensorZero or ours, .json, .csv, .parquet. May be repeated.",
        ),
    ] = None,
    since_time: Annotated[
        str | None,
        typer.Option(
            "--since", metavar="TIME", help="Also requests from then on, as in 2026-11-01 or 7d, of texts kept."
        ),
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Requests before then. Unset: now.")] = None,
    column: OwnColumns = None,
    heldout_share: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Share of the groups that is held out (0.2).")
    ] = None,
    class_ratio_max: Annotated[
        float | None,
        typer.Option(min=1, help="Training rows of a class for each of the median class, at most. Unset: all."),
    ] = None,
    class_field: ClassField = None,
    leave_out_faults: Annotated[
        bool, typer.Option("--leave-out-faults", help="Leave out rows that can't be read, instead of ending.")
    ] = False,
) -> None:
    """Build a data set from requests and files. Its digest names it."""
    columns, (first, last) = read_columns(column), moments_of(since_time, until)
    sent = [
        {"digest": send_data(api, f"{PATH}/files", path, {}, ANY_KIND)["digest"], "name": path.name, "columns": columns}
        for path in files or ()
    ]
    body = as_body(task=task, files=sent, since=first, until=last, class_field=class_field)
    body |= as_body(heldout_share=heldout_share, class_ratio_max=class_ratio_max, leave_out_faults=leave_out_faults)
    begun = api.post(PATH, body)
    with explain_interrupt(api.out, "The data set goes on being built", "datasets list"):
        answer = follow_work(api, begun, f"{PATH}/builds", "Building")
    if answer["state"] == "failed":
        for fault in answer["faults"]:
            api.out.note(fault)
        raise WatchFailed(name_options(answer["error"], None, {"leave_out_faults": "--leave-out-faults"}))
    _tell(api.out, api.get(f"{PATH}/{answer['digest']}"))


@add_command(datasets, "list")
def list_datasets(api: Api, task: OfTask = None) -> None:
    """List the data sets, the newest first."""
    columns = ("digest", "task", "train", "held out", "left out", "classes", "built")
    api.out.tell_list(api.get(PATH, task=task), "datasets", columns, _row, EMPTY)


@add_command(datasets)
def show(
    api: Api,
    digest: Digest,
    page: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the card to this file as a page with plots.")
    ] = None,
    force: Force = False,
) -> None:
    """Show a data set's card."""
    see_that_it_can_be_written(force, page)
    card = api.get(f"{PATH}/{quote(digest, safe='')}")
    if page is not None:
        api.save(f"{PATH}/{card['digest']}/card.html", page)
        api.out.note(f"Wrote {page}.")
    _tell(api.out, card)


@add_command(datasets)
def export(
    api: Api,
    digest: Digest,
    target: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to. Unset: PART.jsonl or .parquet, here.")
    ] = None,
    part: Annotated[Literal["train", "heldout"], typer.Option(help="The training or the held-out rows.")] = "train",
    form: Annotated[
        Literal["sft", "dpo", "parquet"],
        typer.Option("--format", help="OpenAI's fine-tuning or preference JSONL, or Parquet for Hugging Face."),
    ] = "sft",
    force: Force = False,
) -> None:
    """Write a part of a data set in a form for others."""
    path = target or Path(f"{part}.{'parquet' if form == 'parquet' else 'jsonl'}")
    see_that_it_can_be_written(force, path)
    lines = api.save(f"{PATH}/{quote(digest, safe='')}/export?part={part}&format={form}", path)
    text = f"Wrote {path}."
    if form == "dpo":
        text = f"Wrote {path}: {lines} rows with a worse answer beside the right one."
    api.out.tell({"file": str(path)}, text)


@add_command(datasets)
def delete(api: Api, digest: Digest, yes: Yes = False) -> None:
    """Delete a data set with its rows. Versions that were trained on it stay."""
    card = api.get(f"{PATH}/{quote(digest, safe='')}")
    make_sure(f"Delete the data set {card['digest'][:12]} of {card['task']}?", yes)
    api.out.tell(api.delete(f"{PATH}/{card['digest']}"), f"{card['digest'][:12]} is deleted.")


def _tell(out: Printer, card: dict[str, Any]) -> None:
    """Print a data set's card in words."""
    if out.print_json(card):
        return
    from monitoring.datasets.card_page import list_warnings

    rows, left_out = card["rows"], card["left_out"]
    reasons = ", ".join(f"{count} {_plain(name)}" for name, count in left_out.items())
    origins = card["origins"]["train"]
    out.pairs(
        [
            ("digest", card["digest"]),
            ("task", card["task"]),
            ("training rows", rows["train"]),
            ("held-out rows", rows["heldout"]),
            ("left out", f"{rows['left_out']} ({reasons})" if reasons else rows["left_out"]),
            ("origins", ", ".join(f"{count} {name}" for name, count in origins.items() if count)),
            ("kept texts", ", ".join(f"{count} {_plain(name)}" for name, count in card["kept_texts"].items())),
            ("near, unlike answers", card["contrasts"]["pairs"] or None),
            ("built", format_time(card["built_at"])),
        ]
    )
    out.say(*card["coverage"]["words"], *card["synthetic"]["words"])
    train, heldout = card["classes"]["train"], card["classes"]["heldout"]
    names = [*(train | heldout)]
    if names != [""]:
        out.say("")
        cells = ((name or "-", train.get(name, 0), heldout.get(name, 0)) for name in names)
        out.table(("class", "train", "held out"), cells)
    if warnings := list_warnings(card):
        out.say("", *warnings)


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _row(card: dict[str, Any]) -> Row:
    rows, classes = card["rows"], [name for name in card["classes"]["train"] if name]
    counts = rows["train"], rows["heldout"], rows["left_out"]
    return card["digest"][:12], card["task"], *counts, len(classes) or None, format_age(card["built_at"])
