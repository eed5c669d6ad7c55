"""A remote source of adapters: it lists its files, and reads a file piece by piece from any byte on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec


class SourceError(Exception):
    """The adapter can't be fetched; the text is a sentence that says what to do."""


class BrokenOff(Exception):
    """The connection broke off. The received part is kept, and another try continues after it."""


class RemoteFile(msgspec.Struct, frozen=True):
    """A file of a source. Other bytes have another `identity`; `sha256` is empty if the source does not give it."""

    place: str
    size_bytes: int
    identity: str
    sha256: str = ""


class Listing(msgspec.Struct, frozen=True):
    """The files of an adapter by name, and the immutable address at which they were listed."""

    address: str
    files: Mapping[str, RemoteFile]


class Source(Protocol):
    """One address. Every method raises SourceError and BrokenOff."""

    def list_files(self) -> Listing:
        """The files that are at the address now."""
        ...

    def read(self, file: RemoteFile, begin: int) -> AbstractContextManager[Iterator[bytes]]:
        """The bytes of a file from `begin` on."""
        ...
