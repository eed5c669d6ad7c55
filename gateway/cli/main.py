"""`apprentice`: the command line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.callers import new_key
from gateway.cli import serve as serving_command
from gateway.cli.adapters import adapters
from gateway.cli.sidecar import sidecar
from gateway.cli.state import state
from gateway.cli.up import up
from gateway.settings import SettingsError
from gateway.state import StateError

app = typer.Typer(
    help="Route between fine-tuned adapters and a general model, and watch both.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(up)
app.add_typer(adapters, name="adapters")
app.add_typer(state, name="state")


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("apprentice.yaml"),
) -> None:
    """Run the gateway until it is told to stop (Ctrl-C or SIGTERM); it drains first."""
    serving_command.serve(config)


@app.command()
def check(
    config: Annotated[Path, typer.Option(help="The configuration.")] = Path("apprentice.yaml"),
) -> None:
    """Validate a configuration and say what it holds; nothing is started."""
    serving_command.check(config)


@app.command()
def keygen() -> None:
    """Make a key of the right form, for the setting admin_key. It is printed and kept nowhere."""
    print(new_key()[0])


app.command()(sidecar)


def main() -> None:
    """Run the command; what the user can mend is one line, not a trace."""
    try:
        app()
    except (SettingsError, StateError) as error:
        print(f"apprentice: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
