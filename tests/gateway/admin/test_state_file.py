"""The pure part of a state's export, comparison and application."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.state_file import (
    ABSENT,
    FORMAT,
    KINDS,
    Difference,
    FileObject,
    Kind,
    Objects,
    compare_objects,
    find_kept,
    predict_generations,
    rebase_file,
    write_file,
)
from serving.adapters.canonical import digest

NAMES = ("returns@v1", "returns@v2", "returns@v3")


def version(number: int, state: str = "ready", **changes: Any) -> dict[str, Any]:
    identity = {"task": "returns", "number": number, "pool": "small", "digest": f"sha256:{number}"}
    return {"name": f"returns@v{number}", "state": state, "note": "", **identity, **changes}


def objects(**kinds: dict[str, FileObject]) -> Objects:
    return {kind: kinds.get(kind, {}) for kind in KINDS}


VERSIONS = {name: FileObject(1, version(at)) for at, name in enumerate(NAMES, 1)}
aliases = st.sampled_from(NAMES).map(lambda name: {"weights": {name: 1.0}})
rules = st.sampled_from(["general", "refuse"]).map(lambda action: {"action": action})


def object_store(values: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, FileObject]]:
    held = st.builds(FileObject, st.integers(0, 3), st.none() | values)
    return st.dictionaries(st.sampled_from(["a", "b", "c"]), held, max_size=3)


states = st.builds(
    lambda a, o: objects(versions=VERSIONS, aliases=a, overrides=o), object_store(aliases), object_store(rules)
)


def applied(present: Objects, steps: Iterable[Difference]) -> Objects:
    """The state after these steps, each of which raises its object's generation."""
    after: dict[Kind, dict[str, FileObject]] = {kind: dict(section) for kind, section in present.items()}
    for step in steps:
        assert step.action in ("create", "change", "remove")
        assert step.before == after[step.kind].get(step.name, ABSENT).value
        after[step.kind][step.name] = FileObject(step.generation + 1, step.after)
    return after


def values(state: Objects) -> dict[str, Any]:
    return {
        kind: {
            name: held.value and {key: part for key, part in held.value.items() if key != "previous"}
            for name, held in section.items()
            if held.value is not None
        }
        for kind, section in state.items()
    }


@given(present=states, file=states, prune=st.booleans())
def test_after_the_steps_of_a_comparison_there_is_nothing_left_to_do(
    present: Objects, file: Objects, prune: bool
) -> None:
    after = applied(present, compare_objects(present, file, prune))
    assert compare_objects(after, file, prune) == []
    if prune:
        assert values(after) == values(file)
    for kind, name in find_kept(present, file):
        assert prune or after[kind][name].value == present[kind][name].value


@given(state=states)
def test_a_state_is_no_different_from_what_was_written_of_it(state: Objects) -> None:
    content = write_file(state, "0" * 16)
    read = {
        kind: {name: FileObject(one["generation"], one["value"]) for name, one in content[kind].items()}
        for kind in KINDS
    }
    assert content["format"] == FORMAT
    assert compare_objects(state, read, prune=True) == []
    assert digest(content) == digest(dict(reversed(content.items())))


@given(present=states, file=states)
def test_only_what_was_there_and_has_moved_on_is_stale(present: Objects, file: Objects) -> None:
    for step in compare_objects(present, file, prune=False):
        generation = present[step.kind].get(step.name, ABSENT).generation
        assert step.stale == (generation not in (0, file[step.kind][step.name].generation))


def test_steps_come_in_the_order_in_which_they_are_taken() -> None:
    present = objects(
        versions={"returns@v1": FileObject(4, version(1, "active")), "returns@v3": FileObject(2, version(3))}
    )
    file = objects(
        versions={
            "returns@v1": FileObject(4, version(1, "active")),
            "returns@v2": FileObject(3, version(2, "active")),
            "returns@v3": FileObject(2, version(3, "retired")),
        },
        aliases={"returns": FileObject(1, {"weights": {"returns@v2": 1.0}})},
        overrides={"a": FileObject(0, {"action": "general"})},
    )
    steps = compare_objects(present, file, prune=False)
    assert [(step.action, step.name) for step in steps] == [
        ("create", "returns@v2"),
        ("stage", "returns@v2"),
        ("create", "returns"),
        ("create", "a"),
        ("retire", "returns@v3"),
    ]
    assert [(step.after or {}).get("state") for step in steps[:2]] == ["verified", "ready"]


def test_version_that_only_a_rule_sends_to_is_placed_before_unless_the_rule_is_over() -> None:
    rule = {"action": "version", "version": "returns@v1", "mode": "enforce", "expires_at": 100.0}
    file = objects(versions={"returns@v1": FileObject(1, version(1))}, overrides={"old-stock": FileObject(1, rule)})
    steps = compare_objects(objects(), file, prune=False, now_unix=99.0)
    assert [step.action for step in steps] == ["create", "stage", "create"]
    assert [step.action for step in compare_objects(objects(), file, prune=False, now_unix=101.0)] == ["create"] * 2


def test_a_kind_that_the_file_leaves_out_is_left_as_it_is() -> None:
    present = objects(overrides={"a": FileObject(1, {"action": "general"})})
    assert compare_objects(present, {"aliases": {}}, prune=True) == []
    assert list(find_kept(present, {"aliases": {}})) == []


def test_a_change_of_an_alias_keeps_the_way_back() -> None:
    before = {"weights": {"returns@v2": 1.0}, "previous": ["returns@v1"]}
    present = objects(versions=VERSIONS, aliases={"returns": FileObject(2, before)})
    file = objects(aliases={"returns": FileObject(2, {"weights": {"returns@v3": 1.0}, "previous": []})})
    (step,) = compare_objects(present, file, prune=False)
    assert (step.after or {})["previous"] == ["returns@v2", "returns@v1"]


def test_what_begins_here_is_on_no_replica_and_what_was_given_up_stays_so() -> None:
    states_there = ("active", "staging", "quarantined", "draining", "retired")
    file = objects(versions={f"returns@v{n}": FileObject(1, version(n, s)) for n, s in enumerate(states_there, 1)})
    begun = [(step.after or {})["state"] for step in compare_objects(objects(), file, prune=False)]
    assert begun == ["verified", "verified", "quarantined", "retired", "retired"]


def test_secrets_and_whole_manifests_are_not_shown() -> None:
    caller = {"name": "shop", "role": "caller", "secret_digest": "0" * 64, "models": ["*"], "expires_at": None}
    file = objects(
        versions={"returns@v1": FileObject(1, version(1, manifest={"task": "returns"}))},
        callers={"abc": FileObject(1, caller)},
    )
    for step in compare_objects(objects(), file, prune=False):
        assert not {"secret_digest", "manifest"} & set(step.to_json()["after"])


@given(present=states, file=states)
def test_file_of_another_installation_is_stale_only_where_something_changed_here(
    present: Objects, file: Objects
) -> None:
    first = rebase_file(file, present, {})
    for step in compare_objects(present, first, prune=False):
        assert step.stale == (step.before is not None and step.generation > 0)
    steps = compare_objects(present, first, prune=False)
    after, left = applied(present, steps), predict_generations(present, file, steps)
    other = objects(
        overrides={name: FileObject(9, {"action": "general", "message": "x"}) for name in file["overrides"]}
    )
    for step in compare_objects(after, rebase_file(other, after, left), prune=False):
        assert not step.stale
    moved = {
        kind: {name: FileObject(held.generation + 1, held.value) for name, held in section.items()}
        for kind, section in after.items()
    }
    for step in compare_objects(moved, rebase_file(other, moved, left), prune=False):
        assert step.stale == (step.generation > 0)


def test_every_changed_field_is_named_and_of_a_secret_that_it_has_changed() -> None:
    before = {"name": "shop", "role": "caller", "secret_digest": "0" * 64, "models": ["*"], "expires_at": None}
    after = {**before, "secret_digest": "1" * 64, "models": ["returns"], "limits": {"requests_per_minute": 5}}
    present, file = objects(callers={"abc": FileObject(1, before)}), objects(callers={"abc": FileObject(1, after)})
    (step,) = compare_objects(present, file, prune=False)
    told = step.to_json()
    assert told["changed"] == ["secret", "models", "limits"]
    assert "1" * 64 not in str(told)


def test_what_led_before_a_new_alias_is_placed_beside_and_no_more_than_are_kept() -> None:
    alias = {"weights": {"returns@v4": 1.0}, "previous": ["returns@v3", "returns@v2", "returns@v1"]}
    made = {
        f"returns@v{n}": FileObject(1, version(n, "retired" if n == 3 else "previous_version")) for n in (1, 2, 3, 4)
    }
    file = objects(versions=made, aliases={"returns": FileObject(1, alias)})
    steps = compare_objects(objects(), file, prune=False, previous_versions={"returns": 1})
    assert [step.name for step in steps if step.action == "stage_previous"] == ["returns@v2"]
    changed = objects(versions=made, aliases={"returns": FileObject(1, {"weights": {"returns@v1": 1.0}})})
    assert not [
        s
        for s in compare_objects(changed, file, prune=False, previous_versions={"returns": 1})
        if s.action == "stage_previous"
    ]
    gone = objects(versions={"returns@v4": made["returns@v4"]}, aliases=file["aliases"])
    conflicts = [step.name for step in compare_objects(objects(), gone, prune=False) if step.action == "conflict"]
    assert conflicts == ["returns@v3", "returns@v2", "returns@v1"]
