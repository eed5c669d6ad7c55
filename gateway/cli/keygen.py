"""`apprentice keygen`: new keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from gateway.callers import new_key
from gateway.errors import SettingsError


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
    """Write a new private key to `path`; its public key. Raises SettingsError if the file exists already."""
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
