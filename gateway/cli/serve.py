"""`apprentice serve` and `apprentice check`."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from gateway.errors import SettingsError

Config = Annotated[Path, typer.Option(help="The configuration.")]


def serve(
    config: Config = Path("apprentice.yaml"),
    processes: Annotated[
        str | None, typer.Option(metavar="N|auto", help="Processes; auto: one for each core. Unset: as configured.")
    ] = None,
) -> None:
    """Run the gateway until SIGTERM; it drains first."""
    # Here and below, not above: the help of all commands would take 0.7 s more.
    from gateway.app import build_app
    from gateway.configuration.base_models import read_bases
    from gateway.configuration.settings import load_settings
    from gateway.graceful_server import GracefulServer, bind
    from gateway.parent_process import Parent
    from gateway.state.private_files import UMASK
    from monitoring.logs import configure

    os.umask(UMASK)  # what is made public, such as the adapter store, is made so on purpose
    settings = load_settings(config)
    settings.listen.load_certificate()  # before anything is started, as what is next
    bases = read_bases(settings.pools)
    configure(settings.log_level, settings.log_format)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    count = processes_of(processes or settings.processes)
    sockets = bind(settings.listen)
    if count == 1:
        GracefulServer(settings, build_app(settings, config, bases=bases), sockets).run()
    else:
        sys.exit(Parent(settings, config, count, sockets).run())


def processes_of(value: str | int) -> int:
    """The number of processes: as given, or one for each core with `auto`. Raises SettingsError."""
    from gateway.configuration.settings import PROCESSES_MAX
    from gateway.parent_process import count_cores

    if value == "auto":
        return min(count_cores(), PROCESSES_MAX)
    if isinstance(value, str) and not value.isdecimal():
        raise SettingsError(f"--processes {value}: give a number, or auto.")
    if not 1 <= int(value) <= PROCESSES_MAX:
        raise SettingsError(f"--processes {value}: give 1 to {PROCESSES_MAX}.")
    return int(value)


def check(config: Config = Path("apprentice.yaml")) -> None:
    """Validate a configuration; nothing is started."""
    from gateway.cli.admin_client import LOCAL_KEPT
    from gateway.configuration.base_models import find_unusable_bases
    from gateway.configuration.settings import load_settings

    settings = load_settings(config)
    replicas = sum(len(pool.replicas) for pool in settings.pools.values())
    counts = (len(settings.pools), "pool"), (replicas, "replica"), (len(settings.tasks), "task")
    summary = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in counts)
    print(f"{config} is valid: {summary}.")
    for fault in find_unusable_bases(settings.pools):
        print(f"{config}: {fault} So no gateway starts on this machine.", file=sys.stderr)
    if config == Path("apprentice.yaml") and (local := LOCAL_KEPT / config).exists():
        print(f"The gateway of `make up` reads {local}: check that with --config {local}.", file=sys.stderr)
