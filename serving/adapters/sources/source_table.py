"""The table of sources: the class for each kind of address."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from serving.adapters.sources.bucket import BucketSource
from serving.adapters.sources.fetch_job import FetchSettings, scheme_of
from serving.adapters.sources.hub import HubSource
from serving.adapters.sources.registry import RegistrySource
from serving.adapters.sources.source import Source

SOURCES: Mapping[str, Callable[[str, FetchSettings], Source]] = {
    "s3": BucketSource,
    "gs": BucketSource,
    "hf": HubSource,
    "oci": RegistrySource,
}


def open_source(address: str, settings: FetchSettings) -> Source:
    """The source at an address. Raises SourceError."""
    return SOURCES[scheme_of(address)](address, settings)
