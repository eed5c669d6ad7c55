"""What the settings of pools have to keep among each other: what can't go together is told by its key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from serving.tls import origin_of

if TYPE_CHECKING:
    from gateway.settings import PoolSettings, TlsSettings

FOR_ADAPTERS = ("base_folder", "base_fingerprint")
FOR_ADAPTERS_ON_A_REPLICA = ("store_folder", "sidecar_url", "recycle_url")


def faults_of(pools: Mapping[str, PoolSettings]) -> Iterator[str]:
    """Sentences on what can't be used, each beginning with its key; none if all is well."""
    tls: dict[str, tuple[str, TlsSettings | None]] = {}
    for name, pool in pools.items():
        if pool.engine == "openai":
            yield from _no_adapters(name, pool)
        for number, replica in enumerate(pool.replicas):
            place = f"pools.{name}.replicas.{number}.url"
            if pool.engine == "vllm" and urlsplit(replica.url).path.strip("/"):
                yield f"{place}: an engine of the kind vllm has no path; OpenAI-compatible ones are `engine: openai`"
            if pool.tls is not None and not replica.url.startswith("https:"):
                yield f"{place}: the pool has TLS files, but this is no https:// address"
            other, files = tls.setdefault(origin_of(replica.url), (name, pool.tls))
            if files != pool.tls:
                yield f"pools.{name}.tls: the pool {other!r} reaches the same engine with other files"


def _no_adapters(name: str, pool: PoolSettings) -> Iterator[str]:
    for key in FOR_ADAPTERS:
        if getattr(pool, key) is not None:
            yield f"pools.{name}.{key}: adapters can't be placed on a pool of `engine: openai`"
    for number, replica in enumerate(pool.replicas):
        for key in FOR_ADAPTERS_ON_A_REPLICA:
            if getattr(replica, key) is not None:
                yield f"pools.{name}.replicas.{number}.{key}: adapters can't be placed on a pool of `engine: openai`"
