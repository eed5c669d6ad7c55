"""Background job of one gateway that pulls adapters one by one. Each has its own process to fetch it.

A pull stays in Redis until it has ended. If this gateway stops, the next one that holds the lease continues it.
A fetched adapter is treated like an upload: verified, stored, registered.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import shutil
import time
from functools import partial
from pathlib import Path

import msgspec
from redis.exceptions import RedisError

from gateway.background.job_process import make_command, run_process
from gateway.background.jobs import run_until, skip_unchanged
from gateway.errors import Problem
from gateway.features.pulls.state import Pull, Pulls
from gateway.features.releases.adding import Pusher, add_version
from gateway.server.adapter_uploads import Upload
from monitoring.helper_process import ProgressStep
from serving.adapters.adapter_folder import MANIFEST_FILE, SIGNATURE_FILE
from serving.adapters.plain_yaml import write_plain_yaml
from serving.adapters.sources.fetch_job import FetchJob, FetchResult
from serving.adapters.store import FREE_BYTES_MIN, PULLED

log = logging.getLogger(__name__)
LOOK_INTERVAL_SECONDS = 0.25
KEPT_SECONDS = 86_400.0
"""Retention of an unfinished pull's files after its last byte, so that another pull can continue."""
COMMAND = make_command("serving.adapters.sources.fetching")


async def keep_pulling(pulls: Pulls) -> None:
    """Pull the waiting adapters, unless another gateway does. Runs until cancelled. Raises RedisError."""
    lease = pulls.services.lease_job("pulls")
    await lease.repeat(
        skip_unchanged(pulls.services.snapshot, PullingWork(pulls).step), LOOK_INTERVAL_SECONDS, waits=True
    )


class PullingWork:
    """Puller of the waiting adapters, one by one."""

    def __init__(self, pulls: Pulls) -> None:
        self._pulls = pulls

    async def step(self) -> None:
        """Pull all adapters that wait now. Raises RedisError."""
        store, adapters = self._pulls.store, self._pulls.services.control.adapters.store
        await store.drafts.enter_left()
        await asyncio.to_thread(adapters.sweep, KEPT_SECONDS, time.time(), pulled=True)
        while (pull := await store.next()) is not None:
            ended = await run_until(self._pull(pull), self._until_cancelled(pull))
            if ended is not None:
                after = {"pull": ended.id, "source": ended.source, "version": ended.version, "error": ended.error}
                await store.end(msgspec.structs.replace(ended, ended_at=time.time()), f"pull.{ended.state}", after)
                if ended.state == "done":  # only now: a pull that is repeated before its end finds its files
                    await asyncio.to_thread(shutil.rmtree, self._folder(pull), ignore_errors=True)

    async def _until_cancelled(self, pull: Pull) -> None:
        """Wait until an admin has ended the pull."""
        snapshot, seen_generation = self._pulls.services.snapshot, -1
        while True:
            if snapshot.current.generation != seen_generation:
                seen_generation = snapshot.current.generation
                record = await self._pulls.store.get(pull.id)
                if record is None or record.state != "running":
                    return
            await asyncio.sleep(LOOK_INTERVAL_SECONDS)

    async def _pull(self, pull: Pull) -> Pull:
        """Do the pull. Return it with its end."""
        folder = self._folder(pull)
        try:
            fetched = await self._fetch(pull, folder)
            if fetched.error:
                raise Problem("adapter_rejected", fetched.error)
            upload = await asyncio.to_thread(_upload_of, pull, folder)
            pusher = Pusher(pull.by, pull.owner)
            version, created = await add_version(
                self._pulls.releases, pusher, upload, pull.task, pull.pool, [self._pulls.store.running(pull)]
            )
        except Problem as problem:
            return msgspec.structs.replace(pull, state="failed", error=problem.message)
        except (RedisError, ConnectionError, TimeoutError):
            raise
        except Exception as fault:  # repeated, it would block all others for ever
            log.exception("a fault at the pull %s", pull.id)
            error = f"A fault of the gateway's ({type(fault).__name__}): see its log."
            return msgspec.structs.replace(pull, state="failed", error=error)
        # this pull may have entered it in an earlier try, whose end could not be stored
        created = created or (version.created_by == pull.by and version.created_at >= pull.created_at)
        return msgspec.structs.replace(
            pull, state="done", source=fetched.address, version=version.name, created=created, left_out=fetched.left_out
        )

    def _folder(self, pull: Pull) -> Path:
        """The folder of the files; another pull of the same address and digest has the same."""
        wanted = hashlib.sha256(f"{pull.address} {pull.digest}".encode()).hexdigest()[:16]
        return self._pulls.services.control.adapters.store.folder / f"{PULLED}{wanted}"

    async def _fetch(self, pull: Pull, folder: Path) -> FetchResult:
        """Raises Problem."""
        settings = self._pulls.services.settings
        job = FetchJob(
            address=pull.address,
            folder=str(folder),
            digest=pull.digest,
            size_bytes_max=settings.limits.adapter_bytes_max,
            free_bytes_min=FREE_BYTES_MIN,
            settings=settings.pulls.fetch_settings(),
        )
        longest, advice = settings.pulls.pull_seconds_max, "pull it again to go on, or set pulls.pull_seconds_max"
        note = partial(self._note, pull, folder)
        return await run_process(COMMAND, job, FetchResult, longest, advice=advice, note=note)

    async def _note(self, pull: Pull, folder: Path, progress: ProgressStep) -> None:
        """Publish the progress, and mark the folder as in use."""
        with contextlib.suppress(FileNotFoundError):
            os.utime(folder)
        await self._pulls.store.tell(pull.id, progress)


def _upload_of(pull: Pull, folder: Path) -> Upload:
    """The fetched files in the form of an upload. Blocks. Raises Problem (422)."""
    manifest, signature = folder / MANIFEST_FILE, folder / SIGNATURE_FILE
    if pull.manifest is not None:
        manifest = folder / "given.yaml"
        written = write_plain_yaml(pull.manifest)
        try:
            manifest.write_bytes(written)
        except OSError as error:
            text = f"The adapter can't be kept ({error.strerror}): make room for the adapter store."
            raise Problem("adapter_rejected", text) from None
    if not manifest.is_file():
        text = f"There is no {MANIFEST_FILE} at {pull.address}: put one there, or give it with the pull."
        raise Problem("adapter_rejected", text)
    return Upload(folder / "adapter", manifest, signature if signature.is_file() else None, {})
