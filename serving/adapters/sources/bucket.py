"""Buckets, by fsspec: S3 (s3fs) and Google Storage (gcsfs), each an extra of the installation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from serving.adapters.sources.fetch_job import FetchSettings
from serving.adapters.sources.source import BrokenOff, Listing, RemoteFile, SourceError

PIECE_BYTES = 8 << 20
CREDENTIALS: Mapping[str, str] = {
    "s3": "the environment (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role) or ~/.aws/credentials",
    "gs": "the environment (GOOGLE_APPLICATION_CREDENTIALS)",
}


class BucketSource:
    """A folder of a bucket."""

    def __init__(self, address: str, settings: FetchSettings) -> None:
        self._address = address
        self._scheme = address.partition("://")[0]
        options = {"endpoint_url": settings.s3_endpoint_url} if self._scheme == "s3" else {}
        try:
            import fsspec  # noqa: PLC0415 - with it comes what the extra installs

            with self._in_words():
                self._files: Any = fsspec.filesystem(self._scheme, use_listings_cache=False, **options)
        except ImportError:
            text = f"install the gateway with its extra: pip install 'apprentice-gateway[{self._scheme}]'"
            raise SourceError(f"{self._scheme}:// can't be read here: {text}.") from None

    def list_files(self) -> Listing:
        """The objects directly in the folder."""
        with self._in_words():
            entries = self._files.ls(self._address, detail=True, refresh=True)
        files = {
            entry["name"].rpartition("/")[2]: RemoteFile(entry["name"], int(entry["size"]), _identity(entry))
            for entry in entries
            if entry["type"] == "file"
        }
        return Listing(self._address, files)

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
        """Turn the errors of fsspec and of what lies under it into ours."""
        try:
            yield
        except (SourceError, ImportError):
            raise
        except FileNotFoundError:
            raise SourceError(f"There is nothing at {self._address}: check bucket and folder.") from None
        except PermissionError:
            raise SourceError(f"{self._address} refuses access (403): {self._advice()}") from None
        except (OSError, TimeoutError) as error:
            raise BrokenOff(f"{self._address} broke off ({type(error).__name__})") from None
        except Exception as error:  # of the client's own tree
            name = type(error).__name__
            if "Credential" in name or "Auth" in name:
                raise SourceError(f"There are no credentials for {self._address} ({name}): {self._advice()}") from None
            raise BrokenOff(f"{self._address} can't be read ({name})") from None

    def _advice(self) -> str:
        return f"give credentials that may list and read it, in {CREDENTIALS[self._scheme]}."


def _identity(entry: Mapping[str, Any]) -> str:
    return str(entry.get("ETag") or entry.get("etag") or entry.get("generation") or entry.get("mtime"))
