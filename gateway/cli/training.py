"""`apprentice train` and `apprentice trainings`: an adapter from a data set, on the gateway's runners."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from gateway.cli.admin_client import Unusable
from gateway.cli.command import Api, Force, OfTask, TaskName, add_command, as_body, see_that_it_can_be_written, with_api
from gateway.cli.evaluations import COLUMNS, send_data
from gateway.cli.prompts import as_lines
from gateway.cli.pulls import read_manifest_file
from gateway.cli.tables import Row, format_time, make_readable
from gateway.cli.watch import WatchFailed, explain_leaving, until_ended

PATH = "/trainings"
EMPTY = "No training is listed. Begin one: apprentice train TASK --data DIGEST"
DIGEST = re.compile(r"[0-9a-f]{8,64}")
trainings = typer.Typer(help="List, show and stop trainings.", no_args_is_help=True)
TrainingId = Annotated[str, typer.Argument(metavar="ID", help="A training's id, as `train` and `list` show it.")]
Plot = Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Write the losses to this file, as SVG.")]


@dataclass(frozen=True)
class ParameterOptions:
    """The parameters of a training. The setting training.parameters has the defaults."""

    steps: Annotated[int | None, typer.Option(help="Steps of the optimiser, at most.")] = None
    batch: Annotated[int | None, typer.Option(help="Rows of a step.")] = None
    rank: Annotated[int | None, typer.Option(help="Rank of the LoRA.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Highest learning rate.")] = None
    warmup_steps: Annotated[int | None, typer.Option(help="Steps until it is reached.")] = None
    evaluate_every: Annotated[int | None, typer.Option(help="Steps between two evaluations on held-out rows.")] = None
    patience: Annotated[int | None, typer.Option(help="Evaluations without gain before it stops; 0: never.")] = None
    first_layer: Annotated[int | None, typer.Option(help="Layers below stay as they are, which is faster.")] = None
    tokens_max: Annotated[int | None, typer.Option(help="Longer rows are left out.")] = None
    heldout_share: Annotated[float | None, typer.Option(help="Share held out, where the data holds out none.")] = None
    rehearsal_share: Annotated[
        float | None, typer.Option("--rehearsal", help="Share of rows from the task's earlier data.")
    ] = None
    seed: Annotated[int | None, typer.Option(help="Seed of order and draws.")] = None


@with_api
def train(
    api: Api,
    task: TaskName,
    data: Annotated[
        str,
        typer.Option(
            metavar="DIGEST_OR_FILE", help="A data set's digest, or a file of rows: JSON lines, .csv or .json."
        ),
    ],
    parameters: ParameterOptions,
    begin: Annotated[
        str | None, typer.Option(metavar="VERSION", help="A version to go on from. Unset: a fresh adapter.")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The new version's manifest. Unset: that of the version that leads."),
    ] = None,
    pool: Annotated[str | None, typer.Option(help="The pool it is for. Unset: the first that takes adapters.")] = None,
    runner: Annotated[
        Literal["local", "kubernetes", "ray", "webhook"] | None,
        typer.Option(help="Where it runs. Unset: as training.runner."),
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Begin again where this training is there already, or half done.")
    ] = False,
    plot: Plot = None,
    force: Force = False,
) -> None:
    """Train an adapter and register it as a version.

    It runs beside the gateway, behind the engines. Ctrl-C only ends the watching; the same command again goes on, or
    shows what came of it.
    """
    see_that_it_can_be_written(force, plot)
    body = {"task": task, "data": _digest_of(api, data), "parameters": as_body(parameters)}
    body |= as_body(begin=begin, pool=pool, runner=runner)
    if manifest is not None:
        body["manifest"] = read_manifest_file(manifest)
    answer = api.post(PATH, body, again="true" if again else None)
    with explain_leaving(api.out, "training", answer["id"]):
        answer = _until_ended(api, answer)
    _tell(api, answer, plot)


@add_command(trainings, "list")
def list_them(api: Api, task: OfTask = None) -> None:
    """List the trainings, the newest first."""
    columns = ("id", "task", "status", "version", "data", "runner", "begun")
    api.out.tell_list(api.get(PATH, task=task), "trainings", columns, _row, EMPTY)


@add_command(trainings)
def show(api: Api, training: TrainingId, plot: Plot = None, force: Force = False) -> None:
    """Show a training: its progress or result."""
    see_that_it_can_be_written(force, plot)
    answer = api.get(f"{PATH}/{quote(training, safe='')}")
    if answer["status"] == "done":
        _tell(api, answer, plot)
        return
    _write_plot(api, answer, plot)
    api.out.tell(answer, f"{answer['id']} of {answer['task']} is {answer['status']}: {_so_far(answer)}")


@add_command(trainings)
def stop(api: Api, training: TrainingId) -> None:
    """Stop a training. One that does not run is forgotten; its version stays."""
    answer = api.delete(f"{PATH}/{quote(training, safe='')}")
    api.out.tell(answer, f"{answer['id']} is {answer['status']}.")


def _row(training: dict[str, Any]) -> Row:
    first = [training[name] or "-" for name in ("id", "task", "status", "version")]
    return *first, training["data"][:12], training["runner"], format_time(training["begun_at"])


def _digest_of(api: Api, data: str) -> str:
    """The digest of the data; a file is uploaded first. Raises CommandError."""
    path = Path(data)
    if not path.is_file():
        if DIGEST.fullmatch(data):
            return data
        raise Unusable(f"There is no file {data}, and it is not a digest: `apprentice datasets list` has those.")
    with ExitStack() as stack:
        lines = as_lines(stack, path, COLUMNS)
        return str(send_data(api, "/datasets/files", lines, {}, "application/octet-stream")["digest"])


def _until_ended(api: Api, answer: dict[str, Any]) -> dict[str, Any]:
    """Wait for the training's end and return it; show its progress meanwhile. Raises CommandError."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[hint]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with api.out.progress(*columns) as progress:
        bar = progress.add_task("Training", total=answer["parameters"]["steps"], hint="")

        def show(now: dict[str, Any]) -> None:
            hint = make_readable(_so_far(now)).replace("[", "(")
            progress.update(bar, completed=now["progress"]["step"], hint=hint)

        return until_ended(api, answer, PATH, show, _so_far)


def _so_far(answer: dict[str, Any]) -> str:
    """The progress, in words."""
    progress = answer["progress"]
    if answer["note"]:
        return str(answer["note"])
    if not progress["step"]:
        return "the rows are being prepared" if progress["prepared"] is None else "the base model is being loaded"
    steps, each = answer["parameters"]["steps"], progress["seconds_each"] or 0.0
    words = f"step {progress['step']} of {steps}, loss {progress['loss']:.3g}, {each:.2g} s each"
    if progress["heldout"]:
        step, loss, right = progress["heldout"][-1]
        words += f"; held out at {step}: loss {loss:.3g}, {100 * right:.1f} % right"
    return words


def _tell(api: Api, answer: dict[str, Any], plot: Path | None) -> None:
    """Print the result of a training. Raises WatchFailed if there is no version."""
    _write_plot(api, answer, plot)
    if answer["status"] != "done":
        text = f"The training {answer['id']} of {answer['task']} is {answer['status']}. {answer['note']}"
        raise WatchFailed(text.strip())
    result, metrics, prepared = answer["result"], answer["result"].get("metrics") or {}, answer["progress"]["prepared"]
    best = f": {result['reason']}, and step {result['best_step']} was the best" if result else ""
    lines = [f"{answer['version']} is trained and registered{best}."]
    if metrics:
        lines.append(
            f"Held out: {100 * metrics['heldout_right']:.1f} % right as a whole, loss {metrics['heldout_loss']:.3g}."
        )
    if prepared:
        rehearsed = f", {prepared['rehearsed']} rehearsed" if prepared["rehearsed"] else ""
        lines.append(f"It saw {prepared['rows']} rows{rehearsed}; {prepared['heldout']} were held out.")
    lines.append(f"Next: apprentice adapters stage {answer['version']}, then apprentice evaluate {answer['version']}")
    api.out.tell(answer, *lines)


def _write_plot(api: Api, answer: dict[str, Any], plot: Path | None) -> None:
    """Raises CommandError."""
    if plot is not None:
        api.save(f"{PATH}/{answer['id']}/plot", plot)
