"""`apprentice serve` and `apprentice check`."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

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
    """The number of processes: the given one, or with `auto` one for each core. Raises SettingsError."""
    from gateway.configuration.settings import PROCESSES_MAX
    from gateway.parent_process import count_cores

    if value == "auto":
        return min(count_cores(), PROCESSES_MAX)
    if isinstance(value, str) and not value.isdecimal():
        raise SettingsError(f"--processes {value}: give a number, or auto.")
    if not 1 <= int(value) <= PROCESSES_MAX:
        raise SettingsError(f"--processes {value}: give 1 to {PROCESSES_MAX}.")
    return int(value)


def check(
    config: Config = Path("apprentice.yaml"),
    json_only: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Validate a configuration; nothing is started."""
    from gateway.cli.admin_client import LOCAL_KEPT
    from gateway.configuration.base_models import find_unusable_bases
    from gateway.configuration.settings import load_settings

    try:
        settings = load_settings(config)
    except SettingsError as error:
        if not json_only:
            raise
        _print_json({"valid": False, "faults": [fault._asdict() for fault in error.faults]})
        print(f"apprentice: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    replicas = sum(len(pool.replicas) for pool in settings.pools.values())
    counts = {"pool": len(settings.pools), "replica": replicas, "task": len(settings.tasks)}
    summary = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for word, number in counts.items())
    bases = list(find_unusable_bases(settings.pools))
    answer = {"valid": True, "faults": [], **{f"{word}s": number for word, number in counts.items()}}
    if json_only:
        _print_json(answer | {"unusable_bases": bases})
    else:
        print(f"{config} is valid: {summary}.")
    for fault in bases:
        print(f"{config}: {fault} So no gateway starts on this machine.", file=sys.stderr)
    if config == Path("apprentice.yaml") and (local := LOCAL_KEPT / config).exists():
        print(f"The gateway of `make up` reads {local}: check that with --config {local}.", file=sys.stderr)


def _print_json(answer: Mapping[str, Any]) -> None:
    """Print like Printer, without its libraries, which a gateway does not need."""
    print(json.dumps(answer, indent=2, ensure_ascii=False))
