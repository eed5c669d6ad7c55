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
    """A folder in a file system with locks and renames. To lock it, it must be there.

    Files are the old one whole or the new one whole, whatever ends meanwhile. Each method raises OSError, or JobError
    with what to do.
    """

    def __init__(self, folder: Path) -> None:
        self.root = str(folder)
        """The beginning of each file's name, as DuckDB reads it: ROOT/PLACE."""
        self.scratch = folder
        """A folder for files on their way, and for what killed processes leave of them."""

    def list_names(self, place: str) -> list[str]:
        """The names directly below a place, in order; none where there is nothing."""
        try:
            return sorted(os.listdir(self.scratch / place))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, place: str) -> int | None:
        """The bytes of a file; None where there is none."""
        path = self.scratch / place
        return path.stat().st_size if path.exists() else None

    def read(self, place: str) -> bytes:
        """The bytes of a file."""
        return (self.scratch / place).read_bytes()

    def write(self, place: str, file: Path) -> None:
        """Store a file of `scratch`, in the place of what is there. It is durable once this returns."""
        target = self.scratch / place
        sync(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        for folder in (target.parent, target.parent.parent):
            sync(folder)

    def remove(self, *places: str) -> None:
        """Remove files of one folder so that they stay removed."""
        for place in places:
            (self.scratch / place).unlink()
        for folder in {(self.scratch / place).parent for place in places}:
            sync(folder)

    def remove_folder(self, place: str) -> None:
        """Remove all files directly below a place."""
        shutil.rmtree(self.scratch / place, ignore_errors=True)

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Make the files readable for a DuckDB. Once more is harmless."""

    @contextmanager
    def lock(self, redis: Any, shared: bool = False) -> Iterator[None]:
        """Nobody else writes or removes files meanwhile; with `shared` others may read. Waits for as long as that
        takes. It is the file system's lock: `redis` is not asked."""
        if shared and not self.scratch.is_dir():
            yield  # there is nothing to read yet
        else:
            with lock_folder(self.scratch, shared):
                yield

    def explain_errors(self) -> AbstractContextManager[None]:
        """Turn what DuckDB tells of the storage's own errors into a JobError. `lock` does so too."""
        return nullcontext()


ArchiveStorage: TypeAlias = FolderStorage | BucketStorage


def open_storage(folder: str, bucket: Bucket | None = None) -> ArchiveStorage:
    """The storage of the archive that a job names: a folder, or a bucket whose files are made in the folder."""
    return FolderStorage(Path(folder)) if bucket is None else BucketStorage(bucket, Path(folder))
