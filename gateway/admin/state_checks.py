"""The checks before a state is applied: each object has the right form, and this gateway has everything it needs."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any, cast

import msgspec
from msgspec.structs import replace
from pydantic import ValidationError

from gateway.admin.key_endpoints import CallerIn, LimitsIn
from gateway.admin.state_file import Difference, FileObject, Kind, Objects
from gateway.approvers import see_that_another_pushed, see_that_it_may_change
from gateway.callers import ALPHABET, PUBLIC_LENGTH, Caller
from gateway.endpoint_parts import require_task
from gateway.errors import Problem
from gateway.features.rules.endpoints import OverrideIn, find_fallback_fault
from gateway.release_gate import GatePass, pass_gate
from gateway.services import Services
from monitoring.quality.verdicts.canary_verdict import CanaryPlan
from monitoring.time_units import YEAR_10000
from router.contract import ContractError, compile_contract
from serving.adapters import manifest as manifests
from serving.adapters.canonical import DIGEST
from serving.adapters.errors import ArtifactError
from serving.adapters.manifest import ManifestError
from serving.adapters.signature import SignatureError, check, from_text
from serving.adapters.verification import verify
from serving.adapters.versions_and_aliases import GIVEN_UP, AliasEntry, CanaryEntry, Version

HASH = re.compile(r"[0-9a-f]{64}")
RULE_NAME = re.compile(r"[A-Za-z0-9_-]{1,63}")


OF_MSGSPEC = re.compile(
    r"Object (?P<kind>missing required|contains unknown) field `(?P<field>[^`]*)`(?: - at `\$\.(?P<inside>[^`]*)`)?"
)


class VersionIn(Version, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version in the form of the file."""


class CanaryState(CanaryEntry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A canary in the form of the file."""


class AliasState(AliasEntry, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An alias in the form of the file."""

    canary: CanaryState | None = msgspec.field(default=None, name="rollout")


def validate_file(file: Objects) -> Objects:
    """The file, with each object in its kind's standard form. Raises Problem (400), which names the faulty object."""
    objects: dict[Kind, dict[str, FileObject]] = {}
    for kind, section in file.items():
        objects[kind] = {}
        for name, entry in section.items():
            try:
                json.dumps(entry.value, allow_nan=False)  # no NaN: the audit and Redis hold JSON
                value = None if entry.value is None else _formed(kind, name, entry.value)
            except (ValueError, KeyError, TypeError, ContractError, ManifestError, msgspec.ValidationError) as error:
                text = f"{kind}: {name[:80]} {_describe_fault(error).rstrip('.')}."
                raise Problem("invalid_value", text, kind) from None
            objects[kind][name] = FileObject(entry.generation, value)
    return objects


def _describe_fault(error: Exception) -> str:
    """The fault of an object and its field, as words to put after the object's name."""
    place, text, kind = "", str(error), ""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place, text, kind = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, "), first["type"]
    elif (match := OF_MSGSPEC.fullmatch(text)) is not None:
        kind = {"missing required": "missing", "contains unknown": "extra_forbidden"}[match["kind"]]
        place = ".".join(filter(None, (match["inside"], match["field"])))
    elif isinstance(error, msgspec.ValidationError):
        text, _, path = text.partition(" - at `$.")
        place = path.rstrip("`")
    if kind == "missing":
        return f"misses the field {place}"
    if kind == "extra_forbidden":
        return f"has a field {place}, and there is no such field"
    return f"can't be used: {f'{place}: ' if place else ''}{text}"


def _formed(kind: Kind, name: str, value: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError (pydantic's too), KeyError, TypeError, ContractError, ManifestError, ValidationError."""
    if kind == "versions":
        version = msgspec.convert(value, VersionIn)
        _check_version(name, version)
        return cast("dict[str, Any]", msgspec.to_builtins(version))
    if kind == "aliases":
        alias = msgspec.convert(value, AliasState)
        _check_alias(name, alias)
        return cast("dict[str, Any]", msgspec.to_builtins(alias))
    if kind == "overrides":
        if not RULE_NAME.fullmatch(name):
            raise ValueError("a rule's name has letters, digits, - and _, at most 63")
        return OverrideIn.model_validate(value).model_dump(exclude_none=True)
    caller = Caller.from_json(name, value)
    _check_caller(caller)
    return caller.to_json()


def _check_version(name: str, version: Version) -> None:
    if (version.name, f"{version.task}@v{version.number}") != (name, name):
        raise ValueError("its name, task and number do not belong together")
    for digest in (version.digest, version.manifest_digest, version.base_fingerprint):
        if not DIGEST.fullmatch(digest):
            raise ValueError(f"{digest[:80]!r} is not a SHA-256 (sha256: and 64 hex digits)")
    if not 0 <= version.created_at < YEAR_10000:
        raise ValueError("its created_at is not a time in Unix seconds")
    if version.state in GIVEN_UP:
        manifests.check_depth(version.manifest)
        return
    manifest = manifests.from_json(version.manifest)
    if (manifest.task, manifest.digest()) != (version.task, version.manifest_digest):
        raise ValueError("its manifest is not the one that its manifest_digest names")
    if manifest.contract is not None:
        compile_contract(manifest.contract)


def _check_alias(task: str, alias: AliasEntry) -> None:
    names = [*alias.weights, *alias.shadow, *alias.previous, *([alias.canary.version] if alias.canary else [])]
    if not alias.weights or abs(sum(alias.weights.values()) - 1) > 1e-6:
        raise ValueError("the weights of an alias add up to 1")
    may_be_zero = alias.canary.version if alias.canary else None  # the monitor pauses it
    answered = [weight for name, weight in alias.weights.items() if weight or name != may_be_zero]
    if not all(0 < share <= 1 for share in (*answered, *alias.shadow.values())):
        raise ValueError("weights and shares are above 0 and at most 1; only a paused canary's weight is 0")
    if any(name.partition("@")[0] != task for name in names):
        raise ValueError("an alias has versions of its own task alone")
    if alias.canary is not None and (len(alias.weights) < 2 or alias.canary.version not in alias.weights):
        raise ValueError("a canary is one of two versions or more that have weights")
    if alias.canary is not None and alias.canary.plan is not None:
        msgspec.convert(alias.canary.plan, CanaryPlan)


def _check_caller(caller: Caller) -> None:
    if len(caller.public) != PUBLIC_LENGTH or not set(caller.public) <= set(ALPHABET):
        raise ValueError(f"a key's public part has {PUBLIC_LENGTH} letters and digits")
    if not HASH.fullmatch(caller.secret_digest):
        raise ValueError("its secret_digest is not a SHA-256 in 64 hex digits")
    former = caller.former
    if former is not None and not (HASH.fullmatch(former.secret_digest) and 0 < former.until < YEAR_10000):
        raise ValueError("its former secret has a secret_digest in 64 hex digits, and the time until which it works")
    limits = LimitsIn.model_validate(dict(caller.limits.items()) if caller.limits else {})
    models, expires_at = sorted(caller.models), caller.expires_at
    name, owner = caller.name, caller.owner
    CallerIn(name=name, owner=owner, role=caller.role, models=models, expires_at=expires_at, limits=limits)


async def see_that_it_can_be_done(
    services: Services,
    admin: Caller,
    steps: list[Difference],
    force: bool,
    reason: str | None,
    from_here: bool,
    bytes_too: bool,
) -> None:
    """Raises Problem for the first impossible step, before any is taken. `from_here`: the file's generations are this
    installation's. Without `bytes_too` the store may lack adapters that will be uploaded later."""
    for step in steps:
        if step.action == "conflict":
            raise Problem("state_conflict", f"{step.name}: {step.note}.")
        if step.stale and not force:
            raise Problem("stale_generation", _stale(step, from_here))
        _check_against_services(services, admin, step)
    made = {step.name for step in steps if step.action == "create" and step.kind == "versions"}
    for step in steps:
        if step.kind in ("aliases", "overrides") and step.after is not None:
            _check_version_of_rule(services, step, made)
            await _check_approver(services, admin, step, made)
    await pass_gate_together(services, admin, steps, reason)
    for step in steps if bytes_too else ():
        if step.kind == "versions" and step.action == "create" and (step.after or {})["state"] != "retired":
            await _check_bytes(services, msgspec.convert(step.after, Version))


def _stale(step: Difference, from_here: bool) -> str:
    """The reason why an object has another generation than expected, and the remedy."""
    at = f"{step.kind}: {step.name} is at generation {step.generation}"
    if from_here:
        text = f"{at}, and the file has {step.expected}: it was changed since."
        return f"{text} Export the state again, or apply with force."
    since = "no file of the installation that this one is from has made it"
    if step.expected:
        since = f"the last file of that installation left it at {step.expected}: it was changed here since"
    return f"{at} here, and {since}. Compare them (`state diff`), then apply with force."


def _check_against_services(services: Services, admin: Caller, step: Difference) -> None:
    after = step.after
    if step.kind == "callers" and step.name == admin.public:
        kept_parts = {key: (after or {}).get(key) for key in ("role", "secret_digest")}
        if kept_parts != {key: (step.before or {}).get(key) for key in kept_parts}:
            raise Problem("state_conflict", "It would take away the key that you apply it with: keep that in the file.")
    if step.kind == "callers" and step.before is not None and after is not None:
        before, changed = (Caller.from_json(step.name, value) for value in (step.before, after))
        see_that_it_may_change(services, admin, before, changed)
    if after is None:
        return
    task = step.name if step.kind == "aliases" else after.get("task")
    if step.kind != "callers" and task is not None:
        require_task(services, task, param=step.kind, of=step.name)
    fault = find_fallback_fault(services, after["action"], task) if step.kind == "overrides" else None
    if fault is not None:
        raise Problem("state_conflict", f"{step.name}: {fault}", step.kind)
    plan = (after.get("rollout") or {}).get("plan") if step.kind == "aliases" else None
    metric = (plan or {}).get("feedback_metric")
    if metric is not None and metric not in services.settings.feedback_metrics:
        text = f"{step.name}: its canary is judged by {metric!r}, and no such metric is declared here."
        raise Problem("state_conflict", text)
    if step.kind == "versions" and step.action == "create" and after["state"] != "retired":
        _check_base(services, msgspec.convert(after, Version))


def _check_base(services: Services, version: Version) -> None:
    base = services.control.adapters.bases.get(version.pool)
    if base is None:
        raise Problem("state_conflict", f"{version.name} is for the pool {version.pool}, which takes no adapters here.")
    if base.fingerprint != version.base_fingerprint:
        text = (
            f"{version.name} was trained on a base model with the fingerprint {version.base_fingerprint}, and the pool "
            f"{version.pool} serves {base.fingerprint} here: it has to be trained on this base."
        )
        raise Problem("state_conflict", text)
    most = services.settings.tasks[version.task].max_tokens_max
    manifest = manifests.from_json(version.manifest)
    if max(manifest.sampling.get("max_tokens", 0), manifest.general_prompt.sampling.get("max_tokens", 0)) > most:
        raise Problem(
            "state_conflict", f"{version.name}: its manifest samples more than the task's {most} tokens here."
        )
    if services.settings.signing.required:
        _check_signature(services, version)


def _check_signature(services: Services, version: Version) -> None:
    """Raises Problem (409) unless a signer whom this gateway trusts has signed the version."""
    if version.signature is None:
        text = f"{version.name}: adapters must be signed here, and the file has no signature of it: push it, signed, "
        raise Problem("state_conflict", f"{text}where it comes from, and export the state again; or push it here.")
    try:
        signature = from_text(version.signed_by or "", version.signature)
        check(signature, version.digest, version.manifest_digest, services.control.adapters.signers)
    except SignatureError as error:
        raise Problem("state_conflict", f"{version.name}: {error}") from error


def _check_version_of_rule(services: Services, step: Difference, made: set[str]) -> None:
    name = (step.after or {}).get("version") if step.kind == "overrides" else None
    if name is not None and name not in made and name not in services.snapshot.current.versions:
        raise Problem("not_found", f"{step.name}: there is no version {str(name)[:80]!r} here.", step.kind)


async def _check_approver(services: Services, admin: Caller, step: Difference, made: set[str]) -> None:
    """Raises Problem if the same person would add a version and release it, and the settings forbid that."""
    if not services.settings.release.approver_must_differ:
        return
    versions = await services.control.registry.versions()
    after, before = step.after or {}, step.before or {}
    names = [after.get("version")]
    if step.kind == "aliases":  # a version that has led here was approved then
        led = {*before.get("weights", ()), *(before.get("previous") or ())}
        names = [*after["weights"], *(name for name in after.get("previous") or () if name not in led)]
    for name in filter(None, names):
        if name in made:
            text = f"{name} is added with this key: another admin has to apply {step.kind} {step.name}."
            raise Problem("approver_must_differ", text)
        if name in versions:
            await see_that_another_pushed(services, admin, versions[name], f"apply {step.kind} {step.name}")


async def pass_gate_together(
    services: Services, admin: Caller, steps: list[Difference], reason: str | None
) -> GatePass:
    """Ask the gate about all versions to which the steps' aliases or enforced rules send, and those in `previous`.
    Raises Problem (409) if one does not pass."""
    here = dict(await services.control.registry.versions())
    here |= {
        step.name: msgspec.convert(step.after, Version)
        for step in steps
        if step.kind == "versions" and step.action == "create" and step.after is not None
    }
    aliases = [step.after or {} for step in steps if step.kind == "aliases"]
    moved = [
        name for after in aliases for name in (*sorted(after.get("weights") or ()), *(after.get("previous") or ()))
    ]
    ruled = {
        str(rule["version"]): step.name
        for step in steps
        if step.kind == "overrides" and (rule := step.after or {}).get("version") and rule.get("mode") == "enforce"
    }
    versions = [here[name] for name in dict.fromkeys([*moved, *ruled]) if name in here]
    rules = {name: rule for name, rule in ruled.items() if name not in moved}
    return await pass_gate(services, admin, versions, reason, rules)


async def _check_bytes(services: Services, version: Version) -> None:
    """Check that the store has the version's bytes, and that they fit the pool's base. Raises Problem (409, 422)."""
    try:
        if not services.control.adapters.store.holds(version.digest):
            text = f"{version.name}: the store here has no {version.digest}. Upload it: state apply --adapters FOLDER."
            raise Problem("state_conflict", text)
        adapters = services.control.adapters
        folder, base = adapters.store.path(version.digest), adapters.bases[version.pool]
        artifact = await asyncio.to_thread(verify, folder, base, claimed_fingerprint=version.base_fingerprint)
    except ArtifactError as error:
        raise Problem("adapter_rejected", f"{version.name}: {error}") from error
    if (artifact.digest, artifact.rank, artifact.size_bytes) != (version.digest, version.rank, version.size_bytes):
        raise Problem("adapter_rejected", f"{version.name}: the store's copy of {version.digest} is another adapter.")


def find_missing_bytes(services: Services, step: Difference) -> str | None:
    """The digest of the bytes that a version needs and the store lacks; None if it lacks none."""
    value = step.after or {}
    if step.kind != "versions" or value["state"] == "retired" or services.control.adapters.store.holds(value["digest"]):
        return None
    return str(value["digest"])


def with_pending(services: Services, admin: Caller, present: Objects, file: Objects) -> Objects:
    """The state file with `pending` set for admin keys: new ones wait for approval, and present ones keep their
    state."""
    if not services.settings.release.approver_must_differ or "callers" not in file:
        return file
    callers = dict(file["callers"])
    for name, entry in callers.items():
        if entry.value is None or entry.value["role"] != "admin":
            continue
        here = present["callers"].get(name)
        caller_here = here.value if here is not None else None
        is_admin = caller_here is not None and caller_here["role"] == "admin"
        pending = (caller_here or {}).get("pending") if is_admin else admin.person
        value = replace(Caller.from_json(name, entry.value), pending=pending).to_json()
        callers[name] = FileObject(entry.generation, value)
    return {**file, "callers": callers}
