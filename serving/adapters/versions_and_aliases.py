"""A version and an alias as Redis stores them, and the states of a version."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, get_args

import msgspec
from msgspec.structs import replace

from serving.adapters.manifest import rename_keys
from serving.fleet_view import GeneralPromptView, VersionView

DATASET_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})")
VersionState = Literal[
    "verified",
    "staging",
    "ready",
    "shadow",
    "canary",
    "active",
    "previous_version",
    "draining",
    "retired",
    "quarantined",
]
VERSION_STATES: tuple[VersionState, ...] = get_args(VersionState)
PLACED: frozenset[VersionState] = frozenset({"ready", "shadow", "canary", "active", "previous_version"})
"""States in which a version is ready on a quorum of its replicas; an alias may send requests to it."""
WANTED: frozenset[VersionState] = PLACED | {"staging"}
"""States in which a version's replicas should have it loaded."""
ROLES: frozenset[VersionState] = frozenset({"shadow", "canary", "active"})
"""States that an alias gives, and that only an alias takes away."""
GIVEN_UP: frozenset[VersionState] = frozenset({"draining", "retired"})
"""States from which a version can't be staged again."""

STEPS: Mapping[VersionState, frozenset[VersionState]] = {
    "verified": frozenset({"staging", "draining"}),
    "staging": frozenset({"ready", "verified", "quarantined"}),
    "ready": frozenset({"shadow", "canary", "active", "staging", "verified", "quarantined", "draining"}),
    "shadow": frozenset({"ready", "canary", "active", "previous_version", "quarantined"}),
    "canary": frozenset({"shadow", "active", "previous_version", "ready", "quarantined"}),
    "active": frozenset({"canary", "previous_version", "quarantined"}),
    "previous_version": frozenset({"shadow", "canary", "active", "verified", "quarantined", "draining"}),
    "quarantined": frozenset({"staging", "verified", "draining"}),
    "draining": frozenset({"retired"}),
    "retired": frozenset(),
}

MAPPINGS = ("contract", "general_prompt", "provenance", "sampling")
"""The parts of a stored manifest that are read as mappings."""


class Version(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A version as it is stored. `name` is also its name on every engine; the bytes of a name never change.

    `owner` owned the key `created_by` when the version was pushed; it is set if `release.approver_must_differ` was on.
    """

    name: str
    task: str
    number: int
    pool: str
    state: VersionState
    digest: str
    base_fingerprint: str
    rank: int
    size_bytes: int
    manifest: dict[str, Any]
    manifest_digest: str
    created_at: float
    created_by: str
    changed_at: float = 0.0
    signed_by: str | None = None
    signature: str | None = None
    note: str = ""
    owner: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def dataset(self) -> str:
        """The digest of the data set that it was trained on, from its provenance; empty if that names none."""
        provenance = self.manifest.get("provenance") or {}
        names = (str(provenance.get(field)) for field in ("dataset", "dataset_digest"))
        return next((named[1] for named in map(DATASET_DIGEST.fullmatch, names) if named), "")

    @property
    def datasets(self) -> list[str]:
        """Digests of all data sets that it was trained on: its own, then the rehearsed ones."""
        rehearsed = (self.manifest.get("provenance") or {}).get("rehearsed")
        matches = map(DATASET_DIGEST.fullmatch, map(str, rehearsed if isinstance(rehearsed, list) else ()))
        return [*filter(None, [self.dataset]), *(each[1] for each in matches if each)]

    def view(self) -> VersionView:
        """The version as the router sees it."""
        general_prompt = self.manifest.get("general_prompt") or {}
        return VersionView(
            self.name,
            self.task,
            self.pool,
            self.state,
            self.digest,
            self.manifest_digest,
            self.manifest.get("sampling") or {},
            GeneralPromptView(
                general_prompt.get("system") or "",
                general_prompt.get("response_format"),
                general_prompt.get("sampling") or {},
            ),
            self.manifest.get("contract"),
        )


class CanaryEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A canary under way: who began it, when (Unix seconds), and the plan that judges it (None: people judge it)."""

    version: str
    share: float
    started_at: float
    by: str
    plan: dict[str, Any] | None = None

    def since(self, before: CanaryEntry | None) -> CanaryEntry:
        """The same canary with the start of `before`, if that has the same version and plan: its judgement goes on."""
        if before is None or (before.version, before.plan) != (self.version, self.plan):
            return self
        return replace(self, started_at=before.started_at)


class AliasEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A task's versions and their weights, and the salt with which each canary draws sessions again.

    `shadow`: versions that get a copy of a share of the requests. `previous`: versions that led before, newest first.
    """

    weights: dict[str, float]
    salt: str = ""
    shadow: dict[str, float] = {}
    previous: list[str] = []
    canary: CanaryEntry | None = msgspec.field(default=None, name="rollout")  # the stored name of earlier releases

    @property
    def leading(self) -> str:
        """The version with the greatest weight, without the canary: the active one."""
        canary = self.canary.version if self.canary else None
        others = {name: weight for name, weight in self.weights.items() if name != canary}
        return max(others or self.weights, key=lambda name: self.weights[name])

    def role(self, name: str) -> VersionState | None:
        """The state that this alias gives to a version; None if the alias does not name it."""
        if name in self.weights:
            return "active" if name == self.leading else "canary"
        return "shadow" if name in self.shadow else None


def split_version(name: str) -> tuple[str, int]:
    """A version's task and number. Sorted by it, v2 comes before v10."""
    task, _, number = name.rpartition("@v")
    return task, int(number) if number.isdecimal() else 0


def read_version(_: str, raw: Mapping[str, Any]) -> Version:
    """A version as the object store has it. Raises ValidationError if this release can't read it."""
    if raw.get("state") == "standby":  # the earlier name
        raw = {**raw, "state": "previous_version"}
    version = msgspec.convert(raw, Version)
    manifest = rename_keys(version.manifest)
    for part in MAPPINGS:
        if not isinstance(manifest.get(part) or {}, dict):
            raise msgspec.ValidationError(f"its manifest's {part} is not a mapping")
    return replace(version, manifest=manifest)


def read_alias(_: str, raw: Mapping[str, Any]) -> AliasEntry:
    """An alias as the object store has it. Raises ValidationError if this release can't read it."""
    previous = raw.get("previous")
    if not isinstance(previous, list):  # up to 0.1.0 it was the one version before, or none
        raw = {**raw, "previous": [previous] if previous else []}
    alias = msgspec.convert(raw, AliasEntry)
    if not alias.weights:
        raise msgspec.ValidationError("it has no version")
    return alias
