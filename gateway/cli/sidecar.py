"""`apprentice sidecar`: a server beside an engine without the gateway's store. It pulls adapters by digest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from gateway.errors import SettingsError

LISTEN = re.compile(r"(\[[0-9a-fA-F:]+\]|[^\s:\[\]]+):([0-9]{1,5})")


def sidecar(
    store: Annotated[Path, typer.Option(help="The folder that the engine reads adapters from.")],
    gateway: Annotated[str, typer.Option(help="The gateway's address, such as https://apprentice:8080.")],
    key_file: Annotated[Path, typer.Option(help="A file that holds a sidecar's key.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT that the gateway reaches this at.")] = "127.0.0.1:8090",
    ca: Annotated[
        Path | None, typer.Option(help="Authorities (PEM) of an https:// gateway. Unset: the system's.")
    ] = None,
) -> None:
    """Pull adapters for an engine that does not share the gateway's store."""
    from gateway.cli.sidecar_app import build_sidecar, run
    from gateway.configuration.pools import ADDRESS
    from monitoring.logs import configure
    from serving.adapters.store import Store
    from serving.tls import TlsError, TlsFiles, Trust

    host, port = _listen(listen)
    if not re.fullmatch(ADDRESS, gateway):
        raise SettingsError(f"--gateway {gateway} is not an address of the form http://host:port, without a path.")
    if not key_file.is_file():
        raise SettingsError(f"--key-file {key_file} is not there: put a key of the role sidecar into it.")
    try:
        artifacts = Store(store)
    except OSError as error:
        raise SettingsError(f"--store {store} can't be made: {error.strerror}.") from error
    try:
        trust = Trust(lambda: [(gateway, TlsFiles(str(ca)) if ca is not None else None)])
    except TlsError as error:
        raise SettingsError(f"--ca: {error}") from error
    configure("INFO", "json")
    run(build_sidecar(artifacts, gateway, key_file, trust), host, port)


def _listen(text: str) -> tuple[str, int]:
    match = LISTEN.fullmatch(text)
    if match is None or int(match[2]) > 65535:
        raise SettingsError(f"--listen {text} is not of the form HOST:PORT.")
    return match[1].strip("[]"), int(match[2])
