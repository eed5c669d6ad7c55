"""The fitted models of versions in Redis, and the progress of fittings.

A model is bytes with a digest. Its entry is in an object store, so each change has a generation and all gateways
notice it. Its bytes are in one hash for each version and kind, by their digest. The progress of a fitting changes
often, and only people read it. So it is stored separately, and gateways are not notified.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace
from redis.asyncio import Redis

from router.fitted import ModelKind
from router.model_bytes import MODEL_BYTES_MAX
from serving.object_store import ObjectStore

Kind = ModelKind
KINDS: tuple[Kind, ...] = get_args(Kind)
STORED_KINDS: Mapping[Kind, str] = MappingProxyType({"scope": "coverage", "confidence": "confidence", "gain": "gain"})
"""The name of each kind in Redis."""
SELECTING: tuple[Kind, ...] = ("scope", "gain")
"""The kinds of models that read a selector's part of a conversation."""
FittingState = Literal["waiting", "fitting", "ready", "failed"]
STATES_KEY = "apprentice:fitted:states"
MODEL_KEY = "apprentice:fitted:model:"


class FittedError(Exception):
    """A model can't be stored, or a stored one is damaged. The message is a sentence that says what to do."""


class FittedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of a stored model. `digest` is the sha256 of its bytes, `fitted_at` in Unix seconds, `by`
    the key of who had it fitted; `summary` holds what people want to know of it, such as how well it separates, and
    what it holds with: the `selector` by which texts were read, and the digest of the `scope` model (None: without
    one) beside which a confidence was calibrated."""

    version: str
    kind: Kind
    digest: str
    bytes: int
    fitted_at: float
    by: str
    summary: dict[str, Any] = {}


class FittingStatus(msgspec.Struct, frozen=True, kw_only=True):
    """The state of a fitting: `progress` from 0 to 1, `stage` in a few words, `error` a sentence if it failed.

    `at` is the time of this state (Unix seconds), `by` the key that requested the fitting.
    """

    state: FittingState
    progress: float = 0.0
    stage: str = ""
    error: str = ""
    at: float = 0.0
    by: str = ""


class FittedStore:
    """Keeps the models of versions in Redis. Every method raises RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis: Any = redis  # replies are bytes; redis-py's types say bytes or str
        self.object_store = ObjectStore(redis, "fitted")

    async def put(self, version: str, kind: Kind, data: bytes, by: str, summary: Mapping[str, Any]) -> FittedEntry:
        """Store a model in place of the earlier one, with the state `ready`. Gateways use it within a second.

        Raises FittedError if it is empty, or larger than MODEL_BYTES_MAX.
        """
        if not 0 < len(data) <= MODEL_BYTES_MAX:
            raise FittedError(
                f"The {kind} model has {len(data):,} bytes, and may have {MODEL_BYTES_MAX:,}: fit it on fewer rows."
            )
        digest = hashlib.sha256(data).hexdigest()
        entry = FittedEntry(
            version=version,
            kind=kind,
            digest=digest,
            bytes=len(data),
            fitted_at=time.time(),
            by=by,
            summary=dict(summary),
        )
        key = _model_key(version, kind)
        before = await self.object_store.get(name_of(version, kind))
        await self._redis.hset(key, digest, data)
        stored = msgspec.to_builtins(entry) | {"kind": STORED_KINDS[kind]}
        await self.object_store.put(name_of(version, kind), stored)
        if before is not None and before["digest"] != digest:
            await self._redis.hdel(key, before["digest"])
        await self.say(version, kind, FittingStatus(state="ready", progress=1.0, by=by))
        return entry

    async def get(self, version: str, kind: Kind) -> bytes | None:
        """A model's bytes, or None. Raises FittedError if the bytes are not those that were stored."""
        entry = (await self.of(version)).get(kind)
        return None if entry is None else await self.bytes_of(entry)

    async def bytes_of(self, entry: FittedEntry) -> bytes | None:
        """The bytes of an entry's model; None if another model has replaced it since.

        Raises FittedError if the bytes are lost or not those that were stored.
        """
        name = name_of(entry.version, entry.kind)
        data: bytes | None = await self._redis.hget(_model_key(entry.version, entry.kind), entry.digest)
        if data is None:
            now = await self.object_store.get(name)
            if now is None or now["digest"] != entry.digest:
                return None
            raise FittedError(f"The {entry.kind} model of {entry.version} is lost: fit it again.")
        if hashlib.sha256(data).hexdigest() != entry.digest:
            raise FittedError(f"The {entry.kind} model of {entry.version} is damaged: fit it again.")
        return data

    async def of(self, version: str) -> dict[Kind, FittedEntry]:
        """The entries of a version, by kind."""
        written = await self.object_store.written([name_of(version, kind) for kind in KINDS])
        entries = (entry_of(name, msgspec.json.decode(raw)) for name, raw in written.items())
        return {entry.kind: entry for entry in entries}

    async def versions(self) -> frozenset[str]:
        """The versions with a model, or with a requested fitting."""
        names = {*await self._redis.hkeys(self.object_store.values), *await self._redis.hkeys(STATES_KEY)}
        return frozenset(name.decode().partition("/")[0] for name in names)

    async def delete(self, version: str, *kinds: Kind) -> None:
        """Forget a version's models of these kinds, or all of them, with their states."""
        for kind in kinds or KINDS:
            if await self.object_store.get(name_of(version, kind)) is not None:
                await self.object_store.delete(name_of(version, kind))
            await self._redis.delete(_model_key(version, kind))
            await self._redis.hdel(STATES_KEY, name_of(version, kind))

    async def say(self, version: str, kind: Kind, fitting: FittingStatus) -> None:
        """Store the progress of a fitting. Gateways are not notified; people read it when they want."""
        status = replace(fitting, at=time.time())
        await self._redis.hset(STATES_KEY, name_of(version, kind), msgspec.json.encode(status))

    async def states(self, version: str) -> dict[Kind, FittingStatus]:
        """The state of each requested fitting of a version."""
        raw = await self._redis.hmget(STATES_KEY, [name_of(version, kind) for kind in KINDS])
        return {
            kind: msgspec.json.decode(status, type=FittingStatus)
            for kind, status in zip(KINDS, raw, strict=True)
            if status is not None
        }

    async def shown(self, version: str, selector: str | None) -> dict[str, Any]:
        """All models of a version, for people: by kind the fitting's state, the stored model's entry or None, and the
        reason why a task with this selector does not use it (None: it does)."""
        states = await self.states(version)  # first: the entries then have each model that is ready
        entries = await self.of(version)
        idle = find_unused(entries, selector)
        models: dict[str, Any] = {}
        for kind in KINDS:
            if kind in entries or kind in states:
                state = states.get(kind) or FittingStatus(state="ready", progress=1.0, at=entries[kind].fitted_at)
                model = entries.get(kind)
                models[kind] = msgspec.to_builtins(state) | {
                    "model": None if model is None else msgspec.to_builtins(model),
                    "unused": idle.get(kind),
                }
        return models


def find_unused(entries: Mapping[Kind, FittedEntry], selector: str | None) -> dict[Kind, str]:
    """The reason why each unused model of a version is not used, as a sentence: it does not fit the task's selector
    (None: any selector fits), or the present scope model."""
    reasons: dict[Kind, str] = {}
    for kind in SELECTING:
        entry = entries.get(kind)
        theirs = entry.summary.get("selector") if entry is not None else None
        if theirs is not None and selector is not None and theirs != selector:
            reasons[kind] = f"It was fitted with another selector ({theirs}; the task has {selector}): fit it again."
    confidence = entries.get("confidence")
    if confidence is not None and ("scope" in reasons or is_calibrated_apart(confidence, entries.get("scope"))):
        reasons["confidence"] = "No calibration: the scope model has changed. Calibrate the version again."
    return reasons


def is_calibrated_apart(confidence: FittedEntry, scope: FittedEntry | None) -> bool:
    """Return True if a confidence was calibrated with a scope model other than this one (None: no scope model)."""
    calibrated_with = confidence.summary.get("scope", confidence.summary.get("coverage", ""))  # the older name
    return bool(calibrated_with not in ("", identify_scores(scope) if scope is not None else None))


def identify_scores(scope: FittedEntry) -> str:
    """The digest by which a calibration identifies a scope model's scores. A model with only new thresholds scores like
    its original, whose digest is in its summary as `scores_as`."""
    return str(scope.summary.get("scores_as", scope.digest))


def name_of(version: str, kind: Kind) -> str:
    """A model's name in the object store."""
    return f"{version}/{STORED_KINDS[kind]}"


def entry_of(_: str, raw: Mapping[str, Any]) -> FittedEntry:
    """An entry of the object store."""
    kind = next((kind for kind, stored in STORED_KINDS.items() if stored == raw.get("kind")), None)
    return msgspec.convert({**raw, "kind": kind}, FittedEntry)


def _model_key(version: str, kind: Kind) -> str:
    return f"{MODEL_KEY}{name_of(version, kind)}"
