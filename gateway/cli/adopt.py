"""`apprentice adopt`: from a file of examples to a judged version, by the commands of each step."""

from __future__ import annotations

import hashlib
import json
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from gateway.cli.admin_client import Refused, Unusable, explain_os_error, write_whole
from gateway.cli.command import Api, ClassField, with_api
from gateway.cli.prompts import OwnColumns, read_columns
from gateway.cli.tables import Printer
from gateway.cli.training import ParameterOptions
from gateway.cli.watch import WatchFailed
from monitoring.training.manifest_draft import draft_manifest, read_row

NOT_FOUND = 404
STATE_FILE = "adopt.json"
STOPS = ("readiness", "dataset", "manifest", "gate")
CALIBRATION_ROWS_MIN = 100
HELDOUT_ROWS_MIN = 20
CONFLICTS_SHARE_MAX = 0.05
CANARY_SHARE = 0.1
STOPPING_SECONDS = 5.0
"""Time for a command to end after Ctrl-C."""


class Stopped(WatchFailed):
    """A step at which a person has to decide. The text says what to look at, and how to continue."""


@dataclass
class Adoption:
    """One adoption: its progress, and the way to run its steps. `outcomes` has the result of each finished step."""

    api: Api
    task: str
    file: Path
    folder: Path
    key_file: Path
    class_field: str | None
    columns: tuple[str, ...]
    manifest: Path | None
    parameters: tuple[str, ...]
    past: frozenset[str]
    release: bool
    outcomes: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, *words: str) -> dict[str, Any]:
        """Run one `apprentice` command, show it, and return its JSON. Raises CommandError if it failed."""
        shown = shlex.join(("apprentice", *words))
        self.api.out.note(f"$ {shown}")
        connection = ["--json", "--gateway", self.api.url, "--key-file", str(self.key_file)]
        connection += [] if self.api.ca_file is None else ["--ca", str(self.api.ca_file)]
        command = [sys.executable, "-P", "-m", "gateway.cli.entry", *words, *connection]
        exit_code, output = run_command(command, self.api.out)
        if exit_code > 1:
            raise Unusable(f"`{shown}` failed, as it says above.")
        try:
            answer: dict[str, Any] = json.loads(output or b"{}")
        except ValueError as error:
            raise Unusable(f"`{shown}` printed no JSON: {error}.") from error
        if exit_code and (words[0] != "gate" or "error" in answer):
            raise WatchFailed(f"`{shown}` failed, as it says above. The same command goes on here.")
        return answer

    @property
    def version(self) -> str:
        """The version that was trained."""
        return str(self.outcomes["train"]["version"])

    @property
    def class_options(self) -> tuple[str, ...]:
        """The option that names the class, where one was given."""
        return ("--class-field", self.class_field) if self.class_field else ()

    def path(self, name: str) -> str:
        """The path of a file of the adoption."""
        return str(self.folder / name)


def run_command(command: Sequence[str], out: Printer, note_seconds: float = 60.0) -> tuple[int, bytes]:
    """Exit code and output of a command. A terminal shows the command's progress; a log gets a line a minute."""
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as running:
        while True:
            try:
                output, _ = running.communicate(timeout=note_seconds)
            except subprocess.TimeoutExpired:
                if not out.stderr.is_terminal:
                    out.note(f"  at work for {time.monotonic() - began:.0f} s")
            except KeyboardInterrupt:
                _stop(running)
                raise
            else:
                return running.returncode, output


def _stop(running: subprocess.Popen[bytes]) -> None:
    """End a command like Ctrl-C, which a terminal has sent to it too. It then says what continues without it."""
    running.send_signal(signal.SIGINT)
    try:
        running.wait(STOPPING_SECONDS)
    except subprocess.TimeoutExpired:
        running.kill()


def check_readiness(adoption: Adoption) -> dict[str, Any]:
    """Ask whether fine-tuning is worth it.

    Unknown facts stop nothing. Raises Stopped if a rule speaks against it.
    """
    options = (*adoption.class_options, *adoption.columns)
    report = adoption.path("readiness.html")
    answer = adoption.run(
        "readiness", str(adoption.file), "--task", adoption.task, "--html", report, "--force", *options
    )  # fmt: skip
    against = [
        " ".join(filter(None, (rule["evidence"], rule["next"])))
        for rule in answer["rules"]
        if rule["state"] in ("against", "never")
    ]
    if against and "readiness" not in adoption.past:
        raise Stopped(f"Readiness: {' '.join(against)} Look at {report}. To go on: --past readiness.")
    return {"answer": answer["answer"], "because": answer["because"]}


def build_dataset(adoption: Adoption) -> dict[str, Any]:
    """Build the data set. Raises Stopped if rows contradict each other, or too few are held out."""
    options = (*adoption.class_options, *adoption.columns)
    card = adoption.run("datasets", "build", adoption.task, "--file", str(adoption.file), *options)
    page = adoption.path("card.html")
    adoption.run("datasets", "show", card["digest"], "--html", page, "--force")
    for part in ("train", "heldout"):
        target = adoption.path(f"{part}.jsonl")
        adoption.run("datasets", "export", card["digest"], "--part", part, "--out", target, "--force")
    rows, conflicts = card["rows"], card["left_out"].get("conflict", 0)
    faults = []
    if rows["heldout"] < HELDOUT_ROWS_MIN:
        faults.append(f"{rows['heldout']} rows are held out, under {HELDOUT_ROWS_MIN}")
    if conflicts > CONFLICTS_SHARE_MAX * sum(rows.values()):
        faults.append(f"{conflicts} rows contradict others")
    if faults and "dataset" not in adoption.past:
        raise Stopped(f"Data set: {', and '.join(faults)}. Look at {page}. To go on: --past dataset.")
    return {"digest": card["digest"], **rows}


def write_manifest(adoption: Adoption) -> dict[str, Any]:
    """Take the given manifest, or that of the leading version, or draft one from the examples. A manifest that is in
    the folder already stays, since a person may have edited it."""
    if adoption.manifest is not None:
        return {"manifest": str(adoption.manifest)}
    if _leading(adoption) is not None:
        return {"manifest": None}
    path = adoption.folder / "manifest.yaml"
    if path.exists():
        adoption.api.out.note(f"{path} is there already, and stays: delete it to have one drafted from the examples.")
    else:
        lines = (adoption.folder / "train.jsonl").read_bytes().splitlines()  # a text may have other ends of lines in it
        rows = [row for row in (read_row(json.loads(line)) for line in lines) if row is not None]
        draft = yaml.safe_dump(draft_manifest(adoption.task, rows), sort_keys=False, allow_unicode=True)
        path.write_text(draft, encoding="utf-8")
    if "manifest" not in adoption.past:
        raise Stopped(
            f"Manifest: {path} was drafted from the examples. See to its contract and its general prompt. "
            "To go on: --past manifest."
        )
    return {"manifest": str(path)}


def train_version(adoption: Adoption) -> dict[str, Any]:
    """Train the adapter, and register it."""
    manifest = adoption.outcomes["manifest"]["manifest"]
    options = ("--manifest", manifest) if manifest else ()
    words = ("train", adoption.task, "--data", adoption.outcomes["dataset"]["digest"], "--force", *options)
    answer = adoption.run(*words, "--plot", adoption.path("losses.svg"), *adoption.parameters)
    return {"version": answer["version"], "training": answer["id"], "manifest": _digest_of_manifest(adoption)}


def stage_version(adoption: Adoption) -> dict[str, Any]:
    """Load the version on its replicas, and fit its scope."""
    adoption.run("adapters", "stage", adoption.version)
    fitted = adoption.run("adapters", "fit", adoption.version, "--prompts", adoption.path("train.jsonl"))
    return {"prompts": fitted["prompts"]["used"]}


def evaluate_version(adoption: Adoption) -> dict[str, Any]:
    """Keep the held-out rows as the task's newest suite, and evaluate the version on it."""
    leading = _leading(adoption)
    suite = adoption.run(
        "suites", "add", adoption.task, "--data", adoption.path("heldout.jsonl"), *adoption.class_options
    )["digest"]
    calibrate = ("--calibrate",) if adoption.outcomes["dataset"]["heldout"] >= CALIBRATION_ROWS_MIN else ()
    page = adoption.path("evaluation.html")
    answer = adoption.run("evaluate", adoption.version, "--suite", suite[:12], *calibrate, "--out", page, "--force")
    arms = (answer.get("report") or {}).get("arms", {})
    return {"against": leading, "suite": suite, "right": {name: arm["accuracy"]["share"] for name, arm in arms.items()}}


def pass_gate(adoption: Adoption) -> dict[str, Any]:
    """Ask the gate. Raises Stopped if it does not pass the version, whatever `release.gate` is."""
    answer = adoption.run("gate", adoption.task, adoption.version)
    if answer["verdict"] != "passed" and (answer["mode"] == "enforce" or "gate" not in adoption.past):
        past = f"`apprentice adapters promote {adoption.version} --force --reason TEXT` passes it by force."
        if answer["mode"] != "enforce":
            past = "To go on: --past gate."
        raise Stopped(f"The gate does not let {adoption.version} through: {answer['because']} {past}")
    return {"verdict": answer["verdict"], "because": answer["because"]}


def release_version(adoption: Adoption) -> dict[str, Any]:
    """Make the version a canary that is judged, or the leading version if the task has none. Raises Stopped."""
    if not adoption.release:
        right = [f"{name} {share:.1%}" for name, share in adoption.outcomes["evaluate"]["right"].items()]
        figures = f" Right on held-out rows: {', '.join(right)}." if right else ""
        page = adoption.path("evaluation.html")
        raise Stopped(f"{adoption.version} may be released.{figures} Look at {page}. To go on: --release.")
    leading = _leading(adoption)
    if leading is None:
        adoption.run("adapters", "promote", adoption.version)
    if leading in (None, adoption.version):
        return {"released": "it leads"}
    adoption.run("adapters", "canary", adoption.version, "--share", str(CANARY_SHARE), "--auto")
    return {"released": f"a canary with {CANARY_SHARE:.0%} of the sessions, which evidence promotes or rolls back"}


def _leading(adoption: Adoption) -> str | None:
    """The version that leads the task; None if none does."""
    try:
        weights: dict[str, float] = adoption.api.get(f"/aliases/{adoption.task}")["weights"]
    except Refused as error:
        if error.status != NOT_FOUND:
            raise
        return None
    return max(weights, key=lambda version: weights[version], default=None)


Step = Callable[[Adoption], dict[str, Any]]
STEPS: Mapping[str, Step] = {
    "readiness": check_readiness,
    "dataset": build_dataset,
    "manifest": write_manifest,
    "train": train_version,
    "stage": stage_version,
    "evaluate": evaluate_version,
    "gate": pass_gate,
    "release": release_version,
}
"""The steps, in order."""


@with_api
def adopt(
    api: Api,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Examples: OpenAI's fine-tuning JSONL, or .csv with text, expected.")
    ],
    task: Annotated[str, typer.Option(metavar="TASK", help="A task of the configuration.")],
    parameters: ParameterOptions,
    class_field: ClassField = None,
    column: OwnColumns = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Manifest of the first version. Unset: one is drafted.")
    ] = None,
    folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="For reports and state. Unset: adopt-TASK, here.")
    ] = None,
    past: Annotated[
        list[str] | None,
        typer.Option(metavar="STOP", help=f"Go past a stop, of {', '.join(STOPS)}: you have looked. May be repeated."),
    ] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Release it: a canary that is judged, or leading where none leads.")
    ] = False,
) -> None:
    """Adopt a file of examples, from readiness to canary.

    Each step shows the command that does it, and leaves a report. It stops where a person should look. The same command
    again goes on where it stood; with another file or other options it begins again.
    """
    _see_that_there_is(api, task)
    unknown = next((name for name in past or () if name not in STOPS), None)
    if unknown is not None:
        raise Unusable(f"--past {unknown[:80]!r} is not a stop: name one of {', '.join(STOPS)}.")
    folder = folder or Path(f"adopt-{task}")
    with ExitStack() as stack:
        folder.mkdir(parents=True, exist_ok=True)
        private = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        key_file = private / "key"
        key_file.touch(mode=0o600)
        key_file.write_text(api.key, encoding="utf-8")
        options = [(name, value) for name, value in vars(parameters).items() if value is not None]
        words = tuple(word for name, value in options for word in (_option_of(name), str(value)))
        columns = tuple(
            word for ours, theirs in read_columns(column).items() for word in ("--column", f"{ours}={theirs}")
        )
        adoption = Adoption(
            api, task, file, folder, key_file, class_field, columns, manifest, words, frozenset(past or ()), release
        )
        try:
            _take_steps(adoption, _read_state(adoption))
        except KeyboardInterrupt:
            api.out.warn("The adoption stops here: the same command goes on where it stood.")
            raise
    text = f"{adoption.version} is released: {adoption.outcomes['release']['released']}."
    api.out.tell({"version": adoption.version, "steps": adoption.outcomes}, text, f"Watch it: apprentice why {task}")


def _take_steps(adoption: Adoption, state: dict[str, Any]) -> None:
    """Run all steps that are not done yet. Raises CommandError if one stops."""
    adoption.outcomes.update(state["done"])
    if _is_outdated(adoption):
        adoption.api.out.note("Another version leads by now: the evaluation begins again.")
        del adoption.outcomes["evaluate"]
        adoption.outcomes.pop("gate", None)
    trained = adoption.outcomes.get("train", {})
    if "manifest" in trained and trained["manifest"] != _digest_of_manifest(adoption):  # earlier releases wrote none
        adoption.api.out.note(f"The manifest was changed since {adoption.version} was trained: training begins again.")
        for name in list(STEPS)[list(STEPS).index("train") :]:
            adoption.outcomes.pop(name, None)
    for number, (name, step) in enumerate(STEPS.items(), 1):
        if name in adoption.outcomes:
            adoption.api.out.note(f"[{number}/{len(STEPS)}] {name}: done before.")
            continue
        adoption.api.out.note(f"[{number}/{len(STEPS)}] {name}")
        adoption.outcomes[name] = step(adoption)
        state["done"] = adoption.outcomes
        with write_whole(adoption.folder / STATE_FILE) as partial:
            partial.write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def _digest_of_manifest(adoption: Adoption) -> str | None:
    """The digest of the manifest for the training; None if it is the leading version's manifest."""
    path = adoption.outcomes["manifest"]["manifest"]
    if path is None:
        return None
    with explain_os_error(f"{path} can't be read"):
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _is_outdated(adoption: Adoption) -> bool:
    """True if the version is not released, and was evaluated beside another version than the present leader."""
    evaluated = adoption.outcomes.get("evaluate")
    if evaluated is None or "release" in adoption.outcomes:
        return False
    return _leading(adoption) not in (None, evaluated.get("against"), adoption.version)


def _read_state(adoption: Adoption) -> dict[str, Any]:
    """The progress of this adoption. Another file or other options begin a new one. Raises Unusable."""
    with explain_os_error(f"{adoption.file} can't be read"), adoption.file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    manifest = None if adoption.manifest is None else str(adoption.manifest)
    options = [adoption.class_field, *adoption.columns, manifest, *adoption.parameters]
    fresh: dict[str, Any] = {"task": adoption.task, "file": digest, "options": options, "done": {}}
    try:
        state: Any = json.loads((adoption.folder / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return fresh
    same = isinstance(state, dict) and all(state.get(name) == fresh[name] for name in ("task", "file", "options"))
    return state if same and isinstance(state.get("done"), dict) else fresh


def _see_that_there_is(api: Api, task: str) -> None:
    """Raises Unusable, with what to add to the configuration."""
    if task not in [each["task"] for each in api.get("/quality")["tasks"]]:
        raise Unusable(
            f"The gateway has no task {task}. Add it to apprentice.yaml, as in `tasks: {{{task}: {{description: …, "
            "fallback_pool: general}}`, then `apprentice reload`."
        )


def _option_of(name: str) -> str:
    return "--rehearsal" if name == "rehearsal_share" else f"--{name.replace('_', '-')}"
