"""`apprentice`: the command line."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.callers import new_key
from gateway.cli.adapters import adapters
from gateway.cli.admin_client import Unusable
from gateway.cli.adopt import adopt
from gateway.cli.audit import audit
from gateway.cli.command import add_command
from gateway.cli.datasets import datasets
from gateway.cli.diagnose import diagnose
from gateway.cli.doctor import doctor
from gateway.cli.evaluations import evaluate, evaluations
from gateway.cli.explain import explain
from gateway.cli.forget import forget
from gateway.cli.gate import show_gate
from gateway.cli.keys import keys
from gateway.cli.overrides import overrides
from gateway.cli.pulls import list_pulls, pull_adapter
from gateway.cli.readiness import answer_readiness
from gateway.cli.records import records
from gateway.cli.reload import reload
from gateway.cli.replay import replay
from gateway.cli.requests import requests
from gateway.cli.retraining import retraining
from gateway.cli.review_labels import reviews
from gateway.cli.sidecar import sidecar
from gateway.cli.state import state
from gateway.cli.suites import suites
from gateway.cli.tables import Printer
from gateway.cli.tasks import tasks
from gateway.cli.training import train, trainings
from gateway.cli.why import why
from gateway.errors import SettingsError, StateError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _show_version(is_wanted: bool) -> None:
    from importlib.metadata import version as installed_version

    if is_wanted:
        print(f"apprentice {installed_version('apprentice-gateway')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version.")
    ] = False,
) -> None:
    """Route between fine-tuned adapters and a general model, and watch both."""


app.add_typer(adapters, name="adapters")
app.add_typer(evaluations, name="evaluations")
app.add_typer(suites, name="suites")
app.add_typer(datasets, name="datasets")
app.add_typer(state, name="state")
app.add_typer(keys, name="keys")
add_command(adapters, "pull")(pull_adapter)
add_command(adapters, "pulls")(list_pulls)
app.add_typer(overrides, name="overrides")
app.add_typer(reviews, name="reviews")
app.add_typer(tasks, name="tasks")
app.add_typer(retraining, name="retraining")
app.add_typer(trainings, name="trainings")
app.add_typer(records, name="records")
records.command()(forget)


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("apprentice.yaml"),
    processes: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Processes; auto: one for each core. Unset: as configured.")
    ] = None,
) -> None:
    """Run the gateway until SIGTERM; it drains first."""
    from gateway.cli import serve as serving_command

    serving_command.serve(config, processes)


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("apprentice.yaml"),
) -> None:
    """Validate a configuration; nothing is started."""
    from gateway.cli import serve as serving_command

    serving_command.check(config)


app.command()(audit)
app.command()(explain)
app.command()(diagnose)
app.command()(why)
app.command()(doctor)
app.command()(reload)
app.command()(evaluate)
app.command()(adopt)
app.command()(train)
app.command("gate")(show_gate)
app.command()(replay)
app.command()(requests)
app.command("readiness")(answer_readiness)


@app.command()
def keygen(
    signing: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a new key that signs adapters to FILE, and print its public key."),
    ] = None,
) -> None:
    """Make a key for the setting admin_key, or one that signs adapters.

    Of a key that signs adapters the public key is printed, as signing.trusted takes it; only the file's owner can read
    the private one, which `apprentice adapters push --sign FILE` takes.
    """
    print(new_key()[0] if signing is None else _new_signing_key(signing))


def _new_signing_key(path: Path) -> str:
    """Write a new private key to `path`; its public key. Raises SettingsError where something is there already."""
    from serving.adapters import signature

    key = signature.new_key()
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as opened:
            opened.write(key)
    except FileExistsError as error:
        raise SettingsError(f"--signing {path} is there already, and is left as it is: name a new file.") from error
    except OSError as error:
        raise SettingsError(f"--signing {path} can't be written: {error.strerror}.") from error
    return signature.derive_public_key(key)


app.command()(sidecar)


def main() -> None:
    """Run the command; what the user can mend is one line, not a trace, and with --json an error on stdout too."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        sys.exit("apprentice: Nothing was done.")
    except (SettingsError, StateError, typer.TyperException) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if text and "--json" in sys.argv:
            Printer(True).answer({"error": Unusable(text).content()})
        if text:  # else its help was shown
            print(f"apprentice: {' '.join(text.split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
