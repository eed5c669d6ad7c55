"""Admin endpoints for adapters: add versions, place or retire them, and explain their state.

Admins set the wanted state. The gateway with the reconciling job then loads, probes and unloads versions.
"""

from __future__ import annotations

import asyncio
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError

from gateway.approvers import find_owner_to_keep
from gateway.audit import take_step
from gateway.callers import Caller
from gateway.endpoint_parts import (
    Admin,
    Body,
    ExpectedGeneration,
    OfTask,
    Operator,
    find_version,
    require_task,
    see_state,
    see_that_list_has_task,
)
from gateway.errors import Problem
from gateway.feature import feature_of
from gateway.features.evaluations.endpoints import describe_last_evaluation
from gateway.features.fitting.endpoints import have_fitted, sample_of, selector_of, sentence_of
from gateway.features.releases.adding import Pusher, add_version
from gateway.features.releases.availability import describe_canary
from gateway.features.releases.state import Releases
from gateway.features.rules.endpoints import list_rules_to
from gateway.openapi_parts import ACCEPTED, BYTES, CHANGE_ERRORS, FORM_ERRORS, as_form, with_body, with_errors
from gateway.release_gate import describe_forced, describe_references, judge_release, judge_release_in_full, to_json
from gateway.server.adapter_uploads import FORM_SCHEMAS, NEEDED, OPTIONAL, SAMPLES, Upload, has_own_body_limits
from gateway.state.gate_store import GateStore
from serving.adapters.manifest import read_review_due
from serving.adapters.placement import HELD, Placement
from serving.adapters.versions_and_aliases import PLACED, CanaryEntry, Version, VersionState

WAIT_SECONDS_MAX = 600.0
POLL_SECONDS = 0.5
AUDIT_SEARCHED_MAX = 5000
AUDIT_SHOWN_MAX = 100
SHOWN_AT_ONCE = 100
"""Versions that are shown before others have the event loop."""
NO_ROOM = "no room"
router = APIRouter(prefix="/admin/v1", tags=["admins"])
Wait = Annotated[float, Query(ge=0, le=WAIT_SECONDS_MAX, allow_inf_nan=False, description="Longest wait, in seconds.")]


class AdapterIn(Body):
    """An adapter to import: a folder on the gateway's machine with its safetensors, configuration and manifest.

    Its paths lie inside the setting `import_folders`.
    """

    task: str = Field(max_length=63)
    path: str = Field(pattern="^/", max_length=4096, description="Absolute path of the folder.")
    pool: str | None = Field(
        None, max_length=63, description="The pool it is for; unset: the first whose base it fits."
    )
    prompts: str | None = Field(
        None, pattern="^/", max_length=4096, description="Absolute path of a file with some of its training prompts."
    )
    background: str | None = Field(
        None, pattern="^/", max_length=4096, description="Absolute path of a file with other traffic."
    )


CONTENT: Mapping[str, Any] = {
    **as_form({**FORM_SCHEMAS, **dict.fromkeys(SAMPLES, BYTES)}, NEEDED),
    "application/json": {"schema": AdapterIn.model_json_schema()},
}
"""An adapter in /openapi.json: a form with its files, or a folder."""


@router.get("/adapters", responses=with_errors("not_found"))
async def list_adapters(
    request: Request, _: Operator, task: OfTask = None, state: Annotated[VersionState | None, Query()] = None
) -> dict[str, Any]:
    """All versions with state, placement and share. `stale`: Redis can't be reached, and they are those of the last
    read, without generations.
    """
    releases = feature_of(request, Releases)
    snapshot, stale = await see_state(releases.services)
    generations: dict[str, int] = {}
    if not stale:  # before the versions: never newer than what is shown
        generations = await releases.services.control.registry.generations()
        snapshot = await releases.services.snapshot.refresh()
    ordered = sorted(snapshot.versions.values(), key=lambda version: (version.task, version.number))
    versions = [v for v in ordered if task in (None, v.task) and state in (None, v.state)]
    see_that_list_has_task(releases.services, task, versions)
    placed: dict[str, list[Placement]] = {}
    for placement in snapshot.placements.values():
        placed.setdefault(placement.version, []).append(placement)
    rows = []
    for at, version in enumerate(versions):
        generation = None if stale else generations.get(version.name, 0)
        rows.append(_shown(releases, version, generation, placed.get(version.name, ())))
        if at % SHOWN_AT_ONCE == SHOWN_AT_ONCE - 1:
            await asyncio.sleep(0)
    return {"adapters": rows, "stale": stale, "upload_bytes_max": releases.services.settings.limits.adapter_bytes_max}


@router.get("/adapters/{name}", responses=with_errors("not_found"))
async def read_adapter(request: Request, name: str, _: Operator) -> dict[str, Any]:
    """One version with its manifest, last evaluation and fitted models."""
    releases = feature_of(request, Releases)
    version = await find_version(releases.services, name)
    fitted = await releases.services.control.fitted.shown(name, selector_of(releases.fitting, version.task))
    evaluation = await releases.evaluations.store.latest(name)
    details = {"manifest": version.manifest, "evaluation": evaluation, "fitted": fitted}
    return {**await _describe(releases, version), **details}


@router.post(
    "/adapters",
    status_code=201,
    responses=with_errors(*CHANGE_ERRORS, *FORM_ERRORS, "invalid_json", "prompts_rejected"),
    openapi_extra=with_body(CONTENT),
)
async def add_adapter(request: Request, admin: Admin) -> dict[str, Any]:
    """Verify an adapter and enter it as the task's next version. No engine gets it yet.

    JSON imports a folder inside the setting `import_folders`; multipart/form-data uploads the files. From a sample of
    its training prompts its scope is fitted; GET shows the progress. The same adapter again is the same version, and
    not `created`.
    """
    releases = feature_of(request, Releases)
    services = releases.services
    if has_own_body_limits(request.scope):
        async with services.control.adapters.uploads.receive(request, optional=(*OPTIONAL, *SAMPLES)) as upload:
            if "task" not in upload.fields:
                raise Problem("missing_field", "The form has no field task: add it.", "task")
            return await _add(releases, admin, upload, upload.fields["task"], upload.fields.get("pool"))
    try:
        body = AdapterIn.model_validate_json(await request.body())
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("body", *each["loc"])} for each in error.errors()]) from None
    imported = await asyncio.to_thread(_imported, services.settings.import_folders, body)
    return await _add(releases, admin, imported, body.task, body.pool)


async def _add(releases: Releases, admin: Caller, upload: Upload, task: str, pool: str | None) -> dict[str, Any]:
    require_task(releases.services, task)
    sample = await sample_of(releases.fitting, task, upload.prompts, upload.background)
    pusher = Pusher(admin.public, find_owner_to_keep(releases.services, admin))
    version, created = await add_version(releases, pusher, upload, task, pool)
    fitting = {} if sample is None else await have_fitted(releases.fitting, admin, version, sample)
    return await _describe(releases, version) | fitting | {"created": created, "warnings": _warnings(version.manifest)}


def state_of(version: Version) -> dict[str, Any]:
    """The fields of a version in the audit entry of a change of its state."""
    return {"state": version.state}


def _warnings(manifest: Mapping[str, Any]) -> list[str]:
    """Warnings of manifest fields that are allowed but likely a mistake."""
    due = read_review_due(manifest)
    if due is None or due > time.time():
        return []
    return [f"The manifest's review_by, {manifest['review_by']}, is past: its review is overdue from the start."]


@router.post("/adapters/{name}/stage", responses=with_errors(*CHANGE_ERRORS, "no_capacity") | ACCEPTED)
async def stage_adapter(
    request: Request, response: Response, name: str, admin: Admin, wait_seconds: Wait = 60.0
) -> dict[str, Any]:
    """Load the version on its replicas and probe it.

    Answers 202 if it is not done within `wait_seconds`: it continues, and GET shows the progress.
    """
    releases = feature_of(request, Releases)
    version = await find_version(releases.services, name)
    if misfit := releases.services.control.adapters.reconciler.explain_misfit(version):
        raise Problem("state_conflict", misfit)
    if version.state not in PLACED:
        async with take_step(releases.services, admin) as step:
            noted = step.noted("adapter.stage", name, state_of)
            version = await releases.services.control.registry.move(name, "staging", noted=noted)
        version = await _until(releases, name, wait_seconds, lambda current: current.state != "staging")
    if version.state == "staging":
        response.status_code = 202
    elif version.state not in PLACED:
        code = "no_capacity" if NO_ROOM in version.note else "state_conflict"
        why = version.note.rstrip(".") or "it was taken off again meanwhile"
        raise Problem(code, f"{name} was not loaded and is {version.state}: {why}.")
    return await _describe(releases, version)


@router.post("/adapters/{name}/unload", responses=with_errors(*CHANGE_ERRORS) | ACCEPTED)
async def unload_adapter(
    request: Request, response: Response, name: str, admin: Admin, wait_seconds: Wait = 30.0
) -> dict[str, Any]:
    """Take the version off every replica after its last answer. Refused while an alias sends to it."""
    return await _take_off(request, response, name, admin, wait_seconds, "verified")


@router.post("/adapters/{name}/retire", responses=with_errors(*CHANGE_ERRORS) | ACCEPTED)
async def retire_adapter(
    request: Request,
    response: Response,
    name: str,
    admin: Admin,
    wait_seconds: Wait = 30.0,
    expected_generation: ExpectedGeneration = None,
) -> dict[str, Any]:
    """Retire a version permanently. Its bytes stay in the store, since an engine could still read them."""
    return await _take_off(request, response, name, admin, wait_seconds, "draining", expected_generation)


async def _take_off(
    request: Request,
    response: Response,
    name: str,
    admin: Caller,
    wait_seconds: float,
    state: Literal["verified", "draining"],
    expected_generation: int | None = None,
) -> dict[str, Any]:
    releases = feature_of(request, Releases)
    before = await find_version(releases.services, name)
    if not (state == "draining" and before.state == "retired") or expected_generation is not None:
        action = "adapter.retire" if state == "draining" else "adapter.unload"
        async with take_step(releases.services, admin) as step:
            noted = step.noted(action, name, state_of)
            await releases.services.control.registry.withdraw(
                name, state, noted=noted, expected_generation=expected_generation
            )
    version = await _until(
        releases, name, wait_seconds, lambda current: current.state != "draining" and not _is_placed(releases, current)
    )
    if version.state == "draining" or _is_placed(releases, version):
        response.status_code = 202
    rules = await list_rules_to(releases.services, name)
    text = f"The rules that send to it are left to the task's fallback: {', '.join(rules[:20])}."
    return {**await _describe(releases, version), "warnings": [text] if rules else []}


@router.get("/adapters/{name}/gate", responses=with_errors("not_found"))
async def read_gate(request: Request, name: str, _: Operator) -> dict[str, Any]:
    """The gate's verdict on the version, line by line, whatever `release.gate` is; `running`: evaluations of it now."""
    releases = feature_of(request, Releases)
    version = await find_version(releases.services, name)
    await releases.services.snapshot.refresh()
    forced = await GateStore(releases.services.redis).forced(name)
    report = await judge_release_in_full(releases.services, version, forced)
    running = await releases.evaluations.store.list_running(name)
    return {**to_json(report, releases.services.settings.release.gate, forced), "running": running}


@router.get("/adapters/{name}/why", responses=with_errors("not_found"))
async def why(request: Request, name: str, _: Operator) -> dict[str, Any]:
    """The state of the version in words, with placements and audit."""
    releases = feature_of(request, Releases)
    version = await find_version(releases.services, name)
    snapshot = await releases.services.snapshot.refresh()
    alias = snapshot.aliases.get(version.task)
    canary = alias.canary if alias is not None else None
    shown = await show_canary(releases, version.task, canary) if canary and canary.version == name else None
    fitted = await releases.services.control.fitted.shown(name, selector_of(releases.fitting, version.task))
    evaluation = await releases.evaluations.store.latest(name)
    forced = await GateStore(releases.services.redis).forced(name)
    is_off = releases.services.settings.release.gate == "off"
    gate = [] if is_off else describe_references(await judge_release(releases.services, version))
    first, *others = _words(releases, version, shown)
    paused = describe_canary(releases.services, snapshot, version.task, alias) if shown else []
    words = [first, *paused, *gate, *others, *describe_last_evaluation(evaluation), *describe_forced(name, forced)]
    return {
        "version": name,
        "state": version.state,
        "words": words + [sentence_of(kind, model) for kind, model in fitted.items()],
        "evaluation": evaluation,
        "forced": None if forced is None else msgspec.to_builtins(forced),
        "fitted": fitted,
        "audit": await _audit_of(releases, version),
        "placements": _placed(releases, version),
        "canary": shown,
    }


def _imported(folders: Sequence[Path], body: AdapterIn) -> Upload:
    """The files of an import by path. Blocks. Raises Problem (422) for a forbidden or missing file."""
    folder = import_path(folders, Path(body.path), "adapter_rejected", "path", is_folder=True)
    manifest = _beside(folders, folder, "manifest.yaml")
    if manifest is None:
        raise Problem("adapter_rejected", f"There is no manifest.yaml in {folder} or beside it.", "path")
    samples = {"prompts": body.prompts, "background": body.background}
    prompts, background = (
        import_path(folders, Path(path), "prompts_rejected", param) if path else None for param, path in samples.items()
    )
    return Upload(folder, manifest, _beside(folders, folder, "signature.json"), {}, prompts, background)


def _beside(folders: Sequence[Path], folder: Path, name: str) -> Path | None:
    """The file in the folder or, if it is not there, next to the folder. Raises Problem (422) for a forbidden file."""
    path_found = next((path for path in (folder / name, folder.parent / name) if os.path.lexists(path)), None)
    return None if path_found is None else import_path(folders, path_found, "adapter_rejected", "path")


async def _until(releases: Releases, name: str, seconds: float, done: Callable[[Version], bool]) -> Version:
    """The version, as soon as `done` is true for it, or after `seconds`."""
    until = time.monotonic() + seconds
    while True:
        await releases.services.snapshot.refresh()
        version = await find_version(releases.services, name)
        if done(version) or time.monotonic() >= until:
            return version
        await releases.services.snapshot.next(POLL_SECONDS)


def _is_placed(releases: Releases, version: Version) -> bool:
    """Return whether a replica that is up has the version, or is loading or unloading it."""
    return any(p["state"] not in ("ghost", "failed") for p in _placed(releases, version) if p["up"])


def _placed(releases: Releases, version: Version) -> list[dict[str, Any]]:
    """The placements of one version, as the API shows them."""
    return _placements(releases, _find_placements(releases, version))


def _find_placements(releases: Releases, version: Version) -> list[Placement]:
    placements = releases.services.snapshot.current.placements.values()
    return [placement for placement in placements if placement.version == version.name]


def _placements(releases: Releases, placements: Iterable[Placement]) -> list[dict[str, Any]]:
    return [
        {
            "replica": placement.replica,
            "state": placement.state,
            "since": placement.since,
            "up": placement.replica in releases.services.fleet.replicas
            and releases.services.fleet.replicas[placement.replica].up,
            "note": placement.note,
        }
        for placement in sorted(placements, key=lambda placement: placement.replica)
    ]


async def _describe(releases: Releases, version: Version) -> dict[str, Any]:
    generation = await releases.services.control.registry.generation(version.name)
    version = await find_version(releases.services, version.name)  # after its generation, which is never newer
    await releases.services.snapshot.refresh()
    return _shown(releases, version, generation, _find_placements(releases, version))


def _shown(releases: Releases, version: Version, generation: int | None, placed: Iterable[Placement]) -> dict[str, Any]:
    replicas = releases.services.fleet.replicas
    alias = releases.services.snapshot.current.policy.aliases.get(version.task)
    placements = _placements(releases, placed)
    return {
        "version": version.name,
        "task": version.task,
        "pool": version.pool,
        "state": version.state,
        "share": alias.weights.get(version.name, 0.0) if alias else 0.0,
        "digest": version.digest,
        "manifest_digest": version.manifest_digest,
        "base_fingerprint": version.base_fingerprint,
        "rank": version.rank,
        "size_bytes": version.size_bytes,
        "created_at": version.created_at,
        "created_by": version.created_by,
        "signed_by": version.signed_by,
        "review_by": version.manifest.get("review_by"),
        "review_due": read_review_due(version.manifest),
        "stale_from": releases.services.snapshot.current.get_quality(version.task, version.name).stale_from,
        "note": version.note,
        "generation": generation,
        "placements": placements,
        "wanted": [p["replica"] for p in placements if p["state"] in HELD or p["state"] == "failed"],
        "ready": [p["replica"] for p in placements if p["up"] and version.name in replicas[p["replica"]].loaded],
    }


async def show_canary(releases: Releases, task: str, canary: CanaryEntry) -> dict[str, Any]:
    """A running canary, with its last verdict and the evidence for it."""
    return {**msgspec.to_builtins(canary), **await releases.canary_verdicts.shown(task, canary)}


def _words(releases: Releases, version: Version, canary: dict[str, Any] | None) -> list[str]:
    """The version's situation, with one sentence for each fact."""
    alias = releases.services.snapshot.current.policy.aliases.get(version.task)
    share = alias.weights.get(version.name, 0.0) if alias else 0.0
    words = [f"{version.name} is {version.state}" + (f": {version.note.rstrip('.')}." if version.note else ".")]
    words.append(f"The alias of {version.task} gives it {100 * share:.4g}% of the requests.")
    for placement in _placed(releases, version):
        note = f" ({placement['note'].rstrip('.')})" if placement["note"] else ""
        up = "" if placement["up"] else ", which is down"
        words.append(f"On {placement['replica']}{up} it is {placement['state']}{note}.")
    if canary is not None:
        unsaid = "no verdict yet" if canary["plan"] else "judged by people, since it has no plan"
        words.append(f"Its canary: {canary['because'].rstrip('.') or unsaid}.")
    return words


async def _audit_of(releases: Releases, version: Version) -> list[dict[str, Any]]:
    """The newest audit entries that name the version, the oldest first."""
    entries: list[dict[str, Any]] = []
    async for entry in releases.services.control.audit.naming(version.name, AUDIT_SEARCHED_MAX):
        if entry.object in (version.name, version.task):
            entries.append(msgspec.to_builtins(entry))
        if len(entries) == AUDIT_SHOWN_MAX:
            break
    return entries[::-1]


def import_path(folders: Sequence[Path], path: Path, code: str, param: str, *, is_folder: bool = False) -> Path:
    """The path itself, if it leads to a regular file (or a folder) inside one of the folders.

    Links below the folder are refused. FIFOs and devices are refused everywhere, since reading one may never end.
    Blocks. Raises Problem with `code` and `param`. For a path outside the folders it does not say if it exists.
    """
    if not folders:
        text = "Imports by path are off: add the folder to the setting import_folders, or upload the files."
        raise Problem(code, text, param)
    above = next((folder.absolute() for folder in folders if path.is_relative_to(folder.absolute())), None)
    if above is None or ".." in path.relative_to(above).parts:
        allowed = ", ".join(str(folder.absolute()) for folder in folders)
        raise Problem(code, f"The path is outside the setting import_folders ({allowed}): move it there.", param)
    kind = "folder" if is_folder else "regular file"
    try:
        if Path(os.path.realpath(path, strict=True)) != above.resolve() / path.relative_to(above):
            raise Problem(code, f"A symbolic link leads to {path.name}: name the {kind} itself.", param)
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise Problem(code, f"On the gateway's machine there is no {kind} {path}.", param) from None
    except (OSError, ValueError) as error:
        raise Problem(code, f"{path.name} can't be read ({error}).", param) from None
    if not (stat.S_ISDIR(mode) if is_folder else stat.S_ISREG(mode)):
        raise Problem(code, f"{path.name} is no {kind}.", param)
    return path
