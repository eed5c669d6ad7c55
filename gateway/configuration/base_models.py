"""The base models of pools with adapters, as stored on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from gateway.configuration.pools import PoolSettings
from gateway.errors import SettingsError
from serving.adapters.base_model import Base, read_base
from serving.adapters.errors import ArtifactError


def read_bases(pools: Mapping[str, PoolSettings]) -> dict[str, Base]:
    """The base model of each pool that has a folder of it. Raises SettingsError."""
    read = {name: _read(name, pool) for name, pool in pools.items()}
    return {name: base for name, base in read.items() if base is not None}


def find_unusable_bases(pools: Mapping[str, PoolSettings]) -> Iterator[str]:
    """The faults with which no gateway starts on this machine."""
    for name, pool in pools.items():
        try:
            _read(name, pool)
        except SettingsError as error:
            yield str(error)


def _read(name: str, pool: PoolSettings) -> Base | None:
    if pool.base_folder is None:
        return None
    try:
        return read_base(pool.base_folder, pool.base_fingerprint, pool.base_model)
    except ArtifactError as error:
        raise SettingsError(f"pools.{name}.base_folder is {pool.base_folder}. {error}") from error
