"""Background job of one gateway: sign the audit's head, and write it to a file and a webhook at an interval."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from pathlib import Path

import httpx

from gateway.admin.audit_heads import AuditHead, line_of, sign_head
from gateway.configuration.sections import AuditSettings
from gateway.errors import SettingsError
from gateway.services import Services
from monitoring.redis_time import read_redis_time
from serving.adapters.signature import SignatureError

log = logging.getLogger(__name__)
TIMEOUT_SECONDS = 5.0


async def keep_audit_head(services: Services) -> None:
    """Write the head to the configured file and webhook, while this gateway has the lease. Runs until cancelled.

    Raises RedisError.
    """
    settings = services.settings.audit
    if settings.head_key_file is None:
        await asyncio.Event().wait()  # nothing to do: without a restart the key file stays unset
    lease = services.lease_job("audit_head")
    await lease.repeat(AuditHeads(services).step, settings.head_interval_seconds)


class AuditHeads:
    """Writer of heads. Each place gets only heads that are newer than the last head that it accepted."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings.audit
        self._filed = 0
        self._posted = 0

    async def step(self) -> None:
        """Write the present head to each place that lacks it. A failure is logged, and the next step tries again.

        Raises RedisError, and SettingsError if the key can't be used.
        """
        newest = [entry async for entry in self._services.control.audit.newest(1)]
        if not newest or self._filed == self._posted == newest[0].number:
            return
        entry, settings = newest[0], self._settings
        head = AuditHead(number=entry.number, digest=entry.digest, at=await read_redis_time(self._services.redis))
        line = line_of(sign_head(head, await asyncio.to_thread(key_of, settings)))
        if settings.head_file is None or self._filed == entry.number or await self._file(settings.head_file, line):
            self._filed = entry.number
        url = settings.head_webhook_url
        if url is None or self._posted == entry.number or await self._post(url, line):
            self._posted = entry.number

    async def _file(self, path: Path, line: bytes) -> bool:
        try:
            await asyncio.to_thread(append_line, path, line)
        except OSError as error:
            log.error("the audit's head can't be written to %s: %s", path, error.strerror)
            return False
        return True

    async def _post(self, url: str, line: bytes) -> bool:
        headers = {"Content-Type": "application/json"}
        try:
            http, seconds = self._services.control.http, TIMEOUT_SECONDS
            async with http.stream("POST", url, content=line, headers=headers, timeout=seconds) as answer:
                answer.raise_for_status()  # its body may never end
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            log.error("audit.head_webhook_url did not take the audit's head: %s", type(error).__name__)
            return False
        return True


def append_line(path: Path, line: bytes) -> None:
    """Append the whole line or nothing to a file that only its owner can read, and sync it. Blocks; raises
    OSError."""
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab", buffering=0) as file:
        size = file.tell()
        if file.write(line) < len(line):
            file.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())


def key_of(settings: AuditSettings) -> bytes:
    """The private key that signs heads, in PEM. Blocks; raises SettingsError if the key can't be used."""
    assert settings.head_key_file is not None, "there is a key where there is a head to sign"
    try:
        key = settings.head_key_file.read_bytes()
        sign_head(AuditHead(number=0, digest="", at=0.0), key)
    except OSError as error:
        text = f"audit.head_key_file: {settings.head_key_file} can't be read: {error.strerror}."
        raise SettingsError(text) from error
    except SignatureError as error:
        raise SettingsError(f"audit.head_key_file: {error}") from error
    return key
