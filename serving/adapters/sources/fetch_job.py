"""The job of the process that fetches an adapter, and the kinds of addresses that it accepts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec

from monitoring.bucket_storage import BUCKET_ADDRESS, PART
from serving.adapters.errors import quote_name
from serving.adapters.sources.source import SourceError

ADDRESSES: Mapping[str, tuple[re.Pattern[str], str]] = {
    "s3": (BUCKET_ADDRESS, "s3://BUCKET/FOLDER"),
    "gs": (BUCKET_ADDRESS, "gs://BUCKET/FOLDER"),
    "hf": (re.compile(rf"hf://{PART}/{PART}@{PART}(/{PART})*"), "hf://OWNER/REPOSITORY@REVISION"),
    "oci": (
        re.compile(rf"oci://[A-Za-z0-9.-]+(:[0-9]{{1,5}})?(/{PART})+@sha256:[0-9a-f]{{64}}"),
        "oci://REGISTRY/NAME@sha256:DIGEST",
    ),
}
"""The form of an address of each kind, and its example."""
OTHERS = re.compile(rf"[a-z][a-z0-9+.-]*://{PART}(:[0-9]{{1,5}})?(/{PART})*")
"""The form of all other addresses that fsspec may know: without a password, a query, `..`, or a nested address."""
NOT_REMOTE = frozenset(
    {
        *("file", "local", "asynclocal", "memory", "data", "dir", "generic", "reference", "http", "https", "git"),
        *("cached", "blockcache", "filecache", "simplecache", "zip", "tar", "libarchive"),
    }
)
"""Schemes of fsspec that lead to this machine's disk or memory, to a nested address, or anywhere by a redirect."""


class FetchSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Endpoints and files of credentials. S3 and Google Storage also take credentials from the environment."""

    s3_endpoint_url: str | None = None
    hf_endpoint_url: str = "https://huggingface.co"
    hf_token_file: str | None = None
    registry_auth_file: str | None = None
    plain_registries: tuple[str, ...] = ()


class FetchJob(msgspec.Struct, frozen=True, kw_only=True):
    """One adapter to fetch into `folder`, where an earlier try may have left a part of it.

    `digest` is the adapter's own (empty: any). `free_bytes_min` bytes must stay free on the disk.
    """

    address: str
    folder: str
    digest: str
    size_bytes_max: int
    free_bytes_min: int
    settings: FetchSettings


class FetchResult(msgspec.Struct, frozen=True, tag="result"):
    """The immutable address of the fetched adapter and its files that were left out; or an error, in words."""

    address: str = ""
    left_out: tuple[str, ...] = ()
    error: str = ""


def scheme_of(address: str) -> str:
    """The scheme of a well-formed address. Raises SourceError."""
    scheme, separator, _ = address.partition("://")
    if not separator or scheme in NOT_REMOTE:
        kinds = ", ".join(example for _, example in ADDRESSES.values())
        text = f"adapters are pulled from {kinds}, and other stores that fsspec reads"
        raise SourceError(f"{quote_name(address)} is of no known kind: {text}.")
    form, example = ADDRESSES.get(scheme, (OTHERS, "SCHEME://STORE/FOLDER"))
    if not form.fullmatch(address):
        raise SourceError(f"{quote_name(address)} has not the form {example}.")
    return scheme


def see_that_it_is_allowed(address: str, allowed: Iterable[str]) -> None:
    """Raise SourceError for an address that neither is an allowed one nor lies below one."""
    beginnings = tuple(allowed)
    if not beginnings:
        raise SourceError("Pulls are off: name the sources that may be used in the setting pulls.allowed.")
    if not any(address.startswith((f"{each.rstrip('/')}/", f"{each}@")) or address == each for each in beginnings):
        raise SourceError(f"{quote_name(address)} lies outside the setting pulls.allowed ({', '.join(beginnings)}).")
