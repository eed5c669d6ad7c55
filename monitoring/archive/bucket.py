"""The archive in a bucket: each file is one object, which appears as a whole.

`python -m monitoring.archive.bucket` reads a Bucket as a line of JSON, and prints the days that have records.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from monitoring.archive.lock import ArchiveLock
from monitoring.bucket_storage import Bucket, BucketError, open_bucket, translate_errors
from monitoring.helper_process import run_job

BLOCK_BYTES = 1 << 20
"""Bytes to read ahead, beyond those that DuckDB asks for."""
TRIES_MAX = 3
CAUSE = re.compile(r"^\w+: .+$", re.MULTILINE)


class BucketStorage:
    """See FolderStorage. Each method raises BucketError.

    On S3 a reader gets exactly the object that it opened, or an error: s3fs sends the object's ETag with each read.
    gcsfs sends no generation: on Google Storage only the lock protects a reader from a mix of old and new bytes.
    """

    def __init__(self, bucket: Bucket, scratch: Path) -> None:
        self.root = bucket.address
        self.scratch = scratch
        self.damaged: set[str] = set()
        self._bucket = bucket
        self._lock: ArchiveLock | None = None

    @cached_property
    def _files(self) -> Any:
        """The bucket's file system, opened at its first use: that takes a second."""
        files = open_bucket(
            self._bucket, use_listings_cache=True, skip_instance_cache=True, default_block_size=BLOCK_BYTES
        )
        files.retries = TRIES_MAX
        return files

    def list_names(self, place: str) -> list[str]:
        """See FolderStorage."""
        with self._translate_errors():
            try:
                listed = self._files.ls(f"{self.root}/{place}", detail=False, refresh=True)
            except FileNotFoundError as error:
                if error.__cause__ is not None or not self._has_bucket():
                    raise
                return []
        return sorted(name.rstrip("/").rpartition("/")[2] for name in listed)

    def size(self, place: str) -> int | None:
        """See FolderStorage."""
        with self._translate_errors():
            try:
                return int(self._files.info(f"{self.root}/{place}")["size"])
            except FileNotFoundError:
                return None

    def read(self, place: str) -> bytes:
        """See FolderStorage."""
        with self._translate_errors():
            return bytes(self._files.cat_file(f"{self.root}/{place}"))

    def write(self, place: str, file: Path) -> None:
        """See FolderStorage. The lock is also checked after each piece, so the upload of a large file is not completed
        without it."""
        with self._changing():
            files, lock = self._files, self._lock
            import fsspec  # noqa: PLC0415 - a part of what the extra installs

            hooks = {} if lock is None else {"lock": lambda *_: lock.see_that_it_is_held()}
            files.put_file(str(file), f"{self.root}/{place}", callback=fsspec.Callback(hooks=hooks))

    def remove(self, *places: str) -> None:
        """See FolderStorage."""
        for place in places:
            with self._changing():
                self._files.rm_file(f"{self.root}/{place}")

    def remove_folder(self, place: str) -> None:
        """See FolderStorage."""
        self.remove(*(f"{place}/{name}" for name in self.list_names(place)))

    def attach(self, connection: duckdb.DuckDBPyConnection) -> None:
        """See FolderStorage."""
        if self._bucket.scheme not in connection.list_filesystems():
            connection.register_filesystem(self._files)

    @contextmanager
    def lock(self, redis: Any, shared: bool = False) -> Iterator[None]:
        """See FolderStorage. The lock is in Redis."""
        with self.explain_errors(), ArchiveLock(redis, shared) as lock:
            if shared:
                yield
                return
            self._lock = lock
            try:
                yield
            finally:
                self._lock = None

    @contextmanager
    def explain_errors(self) -> Iterator[None]:
        """See FolderStorage."""
        try:
            yield
        except duckdb.Error as error:
            if type(error) is not duckdb.Error:  # an error of DuckDB's own
                raise
            causes = CAUSE.findall(str(error))
            raise BucketError(f"{self.root} can't be read ({causes[-1] if causes else error})", False) from None

    def _has_bucket(self) -> bool:
        """Return whether the bucket exists. Only Google Storage is asked: it answers the same for a missing folder."""
        return self._bucket.scheme != "gs" or bool(self._files.exists(self.root.split("/")[2]))

    def _translate_errors(self) -> Any:
        return translate_errors(self._bucket, "list, read, write and delete in")

    @contextmanager
    def _changing(self) -> Iterator[None]:
        if self._lock is not None:
            self._lock.see_that_it_is_held()
        with self._translate_errors():
            yield


def list_days(bucket: Bucket) -> list[str]:
    """The days for which the archive in a bucket has records. Raises BucketError."""
    return BucketStorage(bucket, Path()).list_names("records")


if __name__ == "__main__":
    run_job(Bucket, list_days)
