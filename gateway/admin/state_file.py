"""The state that admins have set, as one file for git: its form, and its differences from the present state. Pure.

    {"format": 1, "installation": "0123456789abcdef",
     "versions":  {"returns@v1": {"generation": 3, "value": {…}}},
     "aliases":   {"returns":    {"generation": 1, "value": {…}}},
     "overrides": {…}, "callers": {…}}

`installation` is the installation whose generations these are. In another installation `rebase_file` replaces them.

An apply does not change a kind that the file leaves out, nor, without `prune`, an object that the file does not name.
A value of null removes its object. Versions are never removed: a name means the same bytes for ever.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from serving.adapters.registry import PREVIOUS_MAX
from serving.adapters.versions_and_aliases import GIVEN_UP, PLACED, AliasEntry

FORMAT = 1
Kind = Literal["versions", "aliases", "overrides", "callers"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Action = Literal["create", "change", "remove", "retire", "stage", "stage_previous", "conflict"]
IDENTITY = ("task", "number", "pool", "digest", "base_fingerprint", "rank", "size_bytes", "manifest_digest")
"""The fields that a version's name identifies. They never change."""
SHOWN: Mapping[Kind, tuple[str, ...]] = {
    "versions": ("state", "pool", "digest", "manifest_digest", "created_by", "signed_by"),
    "callers": ("name", "role", "models", "expires_at", "limits", "unknown_fields", "owner", "pending"),
}
"""The fields to show of kinds that are long or secret. Other kinds show all fields."""
SECRETS: Mapping[str, str] = {"secret_digest": "secret", "former": "former secret"}
"""The name that is shown for a changed field whose value is secret."""


class FileObject(NamedTuple):
    """An object with its generation. A value of None: it does not exist, or was removed."""

    generation: int
    value: dict[str, Any] | None


ABSENT = FileObject(0, None)
Objects = Mapping[Kind, Mapping[str, FileObject]]
"""Objects by kind and name. A file need not have all kinds."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One step from the present to the file. `generation` is the object's present one, `expected` the file's."""

    kind: Kind
    name: str
    action: Action
    before: dict[str, Any] | None
    after: dict[str, Any] | None
    generation: int
    expected: int | None = None
    note: str = ""

    @property
    def stale(self) -> bool:
        """Return whether the object has changed since the file was written. An object that is new here has not."""
        return self.expected is not None and self.generation not in (0, self.expected)

    @property
    def changed(self) -> list[str]:
        """The fields that differ between before and after, secret ones included."""
        before, after = self.before or {}, self.after or {}
        names = [name for name in before | after if (before.get(name) or None) != (after.get(name) or None)]
        return [SECRETS.get(name, name) for name in names] if before and after else []

    def to_json(self) -> dict[str, Any]:
        """The step as admins see it."""
        return {
            "kind": self.kind,
            "name": self.name,
            "action": self.action,
            "before": show_object(self.kind, self.before),
            "after": show_object(self.kind, self.after),
            "changed": self.changed,
            "generation": self.generation,
            "expected_generation": self.expected,
            "stale": self.stale,
            "note": self.note,
        }


def show_object(kind: Kind, value: dict[str, Any] | None) -> dict[str, Any] | None:
    """An object without its secrets, and without a version's whole manifest."""
    names = SHOWN.get(kind)
    return value if value is None or names is None else {name: value.get(name) for name in names}


def write_file(objects: Objects, installation: str) -> dict[str, Any]:
    """The file's content, sorted by name, so that equal states give equal text. Removed objects are left out."""
    kinds: dict[str, Any] = {
        kind: {
            name: {"generation": entry.generation, "value": entry.value}
            for name, entry in sorted(objects[kind].items())
            if entry.value is not None
        }
        for kind in KINDS
        if kind in objects
    }
    return {"format": FORMAT, "installation": installation, **kinds}


def rebase_file(file: Objects, present: Objects, left_at: Mapping[tuple[str, str], int]) -> Objects:
    """Another installation's file, with the generations that this installation expects. `left_at` holds them, by kind
    and name, from that installation's last file. They are 0 for an object here that no such file has made. Versions
    are compared by content only."""

    def expected(kind: Kind, name: str) -> int:
        here = present[kind].get(name, ABSENT)
        unknown = here.generation if kind == "versions" or here.value is None else 0
        return left_at.get((kind, name), unknown)

    return {
        kind: {name: FileObject(expected(kind, name), entry.value) for name, entry in section.items()}
        for kind, section in file.items()
    }


def predict_generations(present: Objects, file: Objects, moved: Iterable[Difference]) -> dict[tuple[str, str], int]:
    """The generations of the file's objects after the apply, by kind and name."""
    then = {(step.kind, step.name): step.generation + 1 for step in moved}
    names = ((kind, name) for kind, section in file.items() if kind != "versions" for name in section)
    return {(kind, name): then.get((kind, name), present[kind].get(name, ABSENT).generation) for kind, name in names}


def compare_objects(
    present: Objects,
    file: Objects,
    prune: bool,
    previous_versions: Mapping[str, int] | None = None,
    now_unix: float = 0.0,
) -> list[Difference]:
    """All steps from the present state to the file, in their order. `previous_versions` is the number of a task's
    previous versions to place with an alias that is new here. No version is placed for a rule that has expired by
    `now_unix`."""
    versions = list(_version_steps(present, file))
    aliases = [_with_history(step) for step in _steps("aliases", present, file, prune, select_alias_content)]
    others = [
        step for kind in KINDS[2:] for step in _steps(kind, present, file, prune, partial(json.dumps, sort_keys=True))
    ]
    created = [step for step in versions if step.action == "create"]
    names_in_use = {name for alias in _aliases_then(present, aliases) for name in _names(alias)}
    given_up = [_unless_taken(step, names_in_use) for step in versions if step.action != "create"]
    there = {name: entry for name, entry in present["versions"].items() if entry.value is not None}
    there |= {step.name: FileObject(step.generation, step.after) for step in created}
    staged = list(_stagings(there, aliases))
    staged += _stagings_for_rules(there, others, {step.name for step in staged}, now_unix)
    beside = _previous_versions(there, aliases, {step.name for step in staged}, previous_versions or {})
    return [*created, *staged, *aliases, *others, *beside, *given_up]


def find_kept(present: Objects, file: Objects) -> Iterator[tuple[Kind, str]]:
    """The objects here that the file does not name although it has their kind."""
    for kind in KINDS:
        for name, entry in sorted(present[kind].items()):
            if kind in file and entry.value is not None and name not in file[kind]:
                yield kind, name


def find_retired(present: Objects, file: Objects) -> list[str]:
    """Versions that are retired or draining here but not in the file. They stay so: no version comes back."""
    values = {name: entry.value for name, entry in file.get("versions", {}).items()}
    return sorted(
        name
        for name, entry in present["versions"].items()
        if entry.value is not None
        and entry.value["state"] in GIVEN_UP
        and (value := values.get(name)) is not None
        and value.get("state") not in GIVEN_UP
    )


def _version_steps(present: Objects, file: Objects) -> Iterator[Difference]:
    """The versions to create, and those to retire."""
    for name, entry in sorted(file.get("versions", {}).items()):
        here = present["versions"].get(name, ABSENT)
        action, after, note = _version_step(here.value, entry.value)
        if action is not None:
            yield Difference("versions", name, action, here.value, after, here.generation, entry.generation, note)


def _version_step(
    before: dict[str, Any] | None, version: dict[str, Any] | None
) -> tuple[Action | None, dict[str, Any] | None, str]:
    """The action on a version (None: no action), the version after it, and the reason if it is impossible."""
    if version is None:
        note = "a version is never removed: write the state retired, to give it up"
        return (None if before is None else "conflict"), None, note
    if before is None:
        return "create", _as_made(version), ""
    different = [key for key in IDENTITY if before.get(key) != version.get(key)]
    if different:
        return "conflict", version, f"here this name is of another version ({', '.join(different)} differ)"
    if version.get("state") in GIVEN_UP and before["state"] not in GIVEN_UP:
        return "retire", {**before, "state": "retired"}, ""
    return None, None, ""


def _as_made(value: dict[str, Any]) -> dict[str, Any]:
    """A version at its start here: on no replica. A retired or quarantined version stays so."""
    state = value.get("state")
    begun = "retired" if state in GIVEN_UP else "quarantined" if state == "quarantined" else "verified"
    return {**value, "state": begun, "note": value.get("note") or "" if begun != "verified" else ""}


def _steps(
    kind: Kind, present: Objects, file: Objects, prune: bool, content: Callable[[dict[str, Any]], Any]
) -> Iterator[Difference]:
    """Steps that create, change or remove objects of a kind. Objects with equal `content` are equal."""
    if kind not in file:
        return
    named = file[kind]
    removed = [
        name
        for name, entry_here in present[kind].items()
        if prune and entry_here.value is not None and name not in named
    ]
    for name in sorted([*named, *removed]):
        here, entry = present[kind].get(name, ABSENT), named.get(name)
        before, after = here.value, entry.value if entry is not None else None
        same = before is after is None or (before and after and content(before) == content(after))
        if not same:
            action: Action = "remove" if after is None else "create" if before is None else "change"
            expected = None if entry is None else entry.generation
            yield Difference(kind, name, action, before, after, here.generation, expected)


def select_alias_content(value: dict[str, Any]) -> Any:
    """The part of an alias to compare: all but its salt, its history and its canary's start."""
    entry = msgspec.to_builtins(msgspec.convert(value, AliasEntry))
    if entry["rollout"] is not None:
        entry["rollout"]["started_at"] = 0.0
    return {key: part for key, part in entry.items() if key not in ("salt", "previous")}


def _with_history(step: Difference) -> Difference:
    """The step, with the alias's history: a rollback returns to the version that led until now."""
    if step.action != "change":
        return step
    before, after = (msgspec.convert(value, AliasEntry) for value in (step.before, step.after))
    led = [before.leading, *before.previous]
    previous = [name for name in dict.fromkeys(led) if name != after.leading][:PREVIOUS_MAX]
    return replace(step, after={**(step.after or {}), "previous": previous})


def _aliases_then(present: Objects, steps: list[Difference]) -> Iterator[dict[str, Any]]:
    """The aliases after the steps."""
    changed = {step.name: step.after for step in steps}
    then = {name: entry.value for name, entry in present["aliases"].items()} | changed
    return (value for value in then.values() if value is not None)


def _names(alias: dict[str, Any]) -> set[str]:
    """The versions to which an alias sends requests or copies of them."""
    return set(alias["weights"]) | set(alias.get("shadow") or {})


def _unless_taken(step: Difference, names_in_use: set[str]) -> Difference:
    if step.action == "retire" and step.name in names_in_use:
        note = "its task's alias sends requests to it: move the alias in the file as well"
        return replace(step, action="conflict", note=note)
    return step


def _stagings(there: Mapping[str, FileObject], aliases: list[Difference]) -> Iterator[Difference]:
    """The versions to place before an alias can move to them. `there` holds the versions after the file's are made."""
    needed = sorted({name for step in aliases if step.after is not None for name in _names(step.after)})
    for name in needed:
        here = there.get(name, ABSENT)
        if here.value is None:
            note = "an alias of the file needs it, and there is no such version, neither here nor in the file"
            yield Difference("versions", name, "conflict", None, None, here.generation, note=note)
        elif here.value["state"] in GIVEN_UP:
            note = "an alias of the file needs it, and it is retired: no version comes back from there"
            yield Difference("versions", name, "conflict", here.value, None, here.generation, note=note)
        elif here.value["state"] not in PLACED:
            after = {**here.value, "state": "ready"}
            yield Difference("versions", name, "stage", here.value, after, here.generation)


def _stagings_for_rules(
    there: Mapping[str, FileObject], rules: list[Difference], staged: set[str], now_unix: float
) -> Iterator[Difference]:
    """Stagings of unplaced versions to which rules send. If they were not placed, the task's fallback would answer."""
    enforced = [step.after for step in rules if step.after is not None and step.after.get("mode") == "enforce"]
    names = {rule.get("version") for rule in enforced if (rule.get("expires_at") or math.inf) > now_unix}
    for name in sorted(filter(None, names - staged)):
        here = there.get(name, ABSENT)
        if here.value is not None and here.value["state"] in ("verified", "staging"):
            yield Difference("versions", name, "stage", here.value, {**here.value, "state": "ready"}, here.generation)


def _previous_versions(
    there: Mapping[str, FileObject], aliases: list[Difference], staged: set[str], kept_by_task: Mapping[str, int]
) -> Iterator[Difference]:
    """Stagings of previous versions for aliases that are new here, the newest first."""
    for step in aliases:
        left = kept_by_task.get(step.name, 0)
        for name in (step.after or {}).get("previous") or () if step.action == "create" else ():
            here = there.get(name, ABSENT)
            if here.value is None:
                note = f"the alias {step.name} of the file has it among `previous`, and there is no such version"
                yield Difference("versions", name, "conflict", None, None, here.generation, note=note)
            elif left and here.value["state"] not in (*GIVEN_UP, "quarantined"):
                left -= 1
                if here.value["state"] not in PLACED and name not in staged:
                    after = {**here.value, "state": "staging"}
                    note = "the previous version, for a rollback; its placement is not waited for"
                    yield Difference("versions", name, "stage_previous", here.value, after, here.generation, note=note)
