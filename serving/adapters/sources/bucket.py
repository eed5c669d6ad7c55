"""Buckets: S3, Google Storage, and other file systems of fsspec (monitoring/bucket_storage.py)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from monitoring.bucket_storage import Bucket, BucketError, open_bucket, translate_errors
from serving.adapters.sources.fetch_job import FetchSettings
from serving.adapters.sources.source import BrokenOff, Listing, RemoteFile, SourceError

PIECE_BYTES = 8 << 20


class BucketSource:
    """A folder of a bucket."""

    def __init__(self, address: str, settings: FetchSettings) -> None:
        self._bucket = Bucket(address, settings.s3_endpoint_url)
        with self._in_words():
            self._files: Any = open_bucket(self._bucket, use_listings_cache=False)

    def list_files(self) -> Listing:
        """The objects directly in the folder."""
        address = self._bucket.address
        with self._in_words():
            self._files.invalidate_cache()
            entries = self._files.ls(address, detail=True)
        files = {
            entry["name"].rpartition("/")[2]: RemoteFile(entry["name"], int(entry["size"] or 0), _identity(entry))
            for entry in entries
            if entry["type"] == "file"
        }
        return Listing(address, files)

    @contextmanager
    def read(self, file: RemoteFile, begin: int) -> Iterator[Iterator[bytes]]:
        """The bytes of an object."""
        yield self._pieces(file, begin)

    def _pieces(self, file: RemoteFile, begin: int) -> Iterator[bytes]:
        while begin < file.size_bytes:
            with self._in_words():
                piece = self._files.cat_file(file.place, start=begin, end=min(begin + PIECE_BYTES, file.size_bytes))
            if not piece:
                return
            begin += len(piece)
            yield piece

    @contextmanager
    def _in_words(self) -> Iterator[None]:
        """Turn a bucket's errors into those of a source."""
        try:
            with translate_errors(self._bucket, "list and read"):
                yield
        except BucketError as error:
            raise (SourceError if error.is_lasting else BrokenOff)(str(error)) from None


def _identity(entry: Mapping[str, Any]) -> str:
    names = ("ETag", "etag", "generation", "mtime", "last_modified", "modify")
    return str(next((entry[name] for name in names if entry.get(name)), None))
