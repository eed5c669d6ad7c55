"""The table URL → function for admins. Each change is one atomic step, and stands in the audit with who did it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from pydantic import BaseModel, ConfigDict, Field, model_validator

from gateway.callers import Caller, Role, new_key, require
from gateway.endpoints import caller_of, house_of
from gateway.errors import Problem
from gateway.house import House
from router.overrides import OverrideAction
from serving.adapters.artifact import ArtifactError, verify
from serving.adapters.manifest import Manifest, ManifestError, read_manifest
from serving.adapters.probe import ProbeError
from serving.adapters.reconcile import LoadError
from serving.adapters.registry import RegistryError, Version, VersionState
from serving.shelf import Stale

OBJECTS_MAX = 1000
Short = Annotated[str, Field(max_length=256)]


def admin_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """The caller, if it is an admin. Raises Problem (401, 403)."""
    return require(caller, "admin")


def operator_of(caller: Annotated[Caller, Depends(caller_of)]) -> Caller:
    """The caller, if it is an operator or an admin. Raises Problem (401, 403)."""
    return require(caller, "operator", "admin")


Admin = Annotated[Caller, Depends(admin_of)]
Operator = Annotated[Caller, Depends(operator_of)]
router = APIRouter(prefix="/admin/v1", tags=["admins"])


class Body(BaseModel):
    """A body of an admin call: unknown fields are errors."""

    model_config = ConfigDict(extra="forbid")


class AdapterIn(Body):
    """An adapter to import: a folder on the gateway's machine with its safetensors, configuration and manifest."""

    task: str = Field(max_length=63)
    path: str = Field(pattern="^/", max_length=4096, description="Absolute path of the folder.")
    pool: str | None = Field(None, description="The pool it is for; unset: the first whose base it fits.")


class AliasIn(Body):
    """Where a task's requests go from now on: one version, or versions with weights that add up to 1."""

    version: str | None = None
    weights: dict[str, Annotated[float, Field(gt=0, le=1)]] | None = Field(None, max_length=16)
    expected_generation: int | None = Field(None, ge=0, description="409 if the alias has moved on since.")

    @model_validator(mode="after")
    def _one(self) -> AliasIn:
        if (self.version is None) == (self.weights is None):
            raise ValueError("give either version or weights")
        return self


class OverrideIn(Body):
    """A rule that overrules the routing of a task, or of all."""

    action: OverrideAction
    task: str | None = Field(None, max_length=63)
    contains: str | None = Field(None, min_length=1, max_length=500, description="Text, without regard to case.")
    caller: str | None = Field(None, max_length=63, description="A caller's public part.")
    metadata: dict[Short, Short] = Field(default_factory=dict, max_length=16)
    version: str | None = None
    message: str | None = Field(None, max_length=1000)
    expires_at: float | None = Field(None, gt=0, allow_inf_nan=False, description="Unix seconds.")

    @model_validator(mode="after")
    def _whole(self) -> OverrideIn:
        if (self.action == "version") != (self.version is not None):
            raise ValueError("version goes with the action version, and only with it")
        if self.version is not None and self.version.partition("@")[0] != self.task:
            raise ValueError("a version answers its own task alone: give that task")
        return self


class CallerIn(Body):
    """A new key."""

    name: str = Field(min_length=1, max_length=100)
    role: Role = "caller"
    models: list[Short] = Field(default_factory=lambda: ["*"], min_length=1, max_length=1000)
    expires_at: float | None = Field(None, gt=0, allow_inf_nan=False, description="Unix seconds.")


@router.get("/adapters")
async def list_adapters(request: Request, _: Operator) -> dict[str, Any]:
    """All versions, with their state, where they are loaded, and their share of their task's requests."""
    house = house_of(request)
    snapshot = await house.snapshot.refresh()
    ordered = sorted(snapshot.versions.values(), key=lambda version: (version.task, version.number))
    return {"adapters": [_shown(house, version) for version in ordered]}


@router.get("/adapters/{name}")
async def read_adapter(request: Request, name: str, _: Operator) -> dict[str, Any]:
    """One version with its manifest."""
    house = house_of(request)
    version = await _version(house, name)
    await house.snapshot.refresh()
    return {**_shown(house, version), "manifest": version.manifest}


@router.post("/adapters", status_code=201)
async def import_adapter(request: Request, body: AdapterIn, admin: Admin) -> dict[str, Any]:
    """Verify an adapter, copy it into the store and enter it as the task's next version. No engine hears of it yet."""
    house = house_of(request)
    if body.task not in house.settings.tasks:
        raise Problem("not_found", f"The configuration has no task {body.task!r}.", "task")
    folder = Path(body.path)
    try:
        manifest_path = next(
            (p for p in (folder / "manifest.yaml", folder.parent / "manifest.yaml") if p.is_file()), None
        )
        if manifest_path is None:
            raise Problem("adapter_rejected", f"There is no manifest.yaml in {folder} or beside it.", "path")
        manifest = read_manifest(manifest_path)
        if manifest.task != body.task:
            raise Problem("adapter_rejected", f"The manifest is for the task {manifest.task!r}.", "task")
        _check_bounds(house, body.task, manifest)
        pool = _pool_for(house, body.pool, manifest.base_fingerprint)
        base = house.bases[pool]
        artifact = await asyncio.to_thread(verify, folder, base, claimed_fingerprint=manifest.base_fingerprint)
        await asyncio.to_thread(house.store.put, folder, artifact)
    except (ArtifactError, ManifestError) as error:
        raise Problem("adapter_rejected", str(error), "path") from error
    except OSError as error:
        raise Problem("adapter_rejected", f"The adapter can't be read or stored: {error.strerror}.", "path") from error
    with _conflicts():
        version = await house.registry.register(body.task, pool, artifact, manifest, admin.public)
    await _audit(house, admin, "adapter.import", version.name, None, {"digest": version.digest, "pool": pool})
    await house.snapshot.refresh()
    return _shown(house, version)


@router.post("/adapters/{name}/load")
async def load_adapter(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Load the version on every replica of its pool and probe it there; it is then ready to be an alias's version."""
    house = house_of(request)
    version = await _version(house, name)
    serving = version.state in ("active", "standby")
    if not serving:
        with _conflicts():
            version = await house.registry.move(name, "staging")
    replicas = [replica for replica in house.fleet.in_pool(version.pool) if replica.up]
    done = await asyncio.gather(
        *(house.reconciler.load(replica, version) for replica in replicas), return_exceptions=True
    )
    failed = [error for error in done if isinstance(error, BaseException)]
    if not serving:
        with _conflicts():
            version = await house.registry.move(name, _after_staging(failed, len(done)), "; ".join(map(str, failed)))
    await _audit(house, admin, "adapter.load", name, None, {"state": version.state}, [str(e) for e in failed])
    await house.snapshot.refresh()
    for error in failed:
        if not isinstance(error, (LoadError, ProbeError)):
            raise error
    if len(failed) == len(done):
        text = "; ".join(map(str, failed)) or f"no replica of the pool {version.pool} is up"
        raise Problem("state_conflict", f"{name} was not loaded and is {version.state}: {text}")
    return _shown(house, version)


def _after_staging(failed: list[BaseException], tried: int) -> VersionState:
    """The state that a version has once it was loaded everywhere it could be."""
    if any(isinstance(error, ProbeError) for error in failed):
        return "quarantined"
    return "verified" if len(failed) == tried else "ready"


@router.post("/adapters/{name}/unload")
async def unload_adapter(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Take the version off every replica. Running answers finish. Refused while an alias sends requests to it."""
    house = house_of(request)
    version = await _version(house, name)
    with _conflicts():
        version = await house.registry.withdraw(name)
    await house.snapshot.refresh()
    for replica in house.fleet.in_pool(version.pool):
        if replica.up:
            with _conflicts():
                await house.reconciler.unload(replica, version)
    await _audit(house, admin, "adapter.unload", name, None, {"state": version.state})
    return _shown(house, version)


@router.post("/adapters/{name}/retire")
async def retire_adapter(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Give a version up for good. Its bytes stay in the store, since an engine could still read them."""
    house = house_of(request)
    version = await _version(house, name)
    with _conflicts():
        version = await house.registry.move(name, "retired")
    await _audit(house, admin, "adapter.retire", name, None, {"state": "retired"})
    await house.snapshot.refresh()
    return _shown(house, version)


@router.get("/aliases")
async def list_aliases(request: Request, _: Operator) -> dict[str, Any]:
    """All aliases with their weights and generations."""
    house = house_of(request)
    aliases, generations = await house.registry.aliases(), await house.registry.alias_generations()
    return {"aliases": {t: {**msgspec.to_builtins(a), "generation": generations[t]} for t, a in aliases.items()}}


@router.put("/aliases/{task}")
async def move_alias(request: Request, task: str, body: AliasIn, admin: Admin) -> dict[str, Any]:
    """Swap: from now on the task's new requests go to this version. Requests under way keep theirs."""
    house = house_of(request)
    if task not in house.settings.tasks:
        raise Problem("not_found", f"The configuration has no task {task!r}.")
    weights = body.weights or {body.version or "": 1.0}
    for name in weights:
        version = await _version(house, name)
        if not any(name in replica.loaded for replica in house.fleet.in_pool(version.pool)):
            raise Problem("state_conflict", f"{name} is on no replica: load it first.")
    before = (await house.registry.aliases()).get(task)
    with _conflicts():
        generation = await house.registry.point(task, weights, body.expected_generation)
    await _audit(house, admin, "alias.move", task, before.weights if before else None, weights, generation=generation)
    await house.snapshot.refresh()
    return {"task": task, "weights": weights, "generation": generation}


@router.get("/overrides")
async def list_overrides(request: Request, _: Operator) -> dict[str, Any]:
    """All rules, in the order in which they are tried."""
    return {
        "overrides": [{"id": name, **raw} for name, raw in sorted((await house_of(request).overrides.all()).items())]
    }


@router.put("/overrides/{name}")
async def set_override(request: Request, name: str, body: OverrideIn, admin: Admin) -> dict[str, Any]:
    """Set a rule. Rules are tried in the order of their names; the first that matches decides."""
    house = house_of(request)
    if not name.isascii() or not name.replace("-", "").replace("_", "").isalnum() or len(name) > 63:
        raise Problem("invalid_value", "A rule's name has letters, digits, - and _, at most 63.", "name")
    if body.task is not None and body.task not in house.settings.tasks:
        raise Problem("not_found", f"The configuration has no task {body.task!r}.", "task")
    if body.version is not None:
        await _version(house, body.version)
    before = await house.overrides.get(name)
    if before is None and len(await house.overrides.all()) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} rules already.")
    value = body.model_dump(exclude_none=True)
    generation = await house.overrides.put(name, value)
    await _audit(house, admin, "override.set", name, before, value, generation=generation)
    await house.snapshot.refresh()
    return {"id": name, **value, "generation": generation}


@router.delete("/overrides/{name}")
async def delete_override(request: Request, name: str, admin: Admin) -> dict[str, Any]:
    """Remove a rule."""
    house = house_of(request)
    before = await house.overrides.get(name)
    if before is None:
        raise Problem("not_found", f"There is no rule {name[:80]!r}.")
    generation = await house.overrides.delete(name)
    await _audit(house, admin, "override.delete", name, before, None, generation=generation)
    await house.snapshot.refresh()
    return {"id": name, "generation": generation}


@router.get("/callers")
async def list_callers(request: Request, _: Operator) -> dict[str, Any]:
    """All keys by their public part; secrets are not kept."""
    snapshot = await house_of(request).snapshot.refresh()
    return {"callers": [_caller_shown(caller) for caller in snapshot.callers.values()]}


@router.post("/callers", status_code=201)
async def make_caller(request: Request, body: CallerIn, admin: Admin) -> dict[str, Any]:
    """Make a key. The answer is the only place where the whole of it is ever shown."""
    house = house_of(request)
    if len(house.snapshot.current.callers) >= OBJECTS_MAX:
        raise Problem("state_conflict", f"There are {OBJECTS_MAX} keys already: delete some.")
    key, public, digest = new_key()
    caller = Caller(public, body.name, body.role, digest, frozenset(body.models), body.expires_at)
    await house.callers.put(public, caller.to_json(), 0)
    await _audit(house, admin, "caller.make", public, None, _caller_shown(caller))
    await house.snapshot.refresh()
    return {**_caller_shown(caller), "key": key}


@router.delete("/callers/{public}")
async def delete_caller(request: Request, public: str, admin: Admin) -> dict[str, Any]:
    """Revoke a key, on every gateway within the snapshot's interval."""
    house = house_of(request)
    before = await house.callers.get(public)
    if before is None:
        raise Problem("not_found", f"There is no key {public[:20]!r} that could be deleted.")
    await house.callers.delete(public)
    await _audit(house, admin, "caller.delete", public, {"name": before["name"], "role": before["role"]}, None)
    await house.snapshot.refresh()
    return {"public": public}


@router.get("/replicas")
async def list_replicas(request: Request, _: Operator) -> dict[str, Any]:
    """The fleet as this gateway sees it."""
    now = time.monotonic()
    rows = [
        {
            "name": replica.name,
            "pool": replica.config.pool,
            "url": replica.config.url,
            "up": replica.up,
            "engine_version": replica.engine_version,
            "in_flight": replica.in_flight,
            "resting_seconds": max(0.0, replica.resting_until - now),
            "loaded": sorted(replica.loaded),
        }
        for replica in house_of(request).fleet.replicas.values()
    ]
    return {"replicas": rows}


@router.get("/audit")
async def read_audit(
    request: Request,
    _: Operator,
    after: Annotated[int, Query(ge=0, le=2**53)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """The audit, oldest first: who changed what, when, from what to what. Hash-chained."""
    entries = await house_of(request).audit.read(after, limit)
    return {"entries": [msgspec.to_builtins(entry) for entry in entries]}


def _check_bounds(house: House, task: str, manifest: Manifest) -> None:
    """The version's own sampling keeps the bounds that the operator set. Raises Problem (422)."""
    most = house.settings.tasks[task].max_tokens_max
    for sampling in (manifest.sampling, manifest.blueprint.sampling):
        if sampling.get("max_tokens", 0) > most:
            raise Problem("adapter_rejected", f"The manifest samples more than the task's {most} tokens.", "path")


def _pool_for(house: House, named: str | None, fingerprint: str | None) -> str:
    """The pool whose base model the adapter was trained on. Raises Problem (404, 422)."""
    if named is not None and named not in house.bases:
        raise Problem("not_found", f"There is no pool {named!r} that takes adapters.", "pool")
    candidates = [named] if named else list(house.bases)
    fitting = [pool for pool in candidates if fingerprint in (None, house.bases[pool].fingerprint)]
    if not fitting:
        raise Problem("adapter_rejected", f"No pool serves the adapter's base model ({fingerprint}).", "path")
    return fitting[0]


async def _version(house: House, name: str) -> Version:
    try:
        return await house.registry.version(name)
    except KeyError:
        raise Problem("not_found", f"There is no version {name[:80]!r}.") from None


def _shown(house: House, version: Version) -> dict[str, Any]:
    alias = house.snapshot.current.policy.aliases.get(version.task)
    return {
        "version": version.name,
        "task": version.task,
        "pool": version.pool,
        "state": version.state,
        "share": alias.weights.get(version.name, 0.0) if alias else 0.0,
        "digest": version.digest,
        "base_fingerprint": version.base_fingerprint,
        "rank": version.rank,
        "size_bytes": version.size_bytes,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "note": version.note,
        "replicas": {r.name: version.name in r.loaded for r in house.fleet.in_pool(version.pool)},
    }


def _caller_shown(caller: Caller) -> dict[str, Any]:
    shown = {"public": caller.public, **caller.to_json()}
    del shown["secret_digest"]
    return shown


class _conflicts:  # noqa: N801 - reads as a verb where it is used
    """Translate what the state does not allow into a 409."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Stale):
            raise Problem("stale_generation", str(error)) from error
        if isinstance(error, (RegistryError, LoadError)):
            raise Problem("state_conflict", str(error)) from error


async def _audit(
    house: House,
    admin: Caller,
    action: str,
    name: str,
    before: Any,
    after: Any,
    evidence: Any = None,
    generation: int | None = None,
) -> None:
    await house.audit.append(
        admin.public, action, name, before=before, after=after, evidence=evidence, generation=generation
    )


def add_to(app: FastAPI) -> None:
    """Put the admins' endpoints into the application."""
    app.include_router(router)
