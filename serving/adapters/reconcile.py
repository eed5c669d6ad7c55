"""What should be loaded, and what is: brings each replica from the one to the other, and tells which it serves."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

import httpx

from serving.adapters.probe import ProbeError, probe
from serving.adapters.registry import PLACED, Registry, Version
from serving.adapters.store import Store
from serving.fleet import Fleet
from serving.health import engine_headers, look
from serving.replica import Replica

log = logging.getLogger(__name__)
LOAD_TIMEOUT_SECONDS = 120.0
RETRY_SECONDS = 15.0


class LoadError(Exception):
    """A replica did not take a version; the message says which and why."""


class Reconciler:
    """Loads and unloads versions on replicas. One gateway's duty at a time; all gateways read what is there."""

    def __init__(
        self,
        fleet: Fleet,
        registry: Registry,
        store: Store,
        fingerprints: Mapping[str, str],
        http: httpx.AsyncClient,
        loaded: Callable[[str, float], None],
    ) -> None:
        """`fingerprints` are the pools' base models'; `loaded` is told of each load: its pool and its seconds."""
        self._fleet = fleet
        self._registry = registry
        self._store = store
        self._fingerprints = fingerprints
        self._http = http
        self._loaded = loaded
        self._probed: set[tuple[str, str, str]] = set()
        self._in_doubt: set[tuple[str, str]] = set()
        self._retry_at: dict[tuple[str, str], float] = {}
        self._locks = {name: asyncio.Lock() for name in fleet.replicas}

    def path_on(self, replica: Replica, version: Version) -> str:
        """Where this replica's engine finds the version's bytes; the store's path names them by digest."""
        here = self._store.path(version.digest)
        folder = replica.config.store_folder
        return str(PurePosixPath(folder) / here.name) if folder else str(here)

    def fits(self, version: Version) -> bool:
        """Whether the version was trained on the base model that its pool serves now."""
        return version.base_fingerprint == self._fingerprints.get(version.pool)

    def adopt(self, replica: Replica, versions: Iterable[Version]) -> None:
        """Take as loaded whatever the replica lists under a version's name and path; nothing else of that name is."""
        there = frozenset(
            version.name
            for version in versions
            if version.state in PLACED
            and self.fits(version)
            and replica.seen.get(version.name) == self.path_on(replica, version)
            and (replica.name, version.name) not in self._in_doubt
        )
        if there != replica.loaded:
            replica.loaded = there
            self._fleet.changed()

    async def step(self, versions: Mapping[str, Version]) -> list[str]:
        """One pass: on each replica, load what is missing and unload what is no longer wanted. Returns what failed.

        Replicas are seen to beside each other, so that one that hangs keeps no other waiting.
        """
        passes = (self._step_on(replica, versions) for replica in self._fleet.replicas.values() if replica.up)
        return [failure for failures in await asyncio.gather(*passes) for failure in failures]

    async def _step_on(self, replica: Replica, versions: Mapping[str, Version]) -> list[str]:
        failed = []
        for name, known in versions.items():
            if known.pool != replica.config.pool or not self._to_do(replica, known):
                continue
            # An admin may have moved it since the snapshot was made; one that is staging is in the hands of who stages.
            version = await self._registry.version(name)
            try:
                if version.state in PLACED:
                    await self.load(replica, version)
                elif version.state != "staging":
                    await self.unload(replica, version)
            except (LoadError, ProbeError) as error:
                log.warning("reconcile: %s", error, extra={"replica": replica.name, "version": name})
                self._retry_at[replica.name, name] = time.monotonic() + RETRY_SECONDS
                failed.append(str(error))
        return failed

    def _to_do(self, replica: Replica, version: Version) -> bool:
        if self._retry_at.get((replica.name, version.name), 0.0) > time.monotonic():
            return False
        if version.state in PLACED:
            probed = (replica.name, version.name, replica.engine_version) in self._probed
            return self.fits(version) and not (version.name in replica.loaded and probed)
        return replica.seen.get(version.name) == self.path_on(replica, version)

    async def load(self, replica: Replica, version: Version) -> None:
        """Have the version loaded and probed on this replica, if it is not. Raises LoadError, ProbeError.

        A refusal ("already loaded") or a timeout is answered by reading what the engine lists, never by a blind retry.
        """
        if not self.fits(version):
            raise LoadError(f"{version.name} was trained on another base model than the pool {version.pool} serves.")
        path = self.path_on(replica, version)
        place = (replica.name, version.name)
        async with self._locks[replica.name]:
            if replica.seen.get(version.name) == path:
                if version.name in replica.loaded and (*place, replica.engine_version) in self._probed:
                    return
                await self._prove(replica, version)
                return
            self._in_doubt.add(place)
            try:
                await self._load(replica, version, path)
                await self._prove(replica, version)
            finally:
                self._in_doubt.discard(place)

    async def _prove(self, replica: Replica, version: Version) -> None:
        try:
            await probe(replica, version, self._fleet.pools[version.pool].base_model, self._http)
        except ProbeError:
            await self._unload(replica, version)
            raise
        self._probed.add((replica.name, version.name, replica.engine_version))
        replica.loaded |= {version.name}
        self._fleet.changed()

    async def unload(self, replica: Replica, version: Version) -> None:
        """Stop routing there, then have the engine forget the name; running answers finish. Raises LoadError."""
        async with self._locks[replica.name]:
            await self._unload(replica, version)

    async def _unload(self, replica: Replica, version: Version) -> None:
        replica.loaded -= {version.name}
        self._fleet.changed()
        answer = await self._post(replica, "/v1/unload_lora_adapter", {"lora_name": version.name})
        if answer is None or answer.status_code not in (200, 404):
            raise LoadError(f"{replica.name} did not unload {version.name}.")
        await look(self._fleet, replica, self._http)
        self._probed = {key for key in self._probed if key[:2] != (replica.name, version.name)}

    async def _load(self, replica: Replica, version: Version, path: str) -> None:
        began = time.monotonic()
        body = {"lora_name": version.name, "lora_path": path}
        answer = await self._post(replica, "/v1/load_lora_adapter", body)
        await look(self._fleet, replica, self._http)
        there = replica.seen.get(version.name)
        if there == path:
            self._loaded(version.pool, time.monotonic() - began)
            return
        if there is not None:
            raise LoadError(f"{replica.name} serves other bytes under the name {version.name}: restart that engine.")
        said = "no answer" if answer is None else f"{answer.status_code} {answer.text[:200]}"
        raise LoadError(f"{replica.name} did not load {version.name}: {said}.")

    async def _post(self, replica: Replica, path: str, body: dict[str, str]) -> httpx.Response | None:
        try:
            return await self._http.post(
                replica.config.url + path,
                json=body,
                headers=engine_headers(replica),
                timeout=LOAD_TIMEOUT_SECONDS,
            )
        except httpx.HTTPError:
            return None
