"""Command of `make up`: engine, demo model, gateway and example adapter on this machine."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from gateway.errors import SettingsError
from tools.engines.errors import LaunchError
from tools.engines.progress import Steps
from tools.local_product import LocalProduct, UpOptions


def up(
    engines: Annotated[
        int,
        typer.Option(
            min=1, max=2, help="Engines to start: 1 plays every pool, 2 gives general its own. 3.9 GB of memory each."
        ),
    ] = 1,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the gateway; unset: as in the configuration.")
    ] = None,
    engine_port: Annotated[
        int,
        typer.Option(min=1, max=65534, help="Port of the first engine, on the loopback; a free one if it is taken."),
    ] = 8101,
    config: Annotated[Path, typer.Option(help="The configuration to start from.")] = Path("apprentice.yaml"),
    adapter: Annotated[Path, typer.Option(help="Folder of the adapter that the task `returns` is served by.")] = Path(
        "examples/returns/adapter"
    ),
    folder: Annotated[
        Path, typer.Option(help="Where the engine's environment, the model, logs and keys are kept.")
    ] = Path("var"),
    only_install: Annotated[
        bool, typer.Option("--only-install", help="Install the engine and make the model, and start nothing.")
    ] = False,
) -> None:
    """Start everything on this machine: engine, demo model, gateway and the example adapter.

    The first run installs vLLM (for CUDA where there is an NVIDIA GPU, else for the CPU: 3 GB) and makes the demo
    model; later ones find both. It prints the address, a key and three commands to try. Ctrl-C drains and stops
    all that it started, a second Ctrl-C ends it at once. Logs are in FOLDER/logs, keys in FOLDER/up.
    """
    options = UpOptions(engines, port, engine_port, config, adapter.resolve(), folder.absolute())
    local = LocalProduct(options, Steps(Console()))
    try:
        work: Coroutine[Any, Any, object] = local.install() if only_install else local.run()
        asyncio.run(work)
    except (LaunchError, SettingsError) as error:
        typer.echo(f"make up: {error}", err=True)
        raise typer.Exit(2) from error
    if local.hurried:
        raise typer.Exit(128 + signal.SIGINT)


if __name__ == "__main__":
    typer.run(up)
