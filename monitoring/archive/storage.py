"""The storage of the archive: whole files by their path, such as `records/day=2026-03-01/part-1-2.parquet`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from monitoring.archive.bucket import BucketStorage
from monitoring.bucket_storage import Bucket
from monitoring.synced_files import lock_folder, sync

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import duckdb


class FolderStorage:
    """A folder in a file system with locks and renames. It must exist before it is locked for writing.

    After an interruption, each file is the old one whole or the new one whole. Each method raises OSError, or JobError
    with advice.
    """

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        """The prefix of each file's name for DuckDB: ROOT/PLACE."""
        self.scratch = folder
        """A folder for unfinished files, also those of killed processes."""
        self.damaged: set[str] = set()
        """The files that this process could not read."""

    def list_names(self, place: str) -> list[str]:
        """The names directly below a place, sorted; none if there is nothing."""
        try:
            return sorted(os.listdir(self.scratch / place))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, place: str) -> int | None:
        """The number of bytes of a file; None if it does not exist."""
        path = self.scratch / place
        return path.stat().st_size if path.exists() else None

    def read(self, place: str) -> bytes:
        """The bytes of a file."""
        return (self.scratch / place).read_bytes()

    def write(self, place: str, file: Path) -> None:
        """Store a file of `scratch` at a place; it replaces a file there. It is durable once this returns."""
        target = self.scratch / place
        sync(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        for folder in (target.parent, target.parent.parent):
            sync(folder)

    def remove(self, *places: str) -> None:
        """Remove files of one folder durably."""
        for place in places:
            (self.scratch / place).unlink()
        for folder in {(self.scratch / place).parent for place in places}:
            sync(folder)

    def remove_folder(self, place: str) -> None:
        """Remove all files directly below a place."""
        shutil.rmtree(self.scratch / place)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the files readable for a DuckDB. A second call is harmless."""

    @contextmanager
    def lock(self, redis: Any, shared: bool = False) -> Iterator[None]:
        """Hold the lock: nobody else writes or removes files meanwhile; with `shared` others may read. Waits for it. It
        is the file system's lock: `redis` is not used."""
        if shared and not self.scratch.is_dir():
            yield  # there is nothing to read yet
        else:
            with lock_folder(self.scratch, shared):
                yield

    def explain_errors(self) -> AbstractContextManager[None]:
        """Turn the storage's errors that DuckDB reports into a JobError. `lock` does so too."""
        return nullcontext()


ArchiveStorage: TypeAlias = FolderStorage | BucketStorage


def open_storage(folder: str, bucket: Bucket | None = None) -> ArchiveStorage:
    """The archive's storage of a job: a folder, or a bucket with the folder for unfinished files."""
    return FolderStorage(Path(folder)) if bucket is None else BucketStorage(bucket, Path(folder))
