"""Checks of a task that never fire because a version has no model for them, and the remedy."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

from gateway.state.fitted_store import KINDS, FittedEntry, Kind, find_unused
from router.checks import CHECKS
from router.findings import CheckName
from serving.adapters.versions_and_aliases import AliasEntry

CHECK_OF: Mapping[Kind, CheckName] = MappingProxyType(
    {check.model: check.name for check in CHECKS if check.model is not None}
)
"""The check that judges by a model of this kind."""
COMMAND_OF: Mapping[Kind, str] = MappingProxyType(
    {
        "scope": "apprentice adapters fit {version} --prompts FILE",
        "confidence": "apprentice evaluate {version} --data FILE --calibrate",
        "gain": "apprentice evaluate {version} --data FILE --fit-gain",
    }
)
"""The step that makes a model of each kind."""


class Lack(NamedTuple):
    """A check without its model: the model's kind, a description (without a full stop), and the remedy."""

    kind: Kind
    missing: str
    advice: str


def list_answering_versions(alias: AliasEntry) -> list[str]:
    """The versions of an alias that answer, the leading one first."""
    return [alias.leading, *sorted(alias.weights.keys() - {alias.leading})]


def lacks(
    version: str, entries: Mapping[Kind, FittedEntry], checks: Collection[CheckName], selector: str, leads: bool
) -> Iterator[Lack]:
    """The models that these checks lack for a version with this selector. `leads`: it is the one that `auto` knows."""
    idle = find_unused(entries, selector)
    for kind in KINDS:
        check, command = CHECK_OF[kind], COMMAND_OF[kind].format(version=version)
        if check not in checks:
            continue
        if kind in idle:
            or_back = "" if kind == "confidence" else ", or set the selector back"
            yield Lack(kind, f"the {kind} model of {version} is not used: {idle[kind]}", f"Run {command}{or_back}.")
        elif kind not in entries:
            missing = f"{version} has no {kind} model: {check} never fires for it"
            missing += ", and auto does not find its task" if kind == "scope" and leads else ""
            yield Lack(kind, missing, f"Run {command}.")
