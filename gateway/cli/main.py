"""`apprentice`: the command line. The file of a command is loaded when it is run."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from gateway.errors import SettingsError, StateError

COMMANDS: Mapping[str, str] = {
    "serve": "serve:serve",
    "check": "serve:check",
    "audit": "audit:audit",
    "explain": "requests:explain",
    "diagnose": "requests:diagnose",
    "why": "why:why",
    "doctor": "doctor:doctor",
    "reload": "reload:reload",
    "evaluate": "evaluations:evaluate",
    "adopt": "adopt:adopt",
    "train": "training:train",
    "gate": "gate:show_gate",
    "replay": "replay:replay",
    "requests": "requests:requests",
    "readiness": "readiness:answer_readiness",
    "keygen": "keygen:keygen",
    "sidecar": "sidecar:sidecar",
    "adapters": "adapters:adapters",
    "evaluations": "evaluations:evaluations",
    "suites": "suites:suites",
    "datasets": "datasets:datasets",
    "state": "state:state",
    "keys": "keys:keys",
    "overrides": "overrides:overrides",
    "reviews": "review_labels:reviews",
    "tasks": "tasks:tasks",
    "retraining": "retraining:retraining",
    "trainings": "training:trainings",
    "records": "records:records",
}
"""The commands in the order of the help, each with its file in gateway/cli and its function or group there."""
PLAIN: Mapping[str, Any] = {"add_completion": False, "pretty_exceptions_enable": False}


class LoadedCommands(Mapping[str, Any]):
    """The commands by name. A gateway does not load its clients' commands: that saves 0.1 s and 6 MB at the start."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._loaded:
            file, _, attribute = COMMANDS[name].partition(":")
            collects = gc.isenabled()
            gc.disable()  # what is loaded stays: to look for garbage in it takes an eighth of a gateway's start
            try:
                command = getattr(import_module(f"gateway.cli.{file}"), attribute)
            finally:
                if collects:
                    gc.enable()
            alone = typer.Typer(**PLAIN)
            if isinstance(command, typer.Typer):
                alone.add_typer(command, name=name)
            else:
                alone.command(name)(command)
            self._loaded[name] = typer.main.get_group(alone).commands[name]
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class Commands(typer.core.TyperGroup):
    """`apprentice` itself."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = LoadedCommands()  # type: ignore[assignment]  # which is only read


app = typer.Typer(cls=Commands, no_args_is_help=True, **PLAIN)


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


def main() -> None:
    """Run the command. The user's faults are one line without a trace; with --json, also an error on stdout."""
    try:
        sys.exit(app(standalone_mode=False))
    except typer.Abort:
        sys.exit("apprentice: Nothing was done.")
    except (SettingsError, StateError, typer.TyperException) as error:
        text = error.format_message() if isinstance(error, typer.TyperException) else str(error)
        if text and "--json" in sys.argv:
            from gateway.cli.admin_client import Unusable
            from gateway.cli.tables import Printer

            Printer(True).print_json({"error": Unusable(text).content()})
        if text:  # else its help was shown
            lines = text if isinstance(error, SettingsError) else " ".join(text.split())  # a line for each fault
            print(f"apprentice: {lines}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
