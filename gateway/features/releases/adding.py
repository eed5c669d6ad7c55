"""Adding an adapter to the registry: verify its files, store them, and enter them as the task's next version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.endpoint_parts import conflicts, require_task
from gateway.errors import Problem
from gateway.features.releases.state import Releases
from gateway.server.adapter_uploads import Upload
from gateway.services import Services
from gateway.state.audited_step import AuditedStep
from router.contract import ContractError, compile_contract
from serving.adapters.adapter_folder import ArtifactLimits
from serving.adapters.errors import ArtifactError
from serving.adapters.manifest import Manifest, ManifestError, read_manifest
from serving.adapters.signature import SignatureError, as_text, check, read_signature
from serving.adapters.verification import Artifact, verify
from serving.adapters.versions_and_aliases import Version
from serving.object_store import Change, Unchanged


@dataclass(frozen=True)
class Pusher:
    """The person who adds a version: the public part of the key, and the owner that the version keeps (None: none)."""

    public: str
    owner: str | None


async def add_version(
    releases: Releases,
    pusher: Pusher,
    upload: Upload,
    task: str,
    pool: str | None,
    while_unchanged: Sequence[Unchanged] = (),
) -> tuple[Version, bool]:
    """Verify an adapter and enter it as the task's next version, in one atomic step that checks `while_unchanged`.
    Return the version, and False if the same adapter was entered before.

    Raises Problem.
    """
    services, folder = releases.services, upload.folder
    require_task(services, task)
    try:
        manifest = await asyncio.to_thread(read_manifest, upload.manifest)
        if manifest.task != task:
            raise Problem("adapter_rejected", f"The manifest is for the task {manifest.task!r}.", "task")
        _check_bounds(releases, task, manifest)
        if manifest.contract is not None:
            compile_contract(manifest.contract)
        claimed = manifest.base_fingerprint
        pools = _pools_for(releases, pool, claimed)
        fitted, artifact = await asyncio.to_thread(_verify_for_first, services, pools, folder, claimed)
        signer, proof = _signer(releases, upload.signature, artifact, manifest)
        await asyncio.to_thread(services.control.adapters.store.put, folder, artifact)
    except (ArtifactError, ContractError, ManifestError, SignatureError) as error:
        await services.control.audit.append(pusher.public, "adapter.reject", task, evidence=str(error)[:2000])
        raise Problem("adapter_rejected", str(error), "path") from error
    except OSError as error:
        raise Problem("adapter_rejected", f"The adapter can't be read or stored: {error.strerror}.", "path") from error
    step = services.begin_step(pusher.public)
    made: Version | None = None

    def added(before: Version | None, after: Version, generation: int) -> list[Change | Unchanged]:
        nonlocal made
        made = after if before is None else None
        return [*_added(step, before, after, generation), *while_unchanged]

    with conflicts():
        version = await services.control.registry.register(
            task, fitted, artifact, manifest, pusher.public, signer, proof, added, pusher.owner
        )
    await step.enter()
    return version, version is made  # another admin may have added it at the same moment


def _added(step: AuditedStep, before: Version | None, after: Version, generation: int) -> list[Change]:
    """The audit entry for a version that is new, or newly signed."""
    was, now = (
        None if version is None else {"digest": version.digest, "pool": version.pool, "signed_by": version.signed_by}
        for version in (before, after)
    )
    return step.note("adapter.add", after.name, was, now, generation=generation)


def _signer(
    releases: Releases, signature: Path | None, artifact: Artifact, manifest: Manifest
) -> tuple[str, str] | tuple[None, None]:
    """The adapter's trusted signer, and the signature. Raises SignatureError for a wrong signature, or a missing
    one that is required."""
    signing = releases.services.settings.signing
    if signature is None:
        if signing.required:
            raise SignatureError("The adapter is not signed: push it with a signature of a trusted signer.")
        return None, None
    proof = read_signature(signature)
    return check(proof, artifact.digest, manifest.digest(), releases.services.control.adapters.signers), as_text(proof)


def verify_for(services: Services, pool: str, folder: Path, claimed: str | None) -> Artifact:
    """Verify an adapter for a pool; `claimed` is its manifest's fingerprint of the base, if any. Blocks; raises
    ArtifactError."""
    limits = ArtifactLimits(rank_max=services.settings.pools[pool].max_lora_rank)
    return verify(folder, services.control.adapters.bases[pool], limits, claimed_fingerprint=claimed)


def _check_bounds(releases: Releases, task: str, manifest: Manifest) -> None:
    """Check the manifest's sampling against the task's limit of tokens. Raises Problem (422)."""
    most = releases.services.settings.tasks[task].max_tokens_max
    for sampling in (manifest.sampling, manifest.general_prompt.sampling):
        if sampling.get("max_tokens", 0) > most:
            raise Problem("adapter_rejected", f"The manifest samples more than the task's {most} tokens.", "path")


def _pools_for(releases: Releases, named: str | None, fingerprint: str | None) -> list[str]:
    """The pools that may serve the adapter's base model. Raises Problem (404, 422) if there is none."""
    bases = releases.services.control.adapters.bases
    if named is not None and named not in bases:
        raise Problem("not_found", f"There is no pool {named[:80]!r} that takes adapters.", "pool")
    fitting = [pool for pool in ([named] if named else bases) if fingerprint in (None, bases[pool].fingerprint)]
    if not fitting:
        serves = f"The pool {named} does not serve" if named else "No pool serves"
        base = f"the adapter's base model ({fingerprint})" if fingerprint else "adapters"
        raise Problem("adapter_rejected", f"{serves} {base}.", "path")
    return fitting


def _verify_for_first(services: Services, pools: list[str], folder: Path, claimed: str | None) -> tuple[str, Artifact]:
    """The first of these pools whose base the adapter fits, and the adapter. Blocks; raises ArtifactError."""
    *others, last = pools
    for pool in others:
        try:
            return pool, verify_for(services, pool, folder, claimed)
        except ArtifactError as error:
            if error.code != "wrong_base":
                raise
    return last, verify_for(services, last, folder, claimed)
