"""The first admin key: from the settings, or made by the first start and written to a file."""

from __future__ import annotations

import logging

from redis.asyncio import Redis

from gateway.callers import Caller, digest_of, new_key, split_key
from gateway.configuration.settings import Settings
from gateway.state.audited_step import AuditedStep
from gateway.state.private_files import keep_secret
from gateway.state.snapshot import object_store_of
from monitoring.audit import Audit
from serving.object_store import Change

log = logging.getLogger(__name__)
FIRST_ADMIN_KEY_FILE = "admin-key"
"""In the data folder."""


async def make_first_admin_key(settings: Settings, redis: Redis, audit: Audit) -> dict[str, Caller]:
    """The admin key of the settings; without one, the first start makes one and writes it to a file, never to a log."""
    if settings.admin_key is not None:
        parts = split_key(settings.admin_key.get_secret_value())
        assert parts is not None, "Settings has seen to it"
        return {parts[0]: Caller(parts[0], "admin", "admin", digest_of(parts[1]), frozenset({"*"}))}
    callers = object_store_of(redis, "callers")
    if not any(raw.get("role") == "admin" for raw in (await callers.all()).values()):
        key, public, digest = new_key()
        path = settings.data_folder.absolute() / FIRST_ADMIN_KEY_FILE
        keep_secret(path, key)  # before it is stored: an admin key that nobody has would lock out everybody
        made = Caller(public, "first admin", "admin", digest, frozenset({"*"})).to_json()
        step = AuditedStep(redis, audit, "system")
        step.note("caller.make", public, after={"name": made["name"], "role": made["role"], "models": made["models"]})
        await step.take([Change(callers, public, made, 0)])
        log.warning("the first admin key is in the file %s: move it to where you keep secrets", path)
    return {}
