"""Folders and files that only the user of this process can read."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import tempfile
from pathlib import Path

from monitoring.datasets.folder import PARTIAL

log = logging.getLogger(__name__)
UMASK = 0o077
"""Leaves new files readable by their owner alone."""


def make_private_folder(folder: Path) -> None:
    """Make the folder, or remove access for all users but its owner. Raises OSError.

    A folder of another user, such as a volume's root, stays unchanged. It is logged if others can read it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid == os.geteuid():
        folder.chmod(0o700)
    elif status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        text = "%s belongs to another user and is open to others: set data_folder to a folder inside it"
        log.warning(text, folder)


def name_shared_folder(folder: Path, name_file: str) -> str:
    """The name of the folder. The first gateway on the folder writes it into this file, and the others read it. Raises
    OSError."""
    path = folder / name_file
    if not path.exists():
        make_private_folder(folder)
        with tempfile.NamedTemporaryFile("w", prefix=PARTIAL, dir=folder, encoding="ascii") as named:
            named.write(secrets.token_hex(16))
            named.flush()
            with contextlib.suppress(FileExistsError):  # another gateway was faster
                os.link(named.name, path)
    return path.read_text(encoding="ascii")


def keep_secret(path: Path, secret: str) -> None:
    """Write a secret to a new file that only its owner can read. It replaces an existing file. Raises OSError."""
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as opened:
        opened.write(secret + "\n")
        opened.flush()
        os.fsync(opened.fileno())
