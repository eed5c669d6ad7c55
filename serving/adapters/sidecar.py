"""Adapters for engines that do not share the gateway's store: a sidecar pulls them from the gateway, by digest.

The gateway calls `ensure_on` before a load, which asks the replica's sidecar for the adapter. In the sidecar a `Puller`
fetches its two files, and stores them only if they have the requested digest.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import httpx

from monitoring.synced_files import sync
from serving.adapters.adapter_folder import CONFIG_FILE, DEFAULT_LIMITS, WEIGHTS_FILE
from serving.adapters.artifact_digest import digest_adapter
from serving.adapters.errors import ArtifactError, quote_name
from serving.adapters.incoming_folder import append, make_incoming_folder, to_its_end
from serving.adapters.store import FILE_MODE, FOLDER_MODE, FREE_BYTES_MIN, Store, move_in

SIZES_MAX: Mapping[str, int] = {
    CONFIG_FILE: DEFAULT_LIMITS.config_bytes_max,
    WEIGHTS_FILE: DEFAULT_LIMITS.size_bytes_max,
}
"""Most bytes of each file of an adapter."""
ENSURE_SECONDS_MAX = 120.0
PULL_SECONDS_MAX = 1800.0
CONNECT_SECONDS_MAX = 5.0
SILENCE_SECONDS_MAX = 60.0
AT_ONCE_MAX = 2
WAITING_MAX = 64
WRITE_BYTES = 1 << 20
KEY_BYTES_MAX = 1024
SENTENCE_LENGTH_MAX = 300


class PullError(Exception):
    """The adapter is not in place; the text says why and what to do."""


class NotThere(PullError):
    """The gateway's store has no such adapter."""


async def ensure_on(sidecar_url: str, digest: str, http: httpx.AsyncClient) -> None:
    """Have the sidecar at this address hold the adapter; returns when it does.

    It may be called again at any time: a pull goes on without callers, and the next call joins it. Raises PullError,
    also if it takes longer than ENSURE_SECONDS_MAX.
    """
    timeout = httpx.Timeout(ENSURE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
    try:
        answer = await http.post(f"{sidecar_url}/adapters/{digest}", timeout=timeout)
    except httpx.ConnectError as error:
        raise PullError(f"The sidecar at {sidecar_url} can't be reached ({error}): is it running?") from None
    except httpx.TimeoutException:
        fault = f"The sidecar at {sidecar_url} did not have {digest} in place within {ENSURE_SECONDS_MAX:g} s."
        raise PullError(f"{fault} It goes on, and the next try joins it.") from None
    except httpx.HTTPError as error:
        raise PullError(f"The sidecar at {sidecar_url} broke off ({error}).") from None
    if answer.status_code != httpx.codes.OK or digest not in answer.text:
        raise PullError(f"The sidecar at {sidecar_url} does not hold the adapter: {_sentence_in(answer)}")


class Puller:
    """Brings adapters into the sidecar's own store. It owns the pulls under way, one for each digest."""

    def __init__(
        self,
        store: Store,
        gateway_url: str,
        key_path: Path,
        http: httpx.AsyncClient,
        free_bytes_min: int = FREE_BYTES_MIN,
    ) -> None:
        """`key_path` holds a key of the role sidecar. It is read again for each pull, so that it can be replaced."""
        self._store = store
        self._gateway_url = gateway_url.rstrip("/")
        self._key_path = key_path
        self._http = http
        self._free_bytes_min = free_bytes_min
        self._at_once = asyncio.Semaphore(AT_ONCE_MAX)
        self._pulls: dict[str, asyncio.Task[None]] = {}

    def holds(self, digest: str) -> bool:
        """True if the adapter is in place. Raises ArtifactError `bad_digest`."""
        return self._store.holds(digest)

    async def ensure(self, digest: str) -> None:
        """Return when the adapter is in place, complete and with the right bytes; pull it if it is missing.

        A call for a digest that is being pulled waits for that pull, which goes on even without callers. Raises
        ArtifactError `bad_digest`, NotThere or PullError.
        """
        self._store.path(digest)
        pull = self._pulls.get(digest)
        if pull is None:
            if len(self._pulls) >= WAITING_MAX:
                raise PullError(f"{WAITING_MAX} adapters are being pulled already: try again later.")
            pull = asyncio.create_task(self._pull(digest))
            self._pulls[digest] = pull
            pull.add_done_callback(lambda done: self._forget(digest, done))
        await asyncio.shield(pull)

    async def close(self) -> None:
        """Stop the pulls under way; incomplete files are deleted."""
        pulls = list(self._pulls.values())
        for pull in pulls:
            pull.cancel()
        await asyncio.gather(*pulls, return_exceptions=True)

    def _forget(self, digest: str, pull: asyncio.Task[None]) -> None:
        del self._pulls[digest]
        if not pull.cancelled():
            pull.exception()  # no caller may be left to read it

    async def _pull(self, digest: str) -> None:
        try:
            async with self._at_once, asyncio.timeout(PULL_SECONDS_MAX):
                if self._store.holds(digest):
                    await to_its_end(lambda: self._store.verify_copy(digest))
                else:
                    await self._fetch(digest)
        except TimeoutError:
            raise PullError(f"{digest} took longer than {PULL_SECONDS_MAX:g} s: is the gateway near enough?") from None
        except ArtifactError as error:
            raise PullError(str(error)) from None
        except OSError as error:
            raise PullError(f"{digest} can't be kept ({error.strerror}): make room for the sidecar's store.") from None

    async def _fetch(self, digest: str) -> None:
        await to_its_end(lambda: self._store.sweep(PULL_SECONDS_MAX, time.time()))
        key = await asyncio.to_thread(self._key)
        async with make_incoming_folder(self._store.folder) as folder:
            for name in SIZES_MAX:
                await self._fetch_file(digest, name, folder / name, key)
            await to_its_end(lambda: self._let_in(digest, folder))

    async def _fetch_file(self, digest: str, name: str, path: Path, key: str) -> None:
        headers = {"authorization": f"Bearer {key}", "accept-encoding": "identity"}
        timeout = httpx.Timeout(SILENCE_SECONDS_MAX, connect=CONNECT_SECONDS_MAX)
        url = f"{self._gateway_url}/admin/v1/store/{digest}/{name}"
        try:
            async with self._http.stream("GET", url, headers=headers, timeout=timeout) as answer:
                if answer.status_code != httpx.codes.OK:
                    await answer.aread()
                    kind = NotThere if answer.status_code == httpx.codes.NOT_FOUND else PullError
                    raise kind(f"The gateway at {self._gateway_url} does not give {digest}: {_sentence_in(answer)}")
                await self._keep(answer, path, SIZES_MAX[name])
        except httpx.HTTPError as error:
            fault = f"The gateway at {self._gateway_url} broke off or can't be reached"
            raise PullError(f"{fault} ({type(error).__name__} {error}).") from None

    async def _keep(self, answer: httpx.Response, path: Path, size_bytes_max: int) -> None:
        size_bytes = 0
        async for piece in answer.aiter_raw(WRITE_BYTES):
            size_bytes += len(piece)
            if size_bytes > size_bytes_max:
                raise PullError(f"The gateway's {path.name} has more than {size_bytes_max} bytes, the limit here.")
            await to_its_end(partial(append, path, [piece], len(piece), self._free_bytes_min))

    def _let_in(self, digest: str, folder: Path) -> None:
        """Move it into the store in one atomic step, if its bytes, as read back from disk, have this digest."""
        actual = digest_adapter(folder)
        if actual != digest:
            raise PullError(f"What the gateway gave for {digest} has the digest {actual}: its store is damaged.")
        for name in SIZES_MAX:
            (folder / name).chmod(FILE_MODE)
            sync(folder / name)
        folder.chmod(FOLDER_MODE)
        sync(folder)
        move_in(folder, self._store.path(digest))  # another sidecar on this volume may be faster
        sync(self._store.folder)

    def _key(self) -> str:
        try:
            with self._key_path.open(encoding="utf-8") as file:
                return file.read(KEY_BYTES_MAX).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PullError(f"The key in {self._key_path} can't be read: {error}.") from None


def _sentence_in(answer: httpx.Response) -> str:
    """The message of a gateway's error, or the status and the beginning of the answer."""
    try:
        return str(answer.json()["error"]["message"])[:SENTENCE_LENGTH_MAX]
    except (ValueError, LookupError, TypeError):
        return f"{answer.status_code} {quote_name(answer.text)}."
