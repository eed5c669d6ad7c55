"""Admin endpoints for the whole state: export, compare, apply. gateway/admin/state_file.py describes the file.

An apply first refuses a file that can't be applied. Then it takes four steps:
1. Create the versions, in one atomic step.
2. Place the versions that aliases and rules need, as `stage` does.
3. Move aliases, rules and keys, in one atomic step.
4. Stage the previous versions of new aliases, and retire versions.
An apply that ends before step 3 leaves every alias, rule and key as it was, and can be repeated.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal, cast

import msgspec
from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from redis.asyncio import Redis

from gateway.admin.state_checks import (
    find_missing_bytes,
    pass_gate_together,
    see_that_it_can_be_done,
    validate_file,
    with_pending,
)
from gateway.admin.state_file import (
    ABSENT,
    KINDS,
    Difference,
    FileObject,
    Kind,
    Objects,
    compare_objects,
    find_kept,
    find_retired,
    predict_generations,
    rebase_file,
    show_object,
    write_file,
)
from gateway.approvers import find_owner_to_keep, remember_owner
from gateway.audit import enter_event
from gateway.callers import Caller
from gateway.endpoint_parts import OBJECTS_MAX, Admin, Body, conflicts, services_of
from gateway.errors import Problem
from gateway.features.releases.adapter_endpoints import state_of
from gateway.features.releases.adding import verify_for
from gateway.openapi_parts import ACCEPTED, CHANGE_ERRORS, FORM_ERRORS, as_form, with_body, with_errors
from gateway.release_gate import PastGate, keep_leaders
from gateway.server.adapter_uploads import FORM_SCHEMAS, NEEDED
from gateway.services import Services
from gateway.state.audited_step import AuditedStep
from gateway.state.redis import read_installation_id
from gateway.state.snapshot import READERS, object_store_of
from monitoring.redis_time import read_redis_time
from serving.adapters import canonical
from serving.adapters import manifest as manifests
from serving.adapters.errors import ArtifactError
from serving.adapters.manifest import ManifestError
from serving.adapters.registry import find_role_changes, new_salt
from serving.adapters.versions_and_aliases import PLACED, AliasEntry, CanaryEntry, Version
from serving.object_store import Change, Stale, Unchanged, guard_read

WAIT_SECONDS_MAX = 600.0
POLL_SECONDS = 0.5
SWITCH_TRIES_MAX = 20
LEFT_AT_KEY = "apprentice:state:left_at"
"""A hash for each other installation: the generation that each object had here after its last file was applied."""
router = APIRouter(prefix="/admin/v1", tags=["admins"])
Steps = list[Difference]


class HeldIn(Body):
    """An object of a file: its value (null: it is to be removed), and the generation that it had there."""

    generation: int = Field(ge=0, le=2**53)
    value: dict[str, Any] | None


Section = Annotated[dict[str, HeldIn] | None, Field(None, max_length=100_000)]


class StateIn(Body):
    """A state. A kind that is left out is left as it is."""

    format: Literal[1]
    installation: str | None = Field(None, pattern="^[0-9a-f]{16}$", description="Whose generations they are.")
    versions: Section
    aliases: Section
    overrides: Section
    callers: Section

    def objects(self) -> Objects:
        """The state in the form that state_file.py compares."""
        sections: dict[Kind, dict[str, HeldIn] | None] = {kind: getattr(self, kind) for kind in KINDS}
        return {
            kind: {name: FileObject(entry.generation, entry.value) for name, entry in section.items()}
            for kind, section in sections.items()
            if section is not None
        }


class ApplyIn(Body):
    """A state that is to be the present one from now on."""

    state: StateIn
    force: bool = Field(False, description="Whether the file's generations do not count.")
    past_gate: PastGate = None
    dry_run: bool = Field(False, description="Whether only to see that it can be done; bytes may be missing then.")
    prune: bool = Field(False, description="Whether aliases, rules and keys that the file does not name are removed.")
    wait_seconds: float = Field(60.0, ge=0, le=WAIT_SECONDS_MAX, description="Longest wait for versions to be placed.")


@router.get("/state")
async def export_state(
    request: Request, admin: Admin, only: Annotated[list[Kind] | None, Query(max_length=4)] = None
) -> dict[str, Any]:
    """All that admins have set, without secrets."""
    services, scope = services_of(request), request.scope
    services.accesses.state_read(admin.public, scope.get("client"), scope.get("server"), request.url.path)
    redis = services.redis
    present = await _present(redis)
    return write_file({kind: present[kind] for kind in only or KINDS}, await read_installation_id(redis))


@router.post("/state/diff")
async def compare_state(request: Request, body: StateIn, admin: Admin, prune: bool = False) -> dict[str, Any]:
    """The steps of applying a state. Nothing is changed."""
    services = services_of(request)
    present = await _present(services.redis)
    file = await _read(services, admin, body, present)
    steps = _steps(services, present, file, prune)
    rows = [
        {**step.to_json(), "missing": None if step.action != "create" else find_missing_bytes(services, step)}
        for step in steps
    ]
    names = [] if prune else [{"kind": kind, "name": name} for kind, name in find_kept(present, file)]
    return {
        "changes": rows,
        "kept": names,
        "retired_here": find_retired(present, file),
        "from_here": await _is_from_here(services, body),
    }


@router.post(
    "/state/adapters",
    status_code=201,
    responses=with_errors("not_found", *FORM_ERRORS),
    openapi_extra=with_body(as_form(FORM_SCHEMAS, NEEDED)),
)
async def store_adapter(request: Request, admin: Admin) -> dict[str, Any]:
    """Verify an uploaded adapter and keep its bytes, for a state."""
    services = services_of(request)
    async with services.control.adapters.uploads.receive(request) as upload:
        try:
            manifest = await asyncio.to_thread(manifests.read_manifest, upload.manifest)
            pool = upload.fields.get("pool") or ""
            if pool not in services.control.adapters.bases:
                raise Problem("not_found", f"There is no pool {pool[:80]!r} that takes adapters.", "pool")
            claimed = manifest.base_fingerprint
            artifact = await asyncio.to_thread(verify_for, services, pool, upload.folder, claimed)
            event = {"digest": artifact.digest, "pool": pool, "size_bytes": artifact.size_bytes}
            await enter_event(services, admin, "adapter.store", artifact.digest, event)
            await asyncio.to_thread(services.control.adapters.store.put, upload.folder, artifact)
        except (ArtifactError, ManifestError) as error:
            raise Problem("adapter_rejected", str(error), "path") from error
        except OSError as error:
            raise Problem("adapter_rejected", f"The adapter can't be stored: {error.strerror}.", "path") from error
    return {"digest": artifact.digest, "size_bytes": artifact.size_bytes}


@router.post(
    "/state/apply",
    responses=with_errors(*CHANGE_ERRORS, "adapter_rejected", "approver_must_differ", "gate_not_passed") | ACCEPTED,
)
async def apply_state(request: Request, response: Response, body: ApplyIn, admin: Admin) -> dict[str, Any]:
    """Bring the state to that of a file.

    Answers 202 where versions are not placed within `wait_seconds`; the same call again goes on from there.
    """
    services = services_of(request)
    present = await _present(services.redis)
    file = await _read(services, admin, body.state, present)
    evidence = {"state": canonical.digest(body.state.model_dump(exclude_none=True))}
    steps = _steps(services, present, file, body.prune)
    from_here = await _is_from_here(services, body.state)
    await see_that_it_can_be_done(
        services, admin, steps, body.force, body.past_gate, from_here, bytes_too=not body.dry_run
    )
    if body.dry_run:
        return {"applied": [], "pending": [], "warnings": []}
    done = await _make_versions(services, admin, steps, evidence)
    placed, pending = await _place(services, admin, steps, body.wait_seconds)
    done, warnings = done + placed, list[str]()
    if pending:
        response.status_code = 202
    else:
        moved, warnings = await _switch(services, admin, steps, body.past_gate, evidence)
        done += moved + await _stage_previous(services, admin, steps) + await _give_up(services, admin, steps, evidence)
        if not from_here:
            await _remember(services.redis, body.state.installation or "", predict_generations(present, file, moved))
    await services.snapshot.refresh()
    applied, left = ([step.to_json() for step in some] for some in (done, pending))
    return {"applied": applied, "pending": left, "warnings": warnings}


async def _is_from_here(services: Services, state: StateIn) -> bool:
    """Return whether the file's generations are of this installation. A file without an installation counts as its."""
    return state.installation in (None, await read_installation_id(services.redis))


async def _read(services: Services, admin: Caller, state: StateIn, present: Objects) -> Objects:
    """The file, with the generations that are expected here. Raises Problem (400), and Unreadable if an object here
    can't be read."""
    file = await asyncio.to_thread(validate_file, state.objects())
    await asyncio.to_thread(_see_that_all_can_be_read, present)
    file = with_pending(services, admin, present, file)
    if await _is_from_here(services, state):
        return file
    raw: Mapping[bytes, bytes] = await cast("Any", services.redis).hgetall(f"{LEFT_AT_KEY}:{state.installation}")
    places = {tuple(place.decode().split(" ", 1)): int(generation) for place, generation in raw.items()}
    return rebase_file(file, present, cast("Mapping[tuple[str, str], int]", places))


def _see_that_all_can_be_read(present: Objects) -> None:
    for kind, section in present.items():
        for name, entry in section.items():
            if entry.value is not None:
                with guard_read(kind, name):
                    READERS[kind](name, entry.value)


async def _remember(redis: Redis, installation: str, left: Mapping[tuple[str, str], int]) -> None:
    """Store the generation that each object of another installation's file now has here, for its next file.

    If the gateway is killed just before, the next file is stale until the same file is applied again.
    """
    if left:
        fields = {f"{kind} {name}": generation for (kind, name), generation in left.items()}
        await cast("Any", redis).hset(f"{LEFT_AT_KEY}:{installation}", mapping=fields)


def _steps(services: Services, present: Objects, file: Objects, prune: bool) -> Steps:
    """All steps, with a note on each key whose models are unknown here."""
    previous_versions = {name: task.previous_versions_kept for name, task in services.settings.tasks.items()}
    models_known = {"*", *previous_versions, *services.settings.pools, *present["versions"], *file.get("versions", {})}
    steps = compare_objects(present, file, prune, previous_versions, time.time())
    for at, step in enumerate(steps):
        models = (step.after or {}).get("models") or () if step.kind == "callers" else ()
        unknown = [name[:80] for name in models if name not in models_known]
        if unknown:
            steps[at] = replace(step, note=f"there is no model {', '.join(unknown)} here")
    return steps


async def _present(redis: Redis) -> Objects:
    """All objects with their generations, read in one transaction."""
    async with redis.pipeline(transaction=True) as pipe:
        for kind in KINDS:
            object_store = object_store_of(redis, kind)
            pipe.hgetall(object_store.values)
            pipe.hgetall(object_store.generation_names)
        raw: list[Mapping[bytes, bytes]] = await pipe.execute()
    objects: dict[Kind, dict[str, FileObject]] = {}
    for kind, values, generations in zip(KINDS, raw[::2], raw[1::2], strict=True):
        section = {name.decode(): FileObject(int(generation), None) for name, generation in generations.items()}
        for name, value in values.items():
            generation = section.get(name.decode(), ABSENT).generation
            with guard_read(kind, name.decode()):
                section[name.decode()] = FileObject(generation, msgspec.json.decode(value, type=dict[str, Any]))
        objects[kind] = section
    return objects


async def _make_versions(services: Services, admin: Caller, steps: Steps, evidence: dict[str, Any]) -> Steps:
    """Create the versions in one atomic step, only if no object of the apply has changed since it was read."""
    made = [step for step in steps if step.kind == "versions" and step.action == "create"]
    if not made:
        return []
    others = [step for step in steps if step not in made and not (step.action == "stage" and step.generation == 0)]
    names = {step.name for step in made}
    owner = find_owner_to_keep(services, admin)
    pushed: dict[str, Any] = {} if owner is None else {"created_by": admin.public, "owner": owner}
    pushed["changed_at"] = await read_redis_time(services.redis)
    changes: list[Change | Unchanged] = [
        Change(
            object_store_of(services.redis, "versions"),
            step.name,
            # The admin who applies the file counts as the version's pusher, who may not be the one to release it.
            {**(step.after or {}), **pushed},
            step.generation,
        )
        for step in made
    ]
    changes += [
        Unchanged(object_store_of(services.redis, step.kind), step.name, step.generation)
        for step in others
        if not (step.kind == "versions" and step.name in names)
    ]
    with conflicts():
        await _noted(services, admin, made, evidence).take(changes)
    return made


async def _place(services: Services, admin: Caller, steps: Steps, wait_seconds: float) -> tuple[Steps, Steps]:
    """Stage versions, and wait. Return the placed ones and the pending ones. Raises Problem if one failed."""
    stagings = {step.name: step for step in steps if step.action == "stage"}
    for name in stagings:
        with conflicts():
            before = (await services.control.registry.version(name)).state
            if before not in PLACED and before != "staging":
                await _stage(services, admin, name)
    until = time.monotonic() + wait_seconds
    while True:
        await services.snapshot.refresh()
        states = {name: await services.control.registry.version(name) for name in stagings}
        failed = [version for version in states.values() if version.state not in PLACED | {"staging"}]
        if failed:
            text = "; ".join(
                f"{version.name} was not loaded and is {version.state}: {version.note}" for version in failed
            )
            raise Problem("state_conflict", f"{text}. Aliases, rules and keys are as they were.")
        pending = [stagings[name] for name, version in states.items() if version.state == "staging"]
        if not pending or time.monotonic() >= until:
            return [step for step in stagings.values() if step not in pending], pending
        await services.snapshot.next(POLL_SECONDS)


async def _switch(
    services: Services, admin: Caller, steps: Steps, past_gate: str | None, evidence: dict[str, Any]
) -> tuple[Steps, list[str]]:
    """Move aliases, their versions' states, rules and keys in one atomic step. Return the steps and the gate's
    warnings. Raises Problem (409)."""
    moved = [step for step in steps if step.action in ("create", "change", "remove") and step.kind != "versions"]
    if not moved:
        return [], []
    for kind, object_store in (("overrides", services.objects.overrides), ("callers", services.objects.callers)):
        added = sum(step.action == "create" for step in moved if step.kind == kind)
        if added and added + len(await object_store.all()) > OBJECTS_MAX:
            raise Problem("state_conflict", f"There would be more than {OBJECTS_MAX} {kind}.")
    now = await read_redis_time(services.redis)
    objects = [
        Change(object_store_of(services.redis, step.kind), step.name, _begun(step, now), step.generation)
        for step in moved
    ]
    for step in moved:
        if step.kind == "callers" and step.action == "remove":
            objects += remember_owner(services, step.name, step.before or {})
        if step.kind == "aliases" and step.action == "remove":
            keep = await keep_leaders(services, step.name)
            objects.append(keep(msgspec.convert(step.before, AliasEntry)))
    passed = await pass_gate_together(services, admin, moved, past_gate)
    objects += passed.changes
    noted = _noted(services, admin, moved, {**evidence, "gate": passed.evidence} if passed.evidence else evidence)
    for tries_left in reversed(range(SWITCH_TRIES_MAX)):
        registry = services.control.registry
        generations, versions = await registry.generations(), await registry.versions()
        with conflicts():
            roles = list(_role_changes(services.redis, moved, versions, generations, now))
            try:
                await noted.take([*objects, *roles])
                break
            except Stale as stale:
                if stale.name not in versions or not tries_left:
                    raise  # an object of the file has changed; a version that moved meanwhile is read again
    return moved, passed.warnings


def _begun(step: Difference, now: float) -> dict[str, Any] | None:
    """The object to write. An alias gets a salt, and its canary begins now, since its plan counts time here.

    If the same canary is on trial here already, by the same plan beside the same version, its beginning stays.
    """
    value = step.after
    if step.kind != "aliases" or value is None:
        return value
    begun = {**value, "salt": value.get("salt") or new_salt(step.name)}
    if begun.get("rollout") is not None:
        canary = msgspec.convert({**begun["rollout"], "started_at": now}, CanaryEntry)
        before = None if step.before is None else msgspec.convert(step.before, AliasEntry)
        if before is not None and before.leading == msgspec.convert(begun, AliasEntry).leading:
            canary = canary.since(before.canary)
        begun["rollout"] = msgspec.to_builtins(canary)
    return begun


def _role_changes(
    redis: Redis,
    steps: Iterable[Difference],
    versions: Mapping[str, Version],
    generations: Mapping[str, int],
    now: float,
) -> Iterator[Change]:
    """The new states of versions that enter or leave the aliases. Raises RegistryError if one is not placed."""
    object_store = object_store_of(redis, "versions")
    for step in steps:
        if step.kind != "aliases":
            continue
        before, after = (
            None if value is None else msgspec.convert(value, AliasEntry) for value in (step.before, step.after)
        )
        for name, state, note in find_role_changes(step.name, versions, before, after):
            moved = msgspec.structs.replace(versions[name], state=state, note=note, changed_at=now)
            yield Change(object_store, name, cast("dict[str, Any]", msgspec.to_builtins(moved)), generations[name])


async def _stage_previous(services: Services, admin: Caller, steps: Steps) -> Steps:
    """Stage the previous versions of new aliases, without waiting. The version's note gives the reason of a failure."""
    beside = [step for step in steps if step.action == "stage_previous"]
    for step in beside:
        with conflicts():
            await _stage(services, admin, step.name)
    return beside


async def _stage(services: Services, admin: Caller, name: str) -> None:
    """Stage a version, with an audit entry. Raises RegistryError."""
    step = services.begin_step(admin.public)
    await services.control.registry.move(name, "staging", noted=step.noted("adapter.stage", name, state_of))
    await step.enter()


async def _give_up(services: Services, admin: Caller, steps: Steps, evidence: dict[str, Any]) -> Steps:
    """Retire the versions that are retired in the file. The reconciler unloads them."""
    retired = [step for step in steps if step.action == "retire"]
    for step in retired:
        noted = services.begin_step(admin.public)
        with conflicts():
            entry = noted.noted("state.apply", step.name, _version_shown, evidence)
            await services.control.registry.withdraw(step.name, "draining", noted=entry)
        await noted.enter()
    return retired


def _version_shown(version: Version) -> Any:
    return show_object("versions", msgspec.to_builtins(version))


def _noted(services: Services, admin: Caller, steps: Steps, evidence: dict[str, Any]) -> AuditedStep:
    """One change of several objects, with an audit entry for each."""
    noted = services.begin_step(admin.public)
    for step in steps:
        before, after = show_object(step.kind, step.before), show_object(step.kind, step.after)
        step_evidence = {**evidence, "changed": step.changed} if step.changed else evidence
        noted.note("state.apply", step.name, before, after, step_evidence, step.generation + 1)
    return noted
