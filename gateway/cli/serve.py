"""`apprentice serve` and `apprentice check`."""

from __future__ import annotations

import os
import signal
import socket
import ssl
from pathlib import Path

from gateway.app import build_app
from gateway.configuration.sections import ListenSettings
from gateway.configuration.settings import load_settings
from gateway.errors import SettingsError
from gateway.orderly_server import OrderlyServer, addresses_of
from gateway.state.private_files import UMASK
from monitoring.logs import configure


def serve(config: Path) -> None:
    """Run the gateway. Raises SettingsError before anything is started."""
    os.umask(UMASK)  # what is made public, such as the adapter store, is made so on purpose
    settings = load_settings(config)
    _see_that_it_can_listen(settings.listen)
    configure(settings.log_level, settings.log_format)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to read again
    OrderlyServer(settings, build_app(settings, config)).run()


def _see_that_it_can_listen(listen: ListenSettings) -> None:
    """Before anything is started: raises SettingsError where the gateway can't listen."""
    for place in addresses_of(listen):
        try:
            socket.create_server((place.host, place.port), family=_family(place.host)).close()
        except OSError as error:
            raise SettingsError(f"The gateway can't listen on {place.host}:{place.port}: {error.strerror}.") from error
    if listen.tls is not None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
                listen.tls.cert_file, listen.tls.key_file, password=lambda: b""
            )
        except OSError as error:
            files = f"{listen.tls.cert_file} with the key {listen.tls.key_file}"
            raise SettingsError(f"listen.tls: the certificate {files} can't be used: {error}.") from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def check(config: Path) -> None:
    """Print what the configuration holds. Raises SettingsError if it can't be used."""
    settings = load_settings(config)
    replicas = sum(len(pool.replicas) for pool in settings.pools.values())
    counts = (len(settings.pools), "pool"), (replicas, "replica"), (len(settings.tasks), "task")
    held = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for number, word in counts)
    print(f"{config} is valid: {held}.")
