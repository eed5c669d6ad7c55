"""The store: every adapter under its digest, `STORE/<64 hex digits>/`, written once and never changed.

A path identifies its bytes: an engine that has the path as an adapter's root serves exactly those bytes. The store has
no way to delete an adapter: an engine fails all its requests if a directory that it knows disappears.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from monitoring.synced_files import sync
from serving.adapters import canonical
from serving.adapters.adapter_folder import (
    ADAPTER_FILES,
    DEFAULT_LIMITS,
    ArtifactLimits,
    open_file,
    open_folder,
)
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.errors import ArtifactError, quote_name
from serving.adapters.verification import Artifact

INCOMING = ".incoming-"
PULLED = f"{INCOMING}pull-"
"""Beginning of the name of a folder into which an adapter is pulled."""
CHUNK_BYTES = 1 << 20
FILE_MODE = 0o444
FOLDER_MODE = 0o555
STORE_MODE = 0o755
FREE_BYTES_MIN = 256 << 20
"""Bytes that must stay free on the store's disk, since Redis may keep its file there."""


class Store:
    """A content-addressed folder of adapters, which several gateways may share; engines only read it."""

    def __init__(
        self, folder: Path, limits: ArtifactLimits = DEFAULT_LIMITS, free_bytes_min: int = FREE_BYTES_MIN
    ) -> None:
        """Make the folder if it does not exist. Raises OSError if that fails.

        All users can read folder and adapters on purpose: engines run as other users. A folder above may be private.
        """
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(STORE_MODE)  # whatever the umask
        self.folder = folder.resolve()
        self._limits = limits
        self._free_bytes_min = free_bytes_min

    def put(self, source: Path, artifact: Artifact) -> Path:
        """Copy the verified adapter in `source` into the store and return its folder there.

        The copy is read again and its digest compared, so that the store has what was verified. It appears complete or
        not at all, even after a crash. Putting the same again changes nothing; a copy damaged meanwhile is reported,
        not replaced.

        Raises ArtifactError `changed` if the source is no longer what was verified, and `damaged` as `verify_copy`
        does. Raises OSError if too little room would be left on the disk.
        """
        target = self.path(artifact.digest)
        if target.exists():
            self.verify_copy(artifact.digest)
            return target
        check_room(self.folder, artifact.size_bytes, self._free_bytes_min)
        incoming = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self.folder))
        try:
            self._copy(source, incoming, artifact)
            move_in(incoming, target)
        finally:
            if incoming.exists():
                remove_incoming(incoming)
        sync(self.folder)
        return target

    def path(self, digest: str) -> Path:
        """The absolute path of the adapter with this digest, even if it does not exist.

        Raises ArtifactError `bad_digest`; no other string ever becomes a path.
        """
        if not canonical.DIGEST.fullmatch(digest):
            raise ArtifactError("bad_digest", f"{quote_name(digest)} is not sha256: and 64 hex digits.")
        return self.folder / digest.removeprefix("sha256:")

    def holds(self, digest: str) -> bool:
        """True if the adapter is there; its bytes are not checked. Raises ArtifactError `bad_digest`."""
        return self.path(digest).is_dir()

    def verify_copy(self, digest: str) -> None:
        """Read the copy and compare it with its name.

        Raises ArtifactError `not_held` if it does not exist, `damaged` unless it is its two files with exactly these
        bytes.
        """
        folder = self.path(digest)
        if not self.holds(digest):
            raise ArtifactError("not_held", f"The store has no {digest}: push the adapter again.")
        try:
            names = sorted(entry.name for entry in folder.iterdir())
            actual = digest_adapter(folder, self._limits) if names == [*ADAPTER_FILES] else None
        except (ArtifactError, OSError) as error:
            raise _damaged(digest, str(error)) from None
        if actual is None:
            raise _damaged(digest, f"it holds {quote_name(', '.join(names))}")
        if actual != digest:
            raise _damaged(digest, f"its bytes have the digest {actual}")

    def sweep(self, older_than_seconds: float, now: float, pulled: bool = False) -> int:
        """Remove leftovers of crashed copies and return their number; `now` is the time in Unix seconds.

        Copies under way in another gateway are younger than any sensible `older_than_seconds`. Leftovers of pulls are
        only removed with `pulled`, and then alone, since another pull may continue them.
        """
        count = 0
        for entry in self.folder.glob(f"{INCOMING}*"):
            if entry.name.startswith(PULLED) != pulled:
                continue
            with suppress(FileNotFoundError):  # another gateway sweeps as well
                if now - entry.stat().st_mtime > older_than_seconds:
                    remove_incoming(entry)
                    count += 1
        return count

    def _copy(self, source: Path, incoming: Path, artifact: Artifact) -> None:
        changed = ArtifactError("changed", "The adapter was changed after it was verified: push it again.")
        copied = 0
        with open_folder(source) as source_fd:
            for name in ADAPTER_FILES:
                with _new_file(incoming / name) as copy:
                    for chunk in _read_chunks(source_fd, name, self._limits.size_bytes_max):
                        copied += len(chunk)
                        if copied > artifact.size_bytes:
                            raise changed
                        copy.write(chunk)
        try:
            same = digest_adapter(incoming, self._limits) == artifact.digest
        except ArtifactError:
            raise changed from None
        if not same or copied != artifact.size_bytes:
            raise changed
        incoming.chmod(FOLDER_MODE)
        sync(incoming)


def check_room(folder: Path, size_bytes: int, free_bytes_min: int) -> None:
    """Raise OSError if `size_bytes` more would leave too little room on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if free - size_bytes < free_bytes_min:
        room = f"{free >> 20} MiB are free, and {free_bytes_min >> 20} MiB must stay so"
        raise OSError(errno.ENOSPC, f"too little room is left on its disk: {room}")


def _read_chunks(folder_fd: int, name: str, size_bytes_max: int) -> Iterator[bytes]:
    """The bytes of a file. Errors of writing them elsewhere are raised unchanged: they are not this file's fault."""
    with open_file(folder_fd, name, size_bytes_max) as (file, size_bytes):
        remaining = size_bytes
        while remaining and (chunk := file.read(min(remaining, CHUNK_BYTES))):
            yield chunk
            remaining -= len(chunk)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """A new file, synced to disk before the block ends."""
    with path.open("xb") as file:
        yield file
        file.flush()
        os.fchmod(file.fileno(), FILE_MODE)
        os.fsync(file.fileno())


def move_in(incoming: Path, target: Path) -> None:
    """Move a folder in, in one atomic step. If another gateway was faster with the same bytes, its copy stays."""
    try:
        incoming.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def remove_incoming(incoming: Path) -> None:
    """Remove a folder that is not yet an adapter of the store, even if it is read-only. Raises OSError."""
    incoming.chmod(stat.S_IRWXU)
    shutil.rmtree(incoming)


def _damaged(digest: str, fault: str) -> ArtifactError:
    return ArtifactError(
        "damaged",
        f"The store's copy of {digest} is damaged ({fault}): retire its version, and when no engine reads it "
        "any more restore the folder from a backup.",
    )
